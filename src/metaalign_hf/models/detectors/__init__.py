"""Detector families: a small adapter for each returns maps, tokens, queries, logits, boxes and masks."""

from ...errors import UserError
from .base import DetectorAdapter, DetectorFeatures, Probabilities
from .detr import ConditionalDetrAdapter, DabDetrAdapter, DeformableDetrAdapter, DetrAdapter
from .lw_detr import LwDetrAdapter, RfDetrAdapter
from .rt_detr import Deimv2Adapter, RTDetrAdapter
from .yolos import YolosAdapter

__all__ = ["DetectorAdapter", "DetectorFeatures", "Probabilities", "detector_adapter", "detector_types"]

_ADAPTERS = {
    model_type: adapter
    for kind in (
        DetrAdapter,
        ConditionalDetrAdapter,
        DabDetrAdapter,
        DeformableDetrAdapter,
        RTDetrAdapter,
        Deimv2Adapter,
        LwDetrAdapter,
        RfDetrAdapter,
        YolosAdapter,
    )
    for adapter in (kind(),)
    for model_type in kind.model_types
}


def detector_types() -> list[str]:
    """Model types of transformers that can be adapted."""
    return sorted(_ADAPTERS)


def detector_adapter(model_type: str) -> DetectorAdapter:
    """The adapter of a model type.

    Raises:
        UserError: If the family is not known.
    """
    if model_type not in _ADAPTERS:
        raise UserError(
            f"detector: a {model_type} model cannot be adapted; known detectors: {', '.join(detector_types())}"
        )
    return _ADAPTERS[model_type]
