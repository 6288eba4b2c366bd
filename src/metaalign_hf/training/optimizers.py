"""Parameter groups and the optimiser."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from ..configuration import OptimizerConfig

__all__ = ["build_optimizer", "parameter_groups", "set_learning_rate"]


def parameter_groups(roles: dict[str, dict[str, nn.Parameter]], config: OptimizerConfig) -> list[dict[str, Any]]:
    """Optimiser groups by role: the backbone at `lr`, head and discriminator at their multiples of it.

    Args:
        roles: Named parameters by role, as `parameter_roles` of the models returns them.
        config: The optimiser's settings.

    Returns:
        Groups with `name`, `base_lr` (before the schedule) and, for discriminators, `inner_lr_multiplier`.
    """
    multipliers = {"head": config.head_multiplier, "discriminator": config.discriminator_multiplier}
    groups = []
    for role, named in roles.items():
        base = config.lr * multipliers.get(role, 1.0)
        inner = config.discriminator_inner_multiplier if role == "discriminator" else 1.0
        spared = {name for name, p in named.items() if config.name == "adamw" and p.ndim <= 1}
        for suffix, decay in (("", config.weight_decay), ("/no_decay", 0.0)):
            parameters = [p for name, p in named.items() if (name in spared) == bool(suffix)]
            if parameters:
                groups.append(
                    {
                        "name": role + suffix,
                        "params": parameters,
                        "lr": base,
                        "base_lr": base,
                        "weight_decay": decay,
                        "inner_lr_multiplier": inner,
                    }
                )
    return groups


def build_optimizer(groups: list[dict[str, Any]], config: OptimizerConfig) -> Optimizer:
    """The optimiser over the groups."""
    if config.name == "sgd":
        return torch.optim.SGD(groups, lr=config.lr, momentum=0.9, nesterov=True)
    return torch.optim.AdamW(groups, lr=config.lr)


def set_learning_rate(optimizer: Optimizer, factor: float) -> None:
    """Set every group's learning rate to `base_lr * factor`."""
    for group in optimizer.param_groups:
        group["lr"] = group["base_lr"] * factor
