"""What "aligned" means: one file per objective, one registry."""

from .base import IGNORED_LABEL, AlignmentBatch, AlignmentObjective, AlignmentOutput
from .cdan import CDAN
from .coral import CORAL
from .daln import DALN
from .dann import DANN
from .discriminator import DomainDiscriminator
from .gvb import GVB
from .jmmd import JMMD
from .mcc import MCC
from .mdd import MDD
from .mmd import MMD
from .multi_source import PerSource
from .osbp import OSBP
from .registry import (
    AlignmentSum,
    alignment_names,
    alignment_options,
    build_alignment,
    normalise_alignment,
    register_alignment,
)
from .reversal import reversal_strength, reverse_gradient
from .toalign import task_oriented

__all__ = [
    "CDAN",
    "CORAL",
    "DALN",
    "DANN",
    "GVB",
    "IGNORED_LABEL",
    "JMMD",
    "MCC",
    "MDD",
    "MMD",
    "OSBP",
    "AlignmentBatch",
    "AlignmentObjective",
    "AlignmentOutput",
    "AlignmentSum",
    "DomainDiscriminator",
    "PerSource",
    "alignment_names",
    "alignment_options",
    "build_alignment",
    "normalise_alignment",
    "register_alignment",
    "reversal_strength",
    "reverse_gradient",
    "task_oriented",
]
