"""RT-DETR, RT-DETRv2, D-FINE and DEIMv2: a hybrid encoder whose output is a list of maps, and denoising queries."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor
from transformers import PreTrainedModel

from ...alignment.detection import DetectorWidths, Level
from .base import DetectorAdapter, DetectorFeatures, captured, flattened, resized_mask

__all__ = ["Deimv2Adapter", "RTDetrAdapter"]


class RTDetrAdapter(DetectorAdapter):
    """RT-DETR, its second version and D-FINE.

    They prepend denoising queries where they are given labels in training; here they are run without labels.
    """

    model_types: ClassVar[tuple[str, ...]] = ("rt_detr", "rt_detr_v2", "d_fine")
    image_processor = "RTDetrImageProcessor"
    layers_first = False

    def widths(self, detector: PreTrainedModel) -> DetectorWidths:
        """Channels of the maps, of the encoder's maps and of the queries."""
        config = detector.config
        maps = self._map_channels(detector)
        return DetectorWidths(maps, (config.encoder_hidden_dim,) * self._encoder_levels(detector), config.d_model)

    def features(self, detector: PreTrainedModel, pixel_values: Tensor, pixel_mask: Tensor | None) -> DetectorFeatures:
        """One forward pass without labels."""
        with captured(detector, (self.maps_name, "model.encoder")) as seen:
            output = self.predict(detector, pixel_values, pixel_mask)
        maps = [entry[0] if isinstance(entry, tuple) else entry for entry in seen[self.maps_name][1]]
        return DetectorFeatures(
            maps=[Level(values, resized_mask(pixel_mask, values.shape)) for values in maps],
            encoder=flattened(self._encoder_maps(seen["model.encoder"][1]), pixel_mask),
            queries=output.last_hidden_state,
            logits=output.logits,
            pred_boxes=output.pred_boxes,
        )

    def maps(self, detector: PreTrainedModel, pixel_values: Tensor, pixel_mask: Tensor | None) -> list[Level]:
        """The maps of a pass that stops before the decoder, and keeps no graph of what follows the backbone.

        The encoder runs, since its batch normalisations are moved by this pass; the decoder has none.
        """
        model, grad = detector.model, torch.is_grad_enabled()
        with captured(detector, (self.maps_name,)) as seen:
            handles = [
                detector.get_submodule(self.maps_name).register_forward_hook(_end_graph),
                model.decoder.register_forward_pre_hook(_stop),
            ]
            try:
                self.predict(detector, pixel_values, pixel_mask)
            except _Reached:
                pass
            finally:
                torch.set_grad_enabled(grad)
                for handle in handles:
                    handle.remove()
        maps = [entry[0] if isinstance(entry, tuple) else entry for entry in seen[self.maps_name][1]]
        return [Level(values, resized_mask(pixel_mask, values.shape)) for values in maps]

    def _map_channels(self, detector: PreTrainedModel) -> tuple[int, ...]:
        return tuple(detector.model.backbone.intermediate_channel_sizes)

    def _encoder_levels(self, detector: PreTrainedModel) -> int:
        return len(self._map_channels(detector))

    def _encoder_maps(self, output: object) -> list[Tensor]:
        return list(output.last_hidden_state)  # type: ignore[attr-defined]


class _Reached(Exception):
    """A pass has come as far as it has to."""


def _stop(*_: Any) -> None:
    raise _Reached


def _end_graph(*_: Any) -> None:
    torch.set_grad_enabled(False)


class Deimv2Adapter(RTDetrAdapter):
    """DEIMv2: its backbone module projects the maps to the encoder's width before it hands them out."""

    model_types = ("deimv2",)
    maps_name = "model.conv_encoder"

    def backbone_name(self, detector: PreTrainedModel) -> str:
        """The backbone proper: a convolutional one, or a DINOv3."""
        return f"model.conv_encoder.{'model' if hasattr(detector.model.conv_encoder, 'model') else 'backbone'}"

    def frozen_name(self, detector: PreTrainedModel) -> str:
        """The backbone proper."""
        return self.backbone_name(detector)

    def _map_channels(self, detector: PreTrainedModel) -> tuple[int, ...]:
        config, encoder = detector.config, detector.model.conv_encoder
        if config.encoder_type == "lite":
            return tuple(encoder.intermediate_channel_sizes)
        levels = len(encoder.encoder_input_proj if hasattr(encoder, "model") else encoder.fusion_proj)
        return (config.encoder_hidden_dim,) * levels

    def _encoder_levels(self, detector: PreTrainedModel) -> int:
        return 2 if detector.config.encoder_type == "lite" else len(self._map_channels(detector))

    def _encoder_maps(self, output: object) -> list[Tensor]:
        return list(output.feature_maps)  # type: ignore[attr-defined]
