"""Training: the configuration, the Accelerate loop and its checkpoints."""

from ..configuration import (
    Config,
    CoordinationConfig,
    ModelConfig,
    OptimizerConfig,
    TrainingConfig,
    build_parser,
    load_config,
    parse_config,
    parse_domain,
)
from .classification import ClassificationSummary, build_model
from .detection import DetectionSummary, build_detector
from .loop import adapt
from .summary import Summary

__all__ = [
    "ClassificationSummary",
    "Config",
    "CoordinationConfig",
    "DetectionSummary",
    "ModelConfig",
    "OptimizerConfig",
    "Summary",
    "TrainingConfig",
    "adapt",
    "build_detector",
    "build_model",
    "build_parser",
    "load_config",
    "parse_config",
    "parse_domain",
]
