"""LW-DETR and RF-DETR: a plain ViT with a projector in the encoder's place, and groups of queries while training."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor
from transformers import PreTrainedModel

from ...alignment.detection import DetectorWidths, Level
from .base import DetectorAdapter, DetectorFeatures, captured, flattened, resized_mask

__all__ = ["LwDetrAdapter", "RfDetrAdapter"]


class LwDetrAdapter(DetectorAdapter):
    """LW-DETR.

    Its maps are those of the ViT; "encoder" tokens are what the decoder attends to, the projector's output. In
    training it runs `group_detr` groups of queries, of which only the first is handed out.
    """

    model_types: ClassVar[tuple[str, ...]] = ("lw_detr",)
    image_processor = "DeformableDetrImageProcessor"
    uses_mask = True
    maps_name = "model.backbone.backbone"

    def backbone_name(self, detector: PreTrainedModel) -> str:
        """The ViT; the projector learns as fast as the decoder."""
        return "model.backbone.backbone"

    def frozen_name(self, detector: PreTrainedModel) -> str:
        """The ViT."""
        return self.backbone_name(detector)

    def widths(self, detector: PreTrainedModel) -> DetectorWidths:
        """Channels of the ViT's maps, and the decoder's width."""
        config = detector.config
        maps = tuple(detector.model.backbone.backbone.channels)
        levels = len(getattr(config, "projector_scale_factors", [1.0]))  # RF-DETR has a single scale and no such entry
        return DetectorWidths(maps, (config.d_model,) * levels, config.d_model)

    def features(self, detector: PreTrainedModel, pixel_values: Tensor, pixel_mask: Tensor | None) -> DetectorFeatures:
        """One forward pass without labels."""
        with captured(detector, ("model.backbone.backbone", "model.backbone.projector")) as seen:
            output = self.predict(detector, pixel_values, pixel_mask)
        maps = seen["model.backbone.backbone"][1].feature_maps
        projected = seen["model.backbone.projector"][1]
        count = detector.config.num_queries
        return DetectorFeatures(
            maps=[Level(values, resized_mask(pixel_mask, values.shape)) for values in maps],
            encoder=flattened([projected] if isinstance(projected, Tensor) else list(projected), pixel_mask),
            queries=output.last_hidden_state[:, :count],
            logits=output.logits[:, :count],
            pred_boxes=output.pred_boxes[:, :count],
        )


class RfDetrAdapter(LwDetrAdapter):
    """RF-DETR: as LW-DETR, with one projected map."""

    model_types = ("rf_detr",)
    image_processor = "RfDetrImageProcessor"
