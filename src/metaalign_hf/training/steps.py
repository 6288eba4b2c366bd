"""One training step: a coordinator over the closures of the task."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.optim import Optimizer

from ..coordination import Joint, MetaAlign
from .configuration import CoordinationConfig
from .task import Batch, StepClosures

__all__ = ["adaptation_step", "build_coordinator", "micro_batches", "source_step"]


def build_coordinator(
    config: CoordinationConfig, optimizer: Optimizer, model: nn.Module, accelerator: Accelerator
) -> Joint | MetaAlign:
    """The coordinator that the configuration names, running its backward passes through accelerate."""

    def no_sync() -> AbstractContextManager[None]:
        return accelerator.no_sync(model)

    if config.method != "metaalign":
        return Joint(optimizer, backward=accelerator.backward, no_sync=no_sync)
    return MetaAlign(
        optimizer,
        config.inner_lr,
        config.relative,
        config.first,
        config.swap_every,
        backward=accelerator.backward,
        no_sync=no_sync,
    )


def source_step(
    optimizer: Optimizer, model: nn.Module, accelerator: Accelerator, closures: list[Callable[[], Tensor]]
) -> dict[str, Tensor]:
    """Leave the gradient of the task loss alone, averaged over the micro-batches, in `.grad`."""
    optimizer.zero_grad(set_to_none=True)
    losses = []
    for index, closure in enumerate(closures):
        with nullcontext() if index == len(closures) - 1 else accelerator.no_sync(model):
            loss = closure()
            accelerator.backward(loss / len(closures))
        losses.append(loss.detach())
    return {"task_loss": torch.stack(losses).mean()}


def adaptation_step(coordinator: Joint | MetaAlign, closures: StepClosures, step: int) -> dict[str, Any]:
    """Leave the gradient of task and alignment in `.grad`.

    Args:
        coordinator: `Joint` runs the closures of both losses, `MetaAlign` the task and alignment closures.
        closures: The passes of the step.
        step: Number of the adaptation step, which decides the roles.

    Returns:
        The coordinator's report as a dict of tensors and strings.
    """
    if isinstance(coordinator, MetaAlign):
        report = coordinator.backward(closures.task, closures.alignment, step=step)
    else:
        report = coordinator.backward(both=closures.both)
    return {name: value for name, value in vars(report).items() if value is not None}


def micro_batches(stream: Iterator[Batch], count: int, device: torch.device) -> list[Batch]:
    """The next `count` micro-batches of a stream, on the device."""
    return [{key: _to(value, device) for key, value in next(stream).items()} for _ in range(count)]


def _to(value: Any, device: torch.device) -> Any:
    """Tensors on the device, also those inside the dicts and lists of a detection batch."""
    if isinstance(value, Tensor):
        return value.to(device, non_blocking=True)
    if isinstance(value, dict):
        return {key: _to(inner, device) for key, inner in value.items()}
    if isinstance(value, list):
        return [_to(inner, device) for inner in value]
    return value
