"""Learned weights of the inner step, one per group of parameters."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .stages import find_stages

__all__ = ["GroupWeights", "resolve_groups"]

Groups = str | Callable[[str], str] | Sequence[Sequence[Tensor]]


class GroupWeights:
    """One weight w_g per group on the inner step, with mean 1.

    With a free number v_g per group and G groups::

        w_g = G softmax(v)_g
        theta'_p = theta_p - alpha_p w_g grad L_train,p          for p in group g

    The weights follow the meta-test loss, whose gradient needs no pass of its own::

        d L_test(theta') / d w_g = -sum_{p in g} alpha_p <g_train,p, g_test,p(theta')>
        v <- v - lr dL_test/dv,      dL_test/dv_j = w_j (dL_test/dw_j - sum_g w_g dL_test/dw_g / G)

    Source: the comments of the published code of MetaAlign (Wei et al., CVPR 2021), which has one free scalar per
    ResNet stage, drawn from N(0, 1) and not normalised. The softmax, which keeps the mean at 1 so that the weights
    cannot replace the inner step size, and the start at w = 1 are our choice.

    Args:
        names: Names of the groups.
        lr: Step size of v.
        device: Device of the weights.
    """

    def __init__(self, names: Sequence[str], lr: float, device: torch.device) -> None:
        self.names = tuple(names)
        self.lr = lr
        self.logits = torch.zeros(len(self.names), dtype=torch.float64, device=device)

    def weights(self) -> Tensor:
        """The weights w, `(G,)`, float64."""
        return len(self.names) * self.logits.softmax(0)

    def update(self, slopes: Tensor) -> None:
        """One step on v.

        Args:
            slopes: `dL_test/dw`, `(G,)`. Where it is not finite (an overflow), nothing happens.
        """
        slopes = slopes.double()
        weights = self.weights()
        gradient = weights * (slopes - (weights * slopes).mean())
        self.logits -= self.lr * torch.nan_to_num(gradient, nan=0.0, posinf=0.0, neginf=0.0)

    def state_dict(self) -> dict[str, Any]:
        """The state as JSON values."""
        return {"names": list(self.names), "logits": self.logits.tolist()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Put back what `state_dict` gave.

        Raises:
            ValueError: If it is of other groups.
        """
        if tuple(state["names"]) != self.names:
            raise ValueError(f"the saved weights are of the groups {state['names']}, not {list(self.names)}")
        self.logits = torch.tensor(state["logits"], dtype=torch.float64, device=self.logits.device)


def resolve_groups(
    groups: Groups, parameters: Sequence[Tensor], module: nn.Module | None
) -> tuple[list[str], list[int]]:
    """Names of the groups, and the group of each parameter.

    Args:
        groups: `none`, `stage`, a function from a parameter's name to its group's name, or lists of parameters.
        parameters: All parameters of the optimiser.
        module: The bare model, for the names.

    Returns:
        The names (empty for `none`), and one index per parameter.

    Raises:
        ValueError: If groups is something else, or a parameter has no group.
    """
    if isinstance(groups, str):
        if groups == "none":
            return [], [0] * len(parameters)
        if groups != "stage":
            raise ValueError(
                f"groups is {groups!r}: it must be none, stage, a function of the parameter's name, or lists of "
                "parameters"
            )
        by_name = {name: stage.name for stage in find_stages(_required(module)) for name in stage.parameters}
        return _named(by_name, parameters, module)
    if callable(groups):
        names = [name for name, _ in _required(module).named_parameters()]
        return _named({name: groups(name) for name in names}, parameters, module)
    place = {id(p): index for index, group in enumerate(groups) for p in group}
    if any(id(p) not in place for p in parameters):
        raise ValueError("groups: a parameter of the optimiser is in none of the lists")
    return [f"group{index}" for index in range(len(groups))], [place[id(p)] for p in parameters]


def _named(
    group_of: dict[str, str], parameters: Sequence[Tensor], module: nn.Module | None
) -> tuple[list[str], list[int]]:
    by_id = {id(p): group_of[name] for name, p in _required(module).named_parameters()}
    missing = [p for p in parameters if id(p) not in by_id]
    if missing:
        raise ValueError("groups: a parameter of the optimiser is not in the module")
    found = [by_id[id(p)] for p in parameters]
    names = list(dict.fromkeys(name for name in group_of.values() if name in found))
    return names, [names.index(name) for name in found]


def _required(module: nn.Module | None) -> nn.Module:
    if module is None:
        raise ValueError("groups and scope by name need the model: give module=")
    return module
