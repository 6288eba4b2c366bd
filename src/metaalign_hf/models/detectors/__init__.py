"""Detector families: a small adapter for each returns maps, tokens, queries, logits, boxes and masks."""

from ...registry import Registry
from .base import DetectorAdapter, DetectorFeatures, Probabilities
from .detr import ConditionalDetrAdapter, DabDetrAdapter, DeformableDetrAdapter, DetrAdapter
from .lw_detr import LwDetrAdapter, RfDetrAdapter
from .rt_detr import Deimv2Adapter, RTDetrAdapter
from .yolos import YolosAdapter

__all__ = ["DetectorAdapter", "DetectorFeatures", "Probabilities", "detector_adapter", "detector_types"]

_ADAPTERS: Registry[DetectorAdapter] = Registry(
    "detector family", "detector: a {} model cannot be adapted", known="known detectors"
)
for _kind in (
    DetrAdapter,
    ConditionalDetrAdapter,
    DabDetrAdapter,
    DeformableDetrAdapter,
    RTDetrAdapter,
    Deimv2Adapter,
    LwDetrAdapter,
    RfDetrAdapter,
    YolosAdapter,
):
    for _model_type in _kind.model_types:
        _ADAPTERS.register(_model_type, lambda kind: kind())(_kind)


def detector_types() -> list[str]:
    """Model types of transformers that can be adapted."""
    return _ADAPTERS.names()


def detector_adapter(model_type: str) -> DetectorAdapter:
    """The adapter of a model type.

    Raises:
        UserError: If the family is not known.
    """
    return _ADAPTERS[model_type]
