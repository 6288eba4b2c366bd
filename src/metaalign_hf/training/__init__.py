"""Training: the configuration, the Accelerate loop and its checkpoints."""

from .classification import ClassificationSummary, build_model
from .configuration import Config, CoordinationConfig, ModelConfig, OptimizerConfig, TrainingConfig
from .loop import adapt
from .parsing import build_parser, load_config, parse_config, parse_domain
from .summary import Summary

__all__ = [
    "ClassificationSummary",
    "Config",
    "CoordinationConfig",
    "ModelConfig",
    "OptimizerConfig",
    "Summary",
    "TrainingConfig",
    "adapt",
    "build_model",
    "build_parser",
    "load_config",
    "parse_config",
    "parse_domain",
]
