"""The typed configuration of a run, and its parsing; it imports without torch, so that help need not wait for it."""

from .data import DIGITS, SCENES, SOLAR, DataConfig, DomainConfig
from .hub import HubConfig
from .parsing import build_parser, load_config, parse_config, parse_domain
from .training import Config, CoordinationConfig, ModelConfig, OptimizerConfig, TrainingConfig

__all__ = [
    "DIGITS",
    "SCENES",
    "SOLAR",
    "Config",
    "CoordinationConfig",
    "DataConfig",
    "DomainConfig",
    "HubConfig",
    "ModelConfig",
    "OptimizerConfig",
    "TrainingConfig",
    "build_parser",
    "load_config",
    "parse_config",
    "parse_domain",
]
