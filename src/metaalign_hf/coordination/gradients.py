"""Arithmetic on lists of gradients, some of them missing, some of them sharded.

Under FSDP2 parameters and gradients are DTensors. Elementwise arithmetic works on the local shards; a sum over elements
is completed over the processes that hold the other shards.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer

__all__ = [
    "add_gradients",
    "average_over_processes",
    "inner_products",
    "local",
    "norm",
    "optimizer_parameters",
    "squared_norms",
    "take_gradients",
]


def optimizer_parameters(optimizer: Optimizer) -> list[Tensor]:
    """All parameters, in the order of the optimiser's groups."""
    return [p for group in optimizer.param_groups for p in group["params"]]


def take_gradients(parameters: Sequence[Tensor]) -> list[Tensor | None]:
    """Detach the gradients from their parameters; a view into a shared buffer (a DDP bucket) is copied first."""
    gradients = []
    for p in parameters:
        gradient, p.grad = p.grad, None
        if gradient is not None and not isinstance(gradient, DTensor):
            size = gradient.numel() * gradient.element_size()
            if gradient.untyped_storage().nbytes() > size:
                gradient = gradient.clone()
        gradients.append(gradient)
    return gradients


def add_gradients(parameters: Sequence[Tensor], gradients: Sequence[Tensor | None]) -> None:
    """Add the gradients to what is in `.grad`."""
    pairs = []
    for p, gradient in zip(parameters, gradients, strict=True):
        if p.grad is None:
            p.grad = gradient
        elif gradient is not None:
            pairs.append((local(p.grad), local(gradient)))
    if pairs:
        torch._foreach_add_([a for a, _ in pairs], [b for _, b in pairs])


def local(tensor: Tensor) -> Tensor:
    """This process's shard of a DTensor; any other tensor as it is."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def squared_norms(tensors: Sequence[Tensor]) -> Tensor:
    """`|x|^2` of each tensor, `(n,)`, complete on every process."""
    shards = [local(t) for t in tensors]
    return _over_shards(torch.stack(torch._foreach_norm(shards)).square(), tensors)


def inner_products(first: Sequence[Tensor], second: Sequence[Tensor]) -> Tensor:
    """`<x, y>` of each pair, `(n,)`, complete on every process."""
    pairs = zip(first, second, strict=True)
    return _over_shards(torch.stack([torch.dot(local(a).flatten(), local(b).flatten()) for a, b in pairs]), first)


def norm(gradients: Iterable[Tensor | None]) -> Tensor | None:
    """Euclidean norm of all present gradients together; None where there is none."""
    present = [g for g in gradients if g is not None]
    return squared_norms(present).sum().sqrt() if present else None


def average_over_processes(tensors: Sequence[Tensor], group: Any = None) -> None:
    """Average the tensors over the processes of a group, in place, as DistributedDataParallel does its gradients."""
    if not tensors:
        return
    world = dist.get_world_size(group)
    flat = torch.cat([t.flatten() for t in tensors])
    dist.all_reduce(flat, group=group)
    flat /= world
    for tensor, part in zip(tensors, flat.split([t.numel() for t in tensors]), strict=True):
        tensor.copy_(part.view_as(tensor))


def _over_shards(values: Tensor, tensors: Sequence[Tensor]) -> Tensor:
    """Sum per-tensor values over the processes that hold the other shards of those tensors."""
    meshes: dict[Any, list[int]] = {}
    for index, tensor in enumerate(tensors):
        if isinstance(tensor, DTensor):
            for dim, placement in enumerate(tensor.placements):
                if placement.is_shard():
                    meshes.setdefault((tensor.device_mesh, dim), []).append(index)
    for (mesh, dim), indices in meshes.items():
        part = values[indices]
        dist.all_reduce(part, group=mesh.get_group(dim))
        values = values.index_copy(0, torch.tensor(indices, device=values.device), part)
    return values
