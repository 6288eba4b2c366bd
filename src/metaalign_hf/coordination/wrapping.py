"""What the step must know of the wrapper around a model: DistributedDataParallel, FSDP2, torch.compile or none."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.nn.parallel import DistributedDataParallel

from .gradients import average_over_processes

__all__ = ["averaging_of", "finite_everywhere", "is_fsdp", "no_sync_of", "unwrapped"]


def unwrapped(module: nn.Module) -> nn.Module:
    """The bare model inside DistributedDataParallel and torch.compile."""
    return list(_layers(module))[-1]


def _layers(module: nn.Module) -> Iterator[nn.Module]:
    """The model and what is inside its wrappers, whichever of DistributedDataParallel and torch.compile is outside."""
    while True:
        yield module
        inner = module.module if isinstance(module, DistributedDataParallel) else getattr(module, "_orig_mod", module)
        if inner is module:
            return
        module = inner


def _replicas(module: nn.Module | None) -> DistributedDataParallel | None:
    """The DistributedDataParallel around a model; None where there is none."""
    layers = () if module is None else _layers(module)
    return next((layer for layer in layers if isinstance(layer, DistributedDataParallel)), None)


def is_fsdp(module: nn.Module | None) -> bool:
    """Whether `fully_shard` was applied to the model."""
    return module is not None and isinstance(unwrapped(module), FSDPModule)


def no_sync_of(module: nn.Module | None) -> Callable[[], AbstractContextManager[Any]]:
    """Makes a context in which a backward pass does not average gradients over processes."""
    if (replicas := _replicas(module)) is not None:
        return replicas.no_sync
    if module is not None and isinstance(inner := unwrapped(module), FSDPModule):
        return lambda: _unsynchronised(inner)
    return nullcontext


def averaging_of(module: nn.Module | None) -> Callable[[list[Tensor]], None] | None:
    """Averages tensors over the processes of a DistributedDataParallel model; None for any other."""
    if (replicas := _replicas(module)) is None:
        return None
    group = replicas.process_group
    return lambda tensors: average_over_processes(tensors, group)


def finite_everywhere(losses: Sequence[Tensor | None], module: nn.Module | None) -> bool:
    """Whether losses are finite numbers on all processes of a wrapped model, which each have losses of their own.

    Args:
        losses: Scalars, on all processes the same ones; None where there is none.
        module: The model as it is called; only this process counts where it is not distributed.
    """
    present = [loss.detach().float() for loss in losses if loss is not None]
    bad = (~torch.isfinite(torch.stack(present))).float().sum()
    if average := averaging_of(module):
        average([bad])
    elif is_fsdp(module):
        average_over_processes([bad])
    return not bool(bad)


@contextmanager
def _unsynchronised(module: FSDPModule) -> Iterator[None]:
    module.set_requires_gradient_sync(False)
    try:
        yield
    finally:
        module.set_requires_gradient_sync(True)
