"""Further terms of a step's loss, on target images without labels: one file each, in one registry."""

from .base import TargetContext, TargetLoss, TargetStep, with_target_losses
from .information_maximization import InformationMaximization, information_maximization
from .logits import LogitsLoss, PseudoLabels
from .masked_consistency import MaskedConsistency
from .pseudo_labels import MeanTeacher
from .registry import build_target_losses, normalise_target_losses, register_target_loss, target_loss_names
from .self_training import SelfTraining

__all__ = [
    "InformationMaximization",
    "LogitsLoss",
    "MaskedConsistency",
    "MeanTeacher",
    "PseudoLabels",
    "SelfTraining",
    "TargetContext",
    "TargetLoss",
    "TargetStep",
    "build_target_losses",
    "information_maximization",
    "normalise_target_losses",
    "register_target_loss",
    "target_loss_names",
    "with_target_losses",
]
