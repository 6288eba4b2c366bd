"""The interface of further loss terms on target images."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ..tasks.base import Batch, StepClosures
from ..tasks.passes import task_as_both

__all__ = ["TargetContext", "TargetLoss", "TargetStep", "with_target_losses"]

Pass = Callable[[], Tensor]
OfLogits = Callable[[Tensor], Tensor]
"""A loss, scalar, of the logits `(B, K)` of target images."""


@dataclass(frozen=True)
class TargetContext:
    """What a target loss is built for.

    Attributes:
        labels: Class names in the order of the class indices.
        processor: The image processor, which knows sizes and how pixel values were normalised; None for a loss that is
            used on logits alone.
        probabilities: Makes class probabilities of a detector's logits.
    """

    labels: Sequence[str]
    processor: Any = None
    probabilities: Callable[[Tensor], Tensor] | None = None


@dataclass
class TargetStep:
    """What a target loss sees of a step.

    Attributes:
        model: The wrapped model, which is trained.
        teacher: The average of the weights, in evaluation mode; the model itself where none is kept.
        source: Micro-batches with labels.
        target: As many micro-batches without.
        progress: Progress of the adaptation in 0..1.
        task_pass: Makes a pass that returns the task loss on a view of target images with labels, given the source's
            micro-batch, with which it may have to share the statistics of batch normalisation.
        logits_pass: The same for a loss of the logits of a view; None for a task without class logits of images.
    """

    model: nn.Module
    teacher: nn.Module
    source: Sequence[Batch]
    target: Sequence[Batch]
    progress: float
    task_pass: Callable[[Batch, Batch], Pass]
    logits_pass: Callable[[Batch, Batch, OfLogits], Pass] | None = None
    _taught: list[Tensor] = field(default_factory=list)

    def teacher_logits(self) -> list[Tensor]:
        """What the teacher says of the target's micro-batches, each `(B, K)`; it is asked once a step."""
        if not self._taught:
            with torch.no_grad():
                self._taught = [self.teacher(batch["pixel_values"]).logits.float() for batch in self.target]
        return self._taught


class TargetLoss:
    """A term `weight(progress) * loss`, computed on target images.

    A subclass is registered with `register_target_loss`; its constructor takes a `TargetContext`, and its keyword-only
    arguments are its options. `weight`, `burn_in` and `ramp_up` are options of every target loss.

    Args:
        weight: Weight of the loss.

    Attributes:
        name: Its name; `register_target_loss` sets it.
        needs_teacher: Whether it asks the average of the weights.
        burn_in: Share of the adaptation in which it has no weight yet, and costs nothing.
        ramp_up: Share of the adaptation, after that, over which its weight rises from 0, in a straight line.
    """

    name: ClassVar[str]
    needs_teacher: ClassVar[bool] = False

    def __init__(self, weight: float = 1.0) -> None:
        self.weight = weight
        self.burn_in = self.ramp_up = 0.0

    def weight_at(self, progress: float) -> float:
        """The weight when this share of the adaptation is done."""
        if progress < self.burn_in:
            return 0.0
        return self.weight * (min(1.0, (progress - self.burn_in) / self.ramp_up) if self.ramp_up > 0 else 1.0)

    def passes(self, step: TargetStep) -> tuple[list[Pass], dict[str, float]]:
        """For each micro-batch a pass that returns the loss, 0 where there is none; and figures for the log."""
        raise NotImplementedError

    def note(self, steps: int) -> str | None:
        """What the summary says about it after `steps` steps of adaptation."""
        return None

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint must keep, as JSON values."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what `state_dict` gave."""


def with_target_losses(
    closures: StepClosures, losses: Sequence[TargetLoss], step: TargetStep
) -> tuple[StepClosures, dict[str, float]]:
    """Closures whose task loss is `mean(task) + sum_j weight_j mean(loss_j)`, and figures for the log.

    The passes on target images join as micro-batches of their own, so that one graph is kept at a time. A coordinator
    takes the mean over micro-batches, of which there are `1 + len(losses)` times as many now. Those of the target come
    first: on several processes the last pass averages the gradients, and must not be one that a process has no
    pseudo-labels for.

    Without an alignment objective (`closures.alignment` is empty) the target losses take its role in the step: their
    sum is the alignment loss that a coordinator plays against the task.

    Args:
        closures: The step without them, in full passes.
        losses: The target losses; those whose weight is 0 now are left out.
        step: What they see.
    """
    assert not closures.shared, "target losses need full passes"
    active = [(loss, weight) for loss in losses if (weight := loss.weight_at(step.progress)) > 0]
    count, figures = 1 + len(active), {}
    added: list[tuple[Pass, float]] = []
    for loss, weight in active:
        passes, told = loss.passes(step)
        figures.update(told)
        added += [(run, weight) for run in passes]
    others = [_both_times(run, count) for run in closures.both]
    if not closures.alignment:
        # In a burn-in there is nothing to play against yet: a loss of 0, with a gradient of zeros.
        alone = [_times(run, len(active) * weight) for run, weight in added] or [_times(r, 0.0) for r in closures.task]
        return (
            StepClosures(
                task=closures.task,
                alignment=alone,
                both=[*(_second(_times(run, count * weight)) for run, weight in added), *others],
            ),
            figures,
        )
    terms = [_times(run, count * weight) for run, weight in added]
    return (
        StepClosures(
            task=[*terms, *(_times(run, count) for run in closures.task)],
            alignment=closures.alignment,
            both=[*map(task_as_both, terms), *others],
            penalty=closures.penalty,
        ),
        figures,
    )


def _times(run: Pass, factor: float) -> Pass:
    return lambda: run() * factor


def _second(run: Pass) -> Callable[[], tuple[Tensor, Tensor]]:
    """A pass of the other role alone, as one of both losses."""

    def both() -> tuple[Tensor, Tensor]:
        loss = run()
        return torch.zeros_like(loss), loss

    return both


def _both_times(run: Callable[[], tuple[Tensor, Tensor]], factor: float) -> Callable[[], tuple[Tensor, Tensor]]:
    def both() -> tuple[Tensor, Tensor]:
        task_loss, alignment_loss = run()
        return factor * task_loss, factor * alignment_loss

    return both
