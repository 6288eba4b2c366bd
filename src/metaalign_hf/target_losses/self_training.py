"""Self-training of a classifier: a teacher labels target images, and the student learns the labels on a strong view."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor

from ..errors import UserError
from .base import OfLogits, TargetContext
from .logits import LogitsLoss, PseudoLabels
from .pseudo_labels import CITATION as MEAN_TEACHER
from .registry import register_target_loss
from .thresholds import THRESHOLDS
from .views import normalisation, strong_view

__all__ = ["SelfTraining"]

FIXMATCH = """\
@inproceedings{sohn2020fixmatch,
  title     = {FixMatch: Simplifying Semi-Supervised Learning with Consistency and Confidence},
  author    = {Sohn, Kihyuk and Berthelot, David and Carlini, Nicholas and Zhang, Zizhao and Zhang, Han and
               Raffel, Colin and Cubuk, Ekin D. and Kurakin, Alexey and Li, Chun-Liang},
  booktitle = {Advances in Neural Information Processing Systems},
  year      = {2020}
}"""


@register_target_loss("self_training", citation=f"{FIXMATCH}\n{MEAN_TEACHER}")
class SelfTraining(LogitsLoss):
    """Cross entropy of the student on a strong view, with labels of the average of the weights on the weak view.

    With p_i = softmax(teacher(weak view)) `(K,)`, y_i = argmax p_i, c_i = max p_i, T the thresholds of the classes and
    A RandAugment::

        w_i = [c_i >= T_{y_i}] q_i
        L   = mean_i w_i CE(student(A(x_i)), y_i)

    over all target images, accepted or not; q_i is 1, or c_i with `quality: confidence`. The weak view is the one that
    the target's stream gives (`data.augmentation`).

    Source: Sohn et al., "FixMatch", NeurIPS 2020, section 2, with the teacher of Tarvainen and Valpola, "Mean teachers
    are better role models", NeurIPS 2017; thresholds for each class see `thresholds.py`; the confidence as a weight as
    in Hoyer et al., "MIC", CVPR 2023, section 3.

    Args:
        context: The classes, and the image processor.
        threshold: Least confidence of an accepted label, 0..1; the highest one where thresholds move.
        thresholds: `fixed`; `class_balanced`, lower for classes that are seldom said with confidence (FlexMatch); or
            `adaptive`, as high as the model is confident (FreeMatch).
        quality: How much an accepted label counts: `none`, all alike; or `confidence`.
        operations: RandAugment's operations on an image; 0 leaves the weak view.
        magnitude: How strong they are, 0..30.

    Raises:
        UserError: If a value is out of range.
    """

    needs_teacher = True

    def __init__(
        self,
        context: TargetContext,
        *,
        threshold: float = 0.9,
        thresholds: Literal["fixed", "class_balanced", "adaptive"] = "fixed",
        quality: Literal["none", "confidence"] = "none",
        operations: int = 2,
        magnitude: int = 10,
    ) -> None:
        super().__init__()
        key = "training.target_losses self_training:"
        if isinstance(threshold, bool) or not isinstance(threshold, int | float) or not 0 <= threshold <= 1:
            raise UserError(f"{key} threshold is {threshold!r}: it must lie in 0..1")
        if thresholds not in THRESHOLDS:
            raise UserError(f"{key} thresholds is {thresholds!r}: it must be {', '.join(THRESHOLDS)}")
        if quality not in ("none", "confidence"):
            raise UserError(f"{key} quality is {quality!r}: it must be none or confidence")
        for name, value, most in (("operations", operations, 14), ("magnitude", magnitude, 30)):
            if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= most:
                raise UserError(f"{key} {name} is {value!r}: it must be a whole number from 0 to {most}")
        self.thresholds = THRESHOLDS[thresholds](float(threshold), len(context.labels))
        self.quality, self.operations, self.magnitude = quality, operations, magnitude
        self.mean, self.std = normalisation(context.processor)
        self.accepted, self.steps = 0.0, 0
        self.judged: tuple[int, int, int] | None = None

    def view(self, pixel_values: Tensor) -> Tensor:
        """The strong view."""
        if self.operations == 0:
            return pixel_values
        return strong_view(pixel_values, self.mean, self.std, self.operations, self.magnitude)

    def losses(self, taught: Sequence[Tensor]) -> tuple[list[OfLogits], dict[str, float]]:
        """The weighted cross entropy; and the share of accepted labels on this process."""
        found = self.label(taught)
        share = float(torch.cat([(labels.weights > 0).float() for labels in found]).mean())
        self.accepted, self.steps = self.accepted + share, self.steps + 1
        return [labels.loss for labels in found], {"self_training_accepted": share}

    @torch.no_grad()
    def label(self, taught: Sequence[Tensor]) -> list[PseudoLabels]:
        """The teacher's labels and their weights, after the thresholds have taken note of all of them.

        Args:
            taught: Logits of the teacher `(B, K)` for all micro-batches of the step.
        """
        probabilities = [logits.float().softmax(1) for logits in taught]
        if self.thresholds.learns:
            rows = self.thresholds.measured(torch.cat(probabilities)).double()
            self.thresholds.update(_mean_of_all_processes(rows))
        return [self._weighted(p) for p in probabilities]

    def _weighted(self, probabilities: Tensor) -> PseudoLabels:
        confidence, labels = probabilities.max(1)
        accepted = confidence >= self.thresholds.values().to(confidence)[labels]
        return PseudoLabels(labels, confidence * accepted if self.quality == "confidence" else accepted.float())

    def judge(self, logits: Tensor, labels: Tensor) -> tuple[int, int, int]:
        """For the report alone: of images with known labels, how many there are, are accepted, and are right of those.

        Args:
            logits: Logits of the teacher `(B, K)`.
            labels: True class indices `(B,)`.
        """
        found = self._weighted(logits.float().softmax(1))
        accepted = found.weights > 0
        return len(labels), int(accepted.sum()), int((accepted & (found.labels == labels)).sum())

    def note(self, steps: int) -> str:
        """How many labels were accepted, and how many of them were right at the end."""
        share = 100 * self.accepted / max(self.steps, 1)
        words = f"Self-training: {share:.1f} % of the target images had an accepted label, averaged over its steps"
        if self.judged is None or self.judged[1] == 0:
            return f"{words}."
        count, accepted, right = self.judged
        agreement = f"{100 * right / accepted:.1f} % of these are right (for this report alone)"
        return f"{words}; of the {count} labelled test images {accepted} have one at the end, and {agreement}."

    def state_dict(self) -> dict[str, Any]:
        """The thresholds, and what was counted so far."""
        counted = {"accepted": self.accepted, "steps": self.steps, "judged": self.judged and list(self.judged)}
        return {**counted, "thresholds": self.thresholds.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what `state_dict` gave."""
        self.accepted, self.steps = state["accepted"], state["steps"]
        judged = state["judged"]
        self.judged = None if judged is None else tuple(judged)
        self.thresholds.load_state_dict(state["thresholds"])


def _mean_of_all_processes(rows: Tensor) -> Tensor:
    """The mean over the rows of all processes, which have equally many."""
    mean = rows.mean(0)
    if dist.is_available() and dist.is_initialized():
        dist.all_reduce(mean)
        mean /= dist.get_world_size()
    return mean
