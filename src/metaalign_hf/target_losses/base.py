"""The interface of further task-loss terms on target images."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ..tasks.base import Batch, StepClosures

__all__ = ["TargetLoss", "TargetStep", "with_target_losses"]

Pass = Callable[[], Tensor]


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
    """

    model: nn.Module
    teacher: nn.Module
    source: Sequence[Batch]
    target: Sequence[Batch]
    progress: float
    task_pass: Callable[[Batch, Batch], Pass]


class TargetLoss:
    """A term `weight * loss` of the task objective, computed on target images.

    Args:
        weight: Weight of the loss.

    Attributes:
        name: Its name in a checkpoint.
    """

    name: ClassVar[str]

    def __init__(self, weight: float) -> None:
        self.weight = weight

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

    Args:
        closures: The step without them, in full passes.
        losses: The target losses.
        step: What they see.
    """
    assert not closures.shared, "target losses need full passes"
    count, figures = 1 + len(losses), {}
    added: list[Pass] = []
    for loss in losses:
        passes, told = loss.passes(step)
        figures.update(told)
        added += [_times(run, count * loss.weight) for run in passes]
    return (
        StepClosures(
            task=[*added, *(_times(run, count) for run in closures.task)],
            alignment=closures.alignment,
            both=[*map(_alone, added), *(_both_times(run, count) for run in closures.both)],
            penalty=closures.penalty,
        ),
        figures,
    )


def _times(run: Pass, factor: float) -> Pass:
    return lambda: run() * factor


def _alone(run: Pass) -> Callable[[], tuple[Tensor, Tensor]]:
    def both() -> tuple[Tensor, Tensor]:
        loss = run()
        return loss, torch.zeros_like(loss)

    return both


def _both_times(run: Callable[[], tuple[Tensor, Tensor]], factor: float) -> Callable[[], tuple[Tensor, Tensor]]:
    def both() -> tuple[Tensor, Tensor]:
        task_loss, alignment_loss = run()
        return factor * task_loss, factor * alignment_loss

    return both
