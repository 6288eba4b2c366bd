"""YOLOS: a plain ViT with detection tokens."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from transformers import PreTrainedModel

from ...alignment.detection import DetectorWidths, Level
from ...errors import UserError
from .base import DetectorAdapter, DetectorFeatures, captured, resized_mask

__all__ = ["YolosAdapter"]


class YolosAdapter(DetectorAdapter):
    """YOLOS has no maps and no encoder apart from its ViT, so layers stand in for them.

    Maps are the patch tokens after the first layer and after the middle layer; encoder tokens are the patch tokens, and
    queries the detection tokens, of the last layer.
    """

    model_types = ("yolos",)
    image_processor = "YolosImageProcessor"
    scores = "softmax"

    def backbone_name(self, detector: PreTrainedModel) -> str:
        """All but the two prediction heads."""
        return "vit"

    def frozen_name(self, detector: PreTrainedModel) -> str:
        """None: it has no backbone apart."""
        raise UserError(
            "model.freeze: yolos has no backbone apart from what finds objects (its ViT holds the queries); leave it "
            "at none"
        )

    def widths(self, detector: PreTrainedModel) -> DetectorWidths:
        """The ViT's width everywhere."""
        width = detector.config.hidden_size
        return DetectorWidths((width, width), (width,), width)

    def features(self, detector: PreTrainedModel, pixel_values: Tensor, pixel_mask: Tensor | None) -> DetectorFeatures:
        """One forward pass without labels."""
        config = detector.config
        layers = ("vit.encoder.layer.0", f"vit.encoder.layer.{config.num_hidden_layers // 2}")
        with captured(detector, layers) as seen:
            output = self.predict(detector, pixel_values, pixel_mask)
        patch = config.patch_size if isinstance(config.patch_size, int) else config.patch_size[0]
        grid = (pixel_values.shape[-2] // patch, pixel_values.shape[-1] // patch)
        patches = slice(1, -config.num_detection_tokens)  # the first token is the class token
        mask = resized_mask(pixel_mask, grid)
        maps = []
        for layer in layers:
            tokens = seen[layer][1]
            tokens = tokens[0] if isinstance(tokens, tuple) else tokens
            maps.append(Level(tokens[:, patches].transpose(1, 2).unflatten(2, grid), mask))
        tokens = output.last_hidden_state
        return DetectorFeatures(
            maps=maps,
            encoder=[Level(tokens[:, patches], None if mask is None else mask.flatten(1))],
            queries=tokens[:, -config.num_detection_tokens :],
            logits=output.logits,
            pred_boxes=output.pred_boxes,
        )

    def predict(self, detector: PreTrainedModel, pixel_values: Tensor, pixel_mask: Tensor | None, **labels: Any) -> Any:
        """The detector's own forward pass; it takes no mask."""
        return super().predict(detector, pixel_values, None, **labels)
