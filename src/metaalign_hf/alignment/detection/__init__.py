"""Alignment levels of detectors: where in a DETR-style detector source and target are made alike."""

from .backbone import BackboneGlobal, BackbonePixel
from .base import (
    AlignmentLevel,
    DetectionAlignmentBatch,
    DetectorWidths,
    Level,
    LevelSum,
    build_levels,
    level_names,
    normalise_levels,
    register_level,
)
from .tokens import EncoderTokens, QueryTokens

__all__ = [
    "AlignmentLevel",
    "BackboneGlobal",
    "BackbonePixel",
    "DetectionAlignmentBatch",
    "DetectorWidths",
    "EncoderTokens",
    "Level",
    "LevelSum",
    "QueryTokens",
    "build_levels",
    "level_names",
    "normalise_levels",
    "register_level",
]
