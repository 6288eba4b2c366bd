"""One training step: the closures that the coordinators run."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.optim import Optimizer

from ..coordination import Joint, MetaAlign, frozen_running_statistics
from ..models import IGNORED_LABEL
from .configuration import CoordinationConfig

__all__ = ["Batch", "adaptation_step", "build_coordinator", "micro_batches", "mix", "source_step"]

Batch = dict[str, Tensor]


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


def mix(source: Batch, target: Batch) -> Batch:
    """Source and target in one batch: the target's rows carry label -100 and domain label 1."""
    count_s, count_t = len(source["pixel_values"]), len(target["pixel_values"])
    device = source["pixel_values"].device
    return {
        "pixel_values": torch.cat([source["pixel_values"], target["pixel_values"]]),
        "labels": torch.cat([source["labels"], source["labels"].new_full((count_t,), IGNORED_LABEL)]),
        "domain_labels": torch.cat([torch.zeros(count_s), torch.ones(count_t)]).to(device, torch.long),
    }


def source_step(
    optimizer: Optimizer, model: nn.Module, accelerator: Accelerator, source: list[Batch]
) -> dict[str, Tensor]:
    """Leave the gradient of the task loss alone, averaged over the micro-batches, in `.grad`."""
    optimizer.zero_grad(set_to_none=True)
    losses = []
    for index, batch in enumerate(source):
        with nullcontext() if index == len(source) - 1 else accelerator.no_sync(model):
            loss = model(**batch, objective="task").task_loss
            accelerator.backward(loss / len(source))
        losses.append(loss.detach())
    return {"task_loss": torch.stack(losses).mean()}


def adaptation_step(
    coordinator: Joint | MetaAlign,
    model: nn.Module,
    source: list[Batch],
    target: list[Batch],
    progress: float,
    step: int,
    mixed_statistics: bool,
) -> dict[str, Any]:
    """Leave the gradient of task and alignment in `.grad`.

    Args:
        coordinator: `Joint` runs one forward on the concatenated batch, `MetaAlign` a task pass on the source and an
            alignment pass on both domains.
        model: The (wrapped) model.
        source: Micro-batches with labels.
        target: Micro-batches without.
        progress: Progress of the adaptation in 0..1.
        step: Number of the adaptation step, which decides the roles.
        mixed_statistics: Whether only the pass on both domains moves the running statistics.

    Returns:
        The coordinator's report as a dict of tensors and strings.
    """
    mixed = [mix(s, t) for s, t in zip(source, target, strict=True)]

    def both(batch: Batch) -> Callable[[], tuple[Tensor, Tensor]]:
        def run() -> tuple[Tensor, Tensor]:
            output = model(**batch, progress=progress)
            return output.task_loss, output.alignment_loss

        return run

    def task(batch: Batch) -> Callable[[], Tensor]:
        def run() -> Tensor:
            with frozen_running_statistics(model) if mixed_statistics else nullcontext():
                return model(**batch, objective="task").task_loss

        return run

    def alignment(batch: Batch) -> Callable[[], Tensor]:
        return lambda: model(**batch, progress=progress, objective="alignment").alignment_loss

    if isinstance(coordinator, MetaAlign):
        report = coordinator.backward([task(b) for b in source], [alignment(b) for b in mixed], step=step)
    else:
        report = coordinator.backward(both=[both(b) for b in mixed])
    return {name: value for name, value in vars(report).items() if value is not None}


def micro_batches(stream: Iterator[Batch], count: int, device: torch.device) -> list[Batch]:
    """The next `count` micro-batches of a stream, on the device."""
    return [{k: v.to(device, non_blocking=True) for k, v in next(stream).items()} for _ in range(count)]
