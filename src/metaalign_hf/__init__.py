"""Unsupervised domain adaptation of Hugging Face vision models with MetaAlign.

Importing the package makes the Auto classes of transformers know our checkpoints; everything about data and training is
imported on first use.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from .models import (
    MetaAlignConfig,
    MetaAlignDetectionConfig,
    MetaAlignDetectionOutput,
    MetaAlignForImageClassification,
    MetaAlignForObjectDetection,
    MetaAlignOutput,
)

if TYPE_CHECKING:
    from .coordination import Joint, MetaAlign, StepReport
    from .data import (
        DataConfig,
        DetectionPair,
        DomainConfig,
        DomainPair,
        load_detection_pair,
        load_domain,
        load_domain_pair,
    )
    from .errors import UserError
    from .training import (
        Config,
        CoordinationConfig,
        ModelConfig,
        OptimizerConfig,
        Summary,
        TrainingConfig,
        adapt,
        load_config,
        parse_config,
    )

_LAZY = {
    "coordination": ("Joint", "MetaAlign", "StepReport"),
    "data": (
        "DataConfig",
        "DetectionPair",
        "DomainConfig",
        "DomainPair",
        "load_detection_pair",
        "load_domain",
        "load_domain_pair",
    ),
    "errors": ("UserError",),
    "training": (
        "Config",
        "CoordinationConfig",
        "ModelConfig",
        "OptimizerConfig",
        "Summary",
        "TrainingConfig",
        "adapt",
        "load_config",
        "parse_config",
    ),
}
_HOMES = {name: module for module, names in _LAZY.items() for name in names}

__all__ = [
    "Config",
    "CoordinationConfig",
    "DataConfig",
    "DetectionPair",
    "DomainConfig",
    "DomainPair",
    "Joint",
    "MetaAlign",
    "MetaAlignConfig",
    "MetaAlignDetectionConfig",
    "MetaAlignDetectionOutput",
    "MetaAlignForImageClassification",
    "MetaAlignForObjectDetection",
    "MetaAlignOutput",
    "ModelConfig",
    "OptimizerConfig",
    "StepReport",
    "Summary",
    "TrainingConfig",
    "UserError",
    "adapt",
    "load_config",
    "load_detection_pair",
    "load_domain",
    "load_domain_pair",
    "parse_config",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_HOMES[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
