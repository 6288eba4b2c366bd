"""Target losses of a classifier: functions of the logits of a student's view, and perhaps of a teacher's logits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from .base import OfLogits, Pass, TargetLoss, TargetStep

__all__ = ["LogitsLoss", "PseudoLabels"]


@dataclass(frozen=True)
class PseudoLabels:
    """Labels of a teacher, each with a weight.

    Attributes:
        labels: Class indices `(B,)`.
        weights: How much each counts `(B,)`, 0 for one that is not accepted.
    """

    labels: Tensor
    weights: Tensor

    def loss(self, logits: Tensor) -> Tensor:
        """`mean_i w_i CE(logits_i, y_i)` over all rows of the student's logits `(B, K)`, accepted or not."""
        losses = F.cross_entropy(logits.float(), self.labels, reduction="none")
        return (self.weights * losses).mean()


class LogitsLoss(TargetLoss):
    """A target loss that is a function of logits.

    Subclasses say which view of an image the student sees, and what the loss of its logits is; so the same object
    serves in a loop of one's own: `loss.weight_at(progress) * of_logits(student_logits)`, with `of_logits` from
    `losses([teacher_logits])`.
    """

    @property
    def plain(self) -> bool:
        """Whether the student sees just what the teacher sees."""
        return type(self).view is LogitsLoss.view

    def view(self, pixel_values: Tensor) -> Tensor:
        """What the student sees of images `(B, 3, H, W)`; by default just what the teacher sees."""
        return pixel_values

    def losses(self, taught: Sequence[Tensor]) -> tuple[list[OfLogits], dict[str, float]]:
        """For each micro-batch the loss as a function of the student's logits; and figures for the log.

        Args:
            taught: Logits of the teacher `(B, K)` for all micro-batches of the step; where the loss needs none
                (`needs_teacher`), tensors of that shape.
        """
        raise NotImplementedError

    def passes(self, step: TargetStep) -> tuple[list[Pass], dict[str, float]]:
        """The loss of the student's view, in a pass of its own."""
        assert step.logits_pass is not None, f"{self.name} needs class logits"
        taught = step.teacher_logits() if self.needs_teacher else [torch.empty(0)] * len(step.target)
        losses, figures = self.losses(taught)
        runs = []
        for source, batch, of_logits in zip(step.source, step.target, losses, strict=True):
            view = {**batch, "pixel_values": self.view(batch["pixel_values"]), "plain": self.plain}
            runs.append(step.logits_pass(source, view, of_logits))
        return runs, figures
