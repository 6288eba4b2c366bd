"""The gradient of a step: the passes of the task and of the target losses, through the coordinator."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn
from torch.optim import Optimizer

from ..configuration import Config
from ..coordination import AlignmentShare, StepReport
from ..errors import UserError
from ..models.base import MetaAlignModel
from ..target_losses import TargetStep, with_target_losses
from ..tasks.base import Batch, StepClosures, Task
from .steps import adaptation_step, build_coordinator

__all__ = ["StepGradient", "loss_names", "step_seed"]

_KINDS = ("loss", "gradient_norm")


class StepGradient:
    """Leaves the gradient of a step in `.grad`; the loop and `MetaAlignTrainer` share it.

    Args:
        config: The whole configuration.
        task: The task.
        model: The wrapped model.
        optimizer: As accelerate wrapped it.
        accelerator: Wrapped both.
        teacher: Gives the average of the weights; the model itself where none is kept.

    Attributes:
        coordinator: Turns task and alignment into one gradient.
        second: What the second loss of a step is, "alignment" or "target": without alignment the target losses take its
            place.

    Raises:
        UserError: If a share of the task gradient is asked for, and there is no alignment whose gradient it could be.
    """

    def __init__(
        self,
        config: Config,
        task: Task,
        model: nn.Module,
        optimizer: Optimizer,
        accelerator: Accelerator,
        teacher: Callable[[], nn.Module],
    ) -> None:
        self.task, self.model, self.teacher = task, model, teacher
        self.second = "alignment"
        self.coordinator = build_coordinator(config.coordination, optimizer, model, accelerator)
        if (share := config.coordination.alignment_share) is not None:
            if not isinstance(task.model, MetaAlignModel) or task.model.alignment is None:
                raise UserError(
                    f"coordination.alignment_share is {share}: the model has no alignment objective; drop it, or name "
                    "one in model.alignment"
                )
            self.coordinator.share = AlignmentShare(share)

    def leave(
        self, source: list[Batch], target: list[Batch], step: int, done: float
    ) -> tuple[StepReport, dict[str, Any]]:
        """Leave the gradient of a step.

        Args:
            source: Micro-batches of the source; empty ones without a source.
            target: As many of the target; none in a step on the source alone.
            step: Number of the adaptation step, which decides the roles.
            done: Progress of the adaptation in 0..1.

        Returns:
            The coordinator's report, and figures of the target losses for the log.

        Raises:
            FloatingPointError: If the gradient is not finite and not scaled.
        """
        closures, figures = self._closures(source, target, done)
        if not target:
            return self.coordinator.backward_alone(closures.task, "source"), figures
        if not self.task.pair.has_source:
            return self.coordinator.backward_alone(closures.alignment, "target"), figures
        with self._alignment_scaled(source, target, step) as told:
            return adaptation_step(self.coordinator, closures, step), {**figures, **told}

    def measured(self, report: StepReport) -> dict[str, float | str]:
        """What a step measured, as plain values (this waits for the device): target losses are called so."""
        names = loss_names(report, self.second)
        values = report.to_dict()
        values["first"] = names.get(report.first, report.first)
        called = {f"{role}_{kind}": f"{name}_{kind}" for role, name in names.items() for kind in _KINDS}
        return {called.get(key, key): value for key, value in values.items()}

    @contextmanager
    def _alignment_scaled(self, source: list[Batch], target: list[Batch], step: int) -> Iterator[dict[str, float]]:
        """A context for the passes of a step under a share of the task gradient; yields what the log says of it."""
        share = self.coordinator.share
        if share is None:
            yield {}
            return
        if share.due(step):
            passes = self.task.closures(self.model, source, target, 1.0)
            try:
                share.take(*self.coordinator.shared_norms(passes.task, passes.alignment, passes.shared))
            except ValueError as error:
                raise UserError(f"coordination.{error}; drop it") from error
        model = self.task.model
        model.alignment_scale = torch.tensor(share.scale, device=model.device)
        try:
            yield {"alignment_scale": share.scale}
        finally:
            model.alignment_scale = None

    def _closures(self, source: list[Batch], target: list[Batch], done: float) -> tuple[StepClosures, dict[str, Any]]:
        """The passes of a step, those of the target losses among them, and figures of these for the log."""
        closures = self.task.closures(self.model, source, target, done)
        if not target or not self.task.target_losses:
            return closures, {}
        task_pass = partial(self.task.target_pass, self.model)
        logits_pass = partial(self.task.logits_pass, self.model)
        self.second = "alignment" if closures.alignment else "target"
        seen = TargetStep(self.model, self.teacher(), source, target, done, task_pass, logits_pass)
        return with_target_losses(closures, self.task.target_losses, seen)


def loss_names(report: StepReport, second: str) -> dict[str, str]:
    """What the two losses of a step are called: without a source the only one is that of the target."""
    return {"task": "target" if report.first == "target" else "task", "alignment": second}


def step_seed(seed: int, step: int, rank: int) -> int:
    """A different seed for each step and process, so that dropout needs no saved random state."""
    return (seed * 1_000_003 + step) * 1_009 + rank
