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
from . import citations  # noqa: F401  (registers the citations of the steps)
from .loop import adapt
from .summary import Summary

__all__ = [
    "Config",
    "CoordinationConfig",
    "ModelConfig",
    "OptimizerConfig",
    "Summary",
    "TrainingConfig",
    "adapt",
    "build_parser",
    "load_config",
    "parse_config",
    "parse_domain",
]
