"""What "aligned" means: one file per objective, one registry."""

from .base import AlignmentBatch, AlignmentObjective, AlignmentOutput
from .cdan import CDAN
from .dann import DANN
from .discriminator import DomainDiscriminator
from .gvb import GVB
from .registry import (
    AlignmentSum,
    alignment_names,
    alignment_options,
    build_alignment,
    normalise_alignment,
    register_alignment,
)
from .reversal import reversal_strength, reverse_gradient

__all__ = [
    "CDAN",
    "DANN",
    "GVB",
    "AlignmentBatch",
    "AlignmentObjective",
    "AlignmentOutput",
    "AlignmentSum",
    "DomainDiscriminator",
    "alignment_names",
    "alignment_options",
    "build_alignment",
    "normalise_alignment",
    "register_alignment",
    "reversal_strength",
    "reverse_gradient",
]
