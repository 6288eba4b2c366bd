"""One training step: a coordinator over the closures of the task."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import torch
from accelerate import Accelerator, DistributedType
from torch import Tensor, nn
from torch.optim import Optimizer

from ..configuration import CoordinationConfig
from ..coordination import Coordinator, DoublyPerturbed, Game, Joint, MetaAlign, RememberedMetaAlign, StepReport
from ..errors import UserError
from ..tasks.base import Batch, StepClosures

__all__ = ["adaptation_step", "build_coordinator", "micro_batches"]

_PENALTY_EVERY = 60
"""Steps between two that tell a penalty of both losses apart. One costs about two thirds of a step more, so all of them
raise the cost of a run by about one percent."""


def build_coordinator(
    config: CoordinationConfig, optimizer: Optimizer, model: nn.Module, accelerator: Accelerator
) -> Coordinator:
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
    common: dict[str, Any] = {"module": model, "scaler": accelerator.scaler, "backward": accelerator.backward}
    try:
        return _COORDINATORS[config.method](config, optimizer, common)
    except ValueError as error:
        raise UserError(f"coordination.{error}") from error


def _joint(config: CoordinationConfig, optimizer: Optimizer, common: dict[str, Any]) -> Coordinator:
    return Joint(optimizer, groups=config.groups, smoothing=config.smoothing, **common)


def _metaalign(config: CoordinationConfig, optimizer: Optimizer, common: dict[str, Any]) -> Coordinator:
    common = {**common, "roles": config.roles, "first": config.first, "swap_every": config.swap_every}
    if config.direction == "fresh":
        return MetaAlign(
            optimizer,
            order=config.order,
            groups=config.groups,
            weight_lr=config.weight_lr,
            smoothing=config.smoothing,
            **_inner(config),
            **common,
        )
    inner = _inner(config)
    return RememberedMetaAlign(
        optimizer, remember=config.remember, refresh_every=config.refresh_every, **inner, **common
    )


def _game(config: CoordinationConfig, optimizer: Optimizer, common: dict[str, Any]) -> Coordinator:
    return Game(optimizer, solver=config.method, **_inner(config), **common)


def _pga(config: CoordinationConfig, optimizer: Optimizer, common: dict[str, Any]) -> Coordinator:
    inner = _inner(config)
    return DoublyPerturbed(optimizer, ascent=inner["inner_lr"], **inner, **common)


def _inner(config: CoordinationConfig) -> dict[str, Any]:
    """The inner step, as coordinators take it."""
    rule, size = config.inner_step
    return {"inner_lr": size, "rule": rule, "relative": config.relative, "scope": config.inner_scope}


_COORDINATORS: dict[str, Callable[[CoordinationConfig, Optimizer, dict[str, Any]], Coordinator]] = {
    "joint": _joint,
    "source_only": _joint,
    "target_only": _joint,
    "metaalign": _metaalign,
    "extragradient": _game,
    "heun": _game,
    "pga": _pga,
}


def adaptation_step(coordinator: Coordinator, closures: StepClosures, step: int) -> StepReport:
    """Leave the gradient of task and alignment in `.grad`.

    Args:
        coordinator: Runs those closures that it needs.
        closures: The passes of the step.
        step: Number of the adaptation step, which decides the roles.

    Returns:
        The coordinator's report. Where a penalty stands in both losses, only those steps report a cosine that tell the
        penalty apart.
    """
    measured = bool(closures.penalty) and _tells_penalty_apart(step)
    report = coordinator.backward(
        closures.task,
        closures.alignment,
        both=closures.both,
        shared=closures.shared,
        penalty=closures.penalty if measured else (),
        step=step,
    )
    if closures.penalty and not measured:
        return replace(report, cosine=None, group_cosines=None)
    return report


def _tells_penalty_apart(step: int) -> bool:
    """Steps 1, 60, 121, 180 and so on: both roles of a schedule that swaps every step have their turn.

    In step 0 gradient reversal has no strength yet, so that there is no gradient of the alignment term to compare.
    """
    block, place = divmod(step, _PENALTY_EVERY)
    return place == (block + 1) % 2


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
