"""One training step: a coordinator over the closures of the task."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from typing import Any

import torch
from accelerate import Accelerator, DistributedType
from torch import Tensor, nn
from torch.optim import Optimizer

from ..configuration import CoordinationConfig
from ..coordination import Joint, MetaAlign, StepReport
from ..errors import UserError
from .task import Batch, StepClosures

__all__ = ["adaptation_step", "build_coordinator", "micro_batches", "source_step"]


def build_coordinator(
    config: CoordinationConfig, optimizer: Optimizer, model: nn.Module, accelerator: Accelerator
) -> Joint | MetaAlign:
    """The coordinator that the configuration names, running its backward passes through accelerate.

    Raises:
        UserError: If a setting is out of range, or does not work with the way accelerate distributes the model.
    """
    if accelerator.distributed_type in (DistributedType.DEEPSPEED, DistributedType.MEGATRON_LM):
        raise UserError(
            f"coordination: {accelerator.distributed_type.value} keeps gradients and steps to itself, so no inner step "
            "can be taken; launch with DDP (accelerate launch --multi_gpu) or FSDP2 (--use_fsdp --fsdp_version 2)"
        )
    if accelerator.distributed_type == DistributedType.FSDP and not accelerator.is_fsdp2:
        raise UserError("coordination: FSDP 1 flattens the parameters; launch with --fsdp_version 2")
    wrapped: dict[str, Any] = {
        "smoothing": config.smoothing,
        "module": model,
        "scaler": accelerator.scaler,
        "backward": accelerator.backward,
    }
    try:
        if config.method != "metaalign":
            return Joint(optimizer, groups=config.groups, **wrapped)
        return MetaAlign(
            optimizer,
            config.inner_lr,
            config.relative,
            config.first,
            roles=config.roles,
            swap_every=config.swap_every,
            order=config.order,
            scope=config.inner_scope,
            groups=config.groups,
            rule=config.inner_rule,
            guard=config.inner_guard,
            weight_lr=config.weight_lr,
            **wrapped,
        )
    except ValueError as error:
        raise UserError(f"coordination.{error}") from error


def source_step(
    optimizer: Optimizer, model: nn.Module, accelerator: Accelerator, closures: list[Callable[[], Tensor]]
) -> StepReport:
    """Leave the gradient of the task loss alone, averaged over the micro-batches, in `.grad`.

    Raises:
        FloatingPointError: If the loss is not finite and its gradient is not scaled.
    """
    optimizer.zero_grad(set_to_none=True)
    losses = []
    for index, closure in enumerate(closures):
        with nullcontext() if index == len(closures) - 1 else accelerator.no_sync(model):
            loss = closure()
            accelerator.backward(loss / len(closures))
        losses.append(loss.detach())
    loss = torch.stack(losses).mean()
    if accelerator.scaler is None and not torch.isfinite(loss):
        raise FloatingPointError(f"the task loss is {float(loss)}")
    return StepReport("source", loss, None)


def adaptation_step(coordinator: Joint | MetaAlign, closures: StepClosures, step: int) -> StepReport:
    """Leave the gradient of task and alignment in `.grad`.

    Args:
        coordinator: `Joint` runs the closures of both losses, `MetaAlign` the task and alignment closures.
        closures: The passes of the step.
        step: Number of the adaptation step, which decides the roles.

    Returns:
        The coordinator's report.
    """
    if isinstance(coordinator, MetaAlign):
        return coordinator.backward(closures.task, closures.alignment, shared=closures.shared, step=step)
    if coordinator.smoothing > 0:
        return coordinator.backward(closures.task, closures.alignment)
    return coordinator.backward(both=closures.both)


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
