"""Unsupervised domain adaptation of Hugging Face vision models with MetaAlign.

Importing the package makes the Auto classes of transformers know our checkpoints; everything about data and training is
imported on first use. The command line, whose help must not wait for torch, has them know when it loads a model.
"""

import sys
from importlib import import_module
from importlib.metadata import version
from itertools import pairwise
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .alignment import AlignmentObjective, AlignmentOutput, register_alignment
    from .configuration import (
        Config,
        CoordinationConfig,
        DataConfig,
        DomainConfig,
        HubConfig,
        ModelConfig,
        OptimizerConfig,
        TrainingConfig,
        load_config,
        parse_config,
    )
    from .coordination import Joint, MetaAlign, RememberedMetaAlign, StepReport
    from .data import DetectionPair, DomainPair, load_detection_pair, load_domain, load_domain_pair
    from .errors import UserError
    from .hub import push
    from .models import (
        MetaAlignConfig,
        MetaAlignDetectionConfig,
        MetaAlignDetectionOutput,
        MetaAlignForImageClassification,
        MetaAlignForObjectDetection,
        MetaAlignOutput,
    )
    from .trainer import MetaAlignTrainer, MetaAlignTrainingArguments
    from .training import Summary, adapt

_LAZY = {
    "alignment": ("AlignmentObjective", "AlignmentOutput", "register_alignment"),
    "configuration": (
        "Config",
        "CoordinationConfig",
        "DataConfig",
        "DomainConfig",
        "HubConfig",
        "ModelConfig",
        "OptimizerConfig",
        "TrainingConfig",
        "load_config",
        "parse_config",
    ),
    "coordination": ("Joint", "MetaAlign", "RememberedMetaAlign", "StepReport"),
    "data": ("DetectionPair", "DomainPair", "load_detection_pair", "load_domain", "load_domain_pair"),
    "errors": ("UserError",),
    "hub": ("push",),
    "models": (
        "MetaAlignConfig",
        "MetaAlignDetectionConfig",
        "MetaAlignDetectionOutput",
        "MetaAlignForImageClassification",
        "MetaAlignForObjectDetection",
        "MetaAlignOutput",
    ),
    "trainer": ("MetaAlignTrainer", "MetaAlignTrainingArguments"),
    "training": ("Summary", "adapt"),
}
_HOMES = {name: module for module, names in _LAZY.items() for name in names}

__all__ = [
    "AlignmentObjective",
    "AlignmentOutput",
    "Config",
    "CoordinationConfig",
    "DataConfig",
    "DetectionPair",
    "DomainConfig",
    "DomainPair",
    "HubConfig",
    "Joint",
    "MetaAlign",
    "MetaAlignConfig",
    "MetaAlignDetectionConfig",
    "MetaAlignDetectionOutput",
    "MetaAlignForImageClassification",
    "MetaAlignForObjectDetection",
    "MetaAlignOutput",
    "MetaAlignTrainer",
    "MetaAlignTrainingArguments",
    "ModelConfig",
    "OptimizerConfig",
    "RememberedMetaAlign",
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
    "push",
    "register_alignment",
]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return version("metaalign-hf")
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_HOMES[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def _is_command_line() -> bool:
    """Whether this process runs `metaalign`, or `python -m metaalign_hf`, of which Python is looking for the module."""
    if "metaalign_cli" in sys.modules:
        return True
    names = [name for option, name in pairwise(sys.orig_argv) if option == "-m"]
    return sys.argv[:1] == ["-m"] and names[:1] in ([__name__], [f"{__name__}.__main__"], [f"{__name__}.cli"])


if not _is_command_line():
    import_module(".models", __name__)
