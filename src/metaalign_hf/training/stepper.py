"""The steps of a run, one after the other: data, closures, gradient, optimiser."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from accelerate import Accelerator
from torch.optim import Optimizer

from ..configuration import Config
from ..coordination import StepReport
from ..errors import UserError
from ..tasks.base import Batch, Task
from .bad_steps import BadStep, BufferCopies, not_finite
from .gradient import StepGradient, loss_names, step_seed
from .machine import Agreement
from .optimizers import build_optimizer, parameter_groups, set_learning_rate
from .schedules import learning_rate_factor, progress
from .steps import micro_batches
from .weights import Weights, average_decay

__all__ = ["Stepper", "build_stepper"]


class Stepper:
    """Takes the steps of both phases. What a step does depends on its number alone, and on the weights.

    Args:
        config: The whole configuration.
        task: The task.
        weights: The model.
        optimizer: As accelerate wrapped it.
        agreement: Makes all processes skip a step that one of them cannot take.

    Attributes:
        coordinator: Turns task and alignment into one gradient.
        started: When the last step had its images, by `time.perf_counter`.
        waited: Seconds that it waited for them.
    """

    def __init__(
        self, config: Config, task: Task, weights: Weights, optimizer: Optimizer, agreement: Agreement
    ) -> None:
        self.config, self.task, self.weights, self.optimizer = config, task, weights, optimizer
        self.agreement = agreement
        self._buffers: BufferCopies | None = None
        self.model, self.accelerator = weights.model, weights.accelerator
        self.gradient = StepGradient(
            config, task, self.model, optimizer, self.accelerator, teacher=lambda: weights.evaluated
        )
        self.coordinator = self.gradient.coordinator
        self.started = self.waited = 0.0

    @property
    def aligns(self) -> bool:
        """Whether the adaptation phase reads the target."""
        return self.config.coordination.method != "source_only"

    def open_streams(self, step: int) -> None:
        """Go on with the images of this step."""
        training = self.config.training
        k = training.gradient_accumulation_steps
        self.source, self.target = self._streams(k * step, k * max(0, step - training.source_steps))

    def _streams(self, source_batch: int, target_batch: int) -> tuple[Iterator[Batch], Iterator[Batch]]:
        place = self.accelerator.process_index, self.accelerator.num_processes
        return self.task.streams(source_batch, target_batch, *place)

    def probe(self) -> None:
        """Find out before the first step whether the model can do what the coordination asks of it.

        Raises:
            UserError: If it cannot.
        """
        if self.config.coordination.order == 1:
            return
        source, target = (micro_batches(stream, 1, self.accelerator.device) for stream in self._streams(0, 0))
        self.task.statistics.train_mode(self.model)
        closures = self.task.closures(self.model, source, target, 0.5)
        if not closures.alignment:
            closures = replace(closures, alignment=closures.task)
        try:
            self.coordinator.probe(closures.task, closures.alignment)
        except RuntimeError as error:
            raise UserError(f"coordination.order: {error} (in a configuration: model.attention: eager)") from error

    def resume(self, step: int) -> None:
        """Make ready what the checkpoint of this step has tensors for."""
        if step > self.config.training.source_steps and self.aligns:
            self.task.statistics.begin_adaptation()

    def take(self, step: int, adapting: bool) -> tuple[StepReport, dict[str, Any]] | BadStep:
        """Take a step, or leave everything as it was before it.

        Args:
            step: Steps taken so far, over both phases.
            adapting: Whether in the adaptation phase.

        Returns:
            The coordinator's report, and figures for the log, `lr` among them; or where a loss or a gradient was not
            finite, the step that was not taken.
        """
        training, settings = self.config.training, self.config.optimizer
        k, device = training.gradient_accumulation_steps, self.accelerator.device
        first, total = (training.source_steps, training.max_steps) if adapting else (0, training.source_steps)
        local = step - first
        if local == 0:
            # Each phase starts with a fresh optimiser: the source phase's momentum knows nothing of alignment.
            self.optimizer.state.clear()
        factor = learning_rate_factor(settings.schedule, local, total, settings.warmup_steps)
        set_learning_rate(self.optimizer, factor)
        asked = time.perf_counter()
        source = micro_batches(self.source, k, device)
        target = micro_batches(self.target, k, device) if adapting and self.aligns else []
        self.started = time.perf_counter()
        self.waited = self.started - asked
        torch.manual_seed(step_seed(training.seed, step, self.accelerator.process_index))
        if target and local == 0:
            self.task.statistics.begin_adaptation()
        self.task.statistics.train_mode(self.model)
        if self._buffers is None or local == 0:
            self._buffers = BufferCopies([self.weights.bare, *self.task.statistics.modules().values()])
        self._buffers.take()
        done, reason = progress(local, total), None
        try:
            report, figures = self.gradient.leave(source, target, local, done)
            if self.accelerator.scaler is None:
                reason = not_finite(report, loss_names(report, self.gradient.second))
        except FloatingPointError as error:
            reason = str(error)
        except Exception:
            self._buffers.put_back()  # what the run saves before it ends
            raise
        if self.agreement.highest(int(reason is not None))[0]:
            self._buffers.put_back()
            self.optimizer.zero_grad(set_to_none=True)
            rates = [float(group["lr"]) for group in self.optimizer.param_groups]
            images = {name: [i for batch in batches for i in batch] for name, batches in self.task.drawn.items()}
            if not target:
                images.pop("target", None)
            return BadStep(reason or "a loss of another process is not finite", rates, images)
        if training.max_grad_norm is not None:
            norm = self.accelerator.clip_grad_norm_(self.model.parameters(), training.max_grad_norm)
            figures["gradient_norm"] = norm
        self.optimizer.step()
        self.weights.update_average(step + 1)
        return report, {"lr": settings.lr * factor, **figures}


def build_stepper(config: Config, task: Task, accelerator: Accelerator) -> Stepper:
    """Wrap a task's model and its optimiser, and make what takes its steps.

    Args:
        config: The whole configuration.
        task: The task.
        accelerator: Wraps both.
    """
    bare = task.model
    if config.training.gradient_checkpointing:
        bare.gradient_checkpointing_enable()
    optimizer = build_optimizer(parameter_groups(bare.parameter_roles(), config.optimizer), config.optimizer)
    model, prepared = accelerator.prepare(bare, optimizer)
    weights = Weights(model, task.processor, accelerator, average_decay(config.training, task.target_losses))
    return Stepper(config, task, weights, prepared, Agreement(accelerator))
