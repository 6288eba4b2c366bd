"""Further terms of the task loss, on target images without labels: one file each."""

from .base import TargetLoss, TargetStep, with_target_losses
from .pseudo_labels import MeanTeacher

__all__ = ["MeanTeacher", "TargetLoss", "TargetStep", "with_target_losses"]
