"""Detr, Conditional DETR, DAB-DETR and Deformable DETR: a backbone with masks and a transformer on its tokens."""

from __future__ import annotations

from typing import ClassVar, Literal

from torch import Tensor
from transformers import PreTrainedModel

from ...alignment.detection import DetectorWidths, Level
from .base import DetectorAdapter, DetectorFeatures, captured

__all__ = ["ConditionalDetrAdapter", "DabDetrAdapter", "DeformableDetrAdapter", "DetrAdapter"]


class DetrAdapter(DetectorAdapter):
    """Detr: maps and masks from the backbone, tokens of its last map from the encoder."""

    model_types = ("detr",)
    image_processor = "DetrImageProcessor"
    scores: ClassVar[Literal["softmax", "sigmoid"]] = "softmax"
    uses_mask = True
    width_name: ClassVar[str] = "d_model"

    def widths(self, detector: PreTrainedModel) -> DetectorWidths:
        """Channels of the maps, and the transformer's width."""
        width = getattr(detector.config, self.width_name)
        return DetectorWidths(self._map_channels(detector), (width,), width)

    def features(self, detector: PreTrainedModel, pixel_values: Tensor, pixel_mask: Tensor | None) -> DetectorFeatures:
        """One forward pass without labels."""
        with captured(detector, ("model.backbone", "model.encoder")) as seen:
            output = self.predict(detector, pixel_values, pixel_mask)
        found = seen["model.backbone"][1]
        # DAB-DETR's backbone returns (maps, positions).
        pairs = found[0] if isinstance(found, tuple) else found
        masked = pixel_mask is not None
        maps = [Level(values, mask if masked else None) for values, mask in pairs]
        return DetectorFeatures(
            maps=maps,
            encoder=self._tokens(*seen["model.encoder"], masked),
            queries=output.last_hidden_state,
            logits=output.logits,
            pred_boxes=output.pred_boxes,
        )

    def _map_channels(self, detector: PreTrainedModel) -> tuple[int, ...]:
        return tuple(detector.model.backbone.intermediate_channel_sizes)

    def _tokens(self, arguments: dict, output: object, masked: bool) -> list[Level]:
        """The encoder's output as feature levels; one here."""
        return [Level(output[0], arguments["attention_mask"].bool() if masked else None)]  # type: ignore[index]


class ConditionalDetrAdapter(DetrAdapter):
    """Conditional DETR: as Detr, with a sigmoid per class."""

    model_types = ("conditional_detr",)
    image_processor = "ConditionalDetrImageProcessor"
    scores = "sigmoid"


class DabDetrAdapter(DetrAdapter):
    """DAB-DETR: as Conditional DETR, with another name for its width."""

    model_types = ("dab-detr",)
    image_processor = "ConditionalDetrImageProcessor"
    scores = "sigmoid"
    width_name = "hidden_size"

    def frozen_name(self, detector: PreTrainedModel) -> str:
        """The backbone without what embeds positions."""
        return "model.backbone.conv_encoder.model"

    def _map_channels(self, detector: PreTrainedModel) -> tuple[int, ...]:
        return tuple(detector.model.backbone.conv_encoder.intermediate_channel_sizes)


class DeformableDetrAdapter(DetrAdapter):
    """Deformable DETR: the encoder's tokens are those of all levels, one after another."""

    model_types = ("deformable_detr",)
    image_processor = "DeformableDetrImageProcessor"
    scores = "sigmoid"

    def widths(self, detector: PreTrainedModel) -> DetectorWidths:
        """Channels of the maps; the transformer's width for each feature level."""
        config = detector.config
        maps = self._map_channels(detector)
        return DetectorWidths(maps, (config.d_model,) * config.num_feature_levels, config.d_model)

    def _tokens(self, arguments: dict, output: object, masked: bool) -> list[Level]:
        sizes = [height * width for height, width in arguments["spatial_shapes_list"]]
        values = output[0].split(sizes, 1)  # type: ignore[index]
        masks = arguments["attention_mask"].bool().split(sizes, 1) if masked else [None] * len(sizes)
        return [Level(v, m) for v, m in zip(values, masks, strict=True)]
