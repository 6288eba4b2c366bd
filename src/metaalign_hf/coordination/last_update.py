"""How the optimiser scales and how far it has gone."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from .gradients import local, optimizer_parameters, squared_norms

__all__ = ["UpdateLengths", "preconditioned"]


def preconditioned(optimizer: Optimizer, gradients: Sequence[Tensor | None]) -> list[Tensor | None]:
    """Gradients weight by weight as the optimiser scales them: `g / (sqrt(v) + eps)` with the second moment v of Adam.

    A gradient whose parameter has no second moment stays as it is, as all do under SGD.

    Args:
        optimizer: The optimiser, or accelerate's wrapper of it.
        gradients: One for each parameter in the order of its groups; None where there is none.
    """
    epsilons = [float(group.get("eps", 0.0)) for group in optimizer.param_groups for _ in group["params"]]
    found = []
    for p, g, eps in zip(optimizer_parameters(optimizer), gradients, epsilons, strict=True):
        moment = optimizer.state.get(p, {}).get("exp_avg_sq")
        found.append(g if g is None or moment is None else _over_root(g, moment, eps))
    return found


@torch.no_grad()
def _over_root(gradient: Tensor, moment: Tensor, eps: float) -> Tensor:
    """`g / (sqrt(v) + eps)`, bit for bit, in one new tensor.

    The root of zero, the moment of a weight that nothing has reached, takes ten times as long as another on a CPU. A
    number whose root is lost beside eps stands in its place.
    """
    known = torch.finfo(moment.dtype)
    lost = known.tiny**0.5 < eps * known.eps / 4
    found = (moment.clamp_min(known.tiny).sqrt_() if lost else moment.sqrt()).add_(eps)
    if gradient.dtype != moment.dtype:
        return gradient / found
    torch.div(local(gradient), local(found), out=local(found))
    return found


class UpdateLengths:
    """`|theta_p - theta_p before|` over the optimiser's last step, of every parameter.

    It measures around the optimiser's `step`, with a copy of the parameters that lives for the time of that step. A
    step that moves nothing, as one that a gradient scaler skips, does not count.

    Args:
        optimizer: The optimiser, or accelerate's wrapper of it.
        measured: Whether each parameter is measured, in the order of the optimiser's groups; the others have 0.
    """

    def __init__(self, optimizer: Optimizer, measured: Sequence[bool]) -> None:
        self._parameters = [p for p, kept in zip(optimizer_parameters(optimizer), measured, strict=True) if kept]
        self._places = [place for place, kept in enumerate(measured) if kept]
        self._before: list[Tensor] = []
        self._lengths: Tensor | None = None
        self._values: list[float] = [0.0] * len(measured)
        this = weakref.ref(self)  # the optimiser may outlive its coordinator

        def before(*_: Any) -> None:
            if (found := this()) is not None:
                found._copy()

        def after(*_: Any) -> None:
            if (found := this()) is not None:
                found._compare()

        inner = getattr(optimizer, "optimizer", optimizer)
        inner.register_step_pre_hook(before)
        inner.register_step_post_hook(after)

    def values(self) -> list[float]:
        """The lengths in the order of the optimiser's groups; 0 before the first step."""
        if self._lengths is not None:
            # Only here: it waits for the device.
            found, self._lengths = self._lengths.tolist(), None
            if any(found):
                for place, length in zip(self._places, found, strict=True):
                    self._values[place] = length
        return list(self._values)

    def load(self, values: Sequence[float]) -> None:
        """Put back what `values` gave.

        Raises:
            ValueError: If they are of another number of parameters.
        """
        if len(values) != len(self._values):
            raise ValueError(f"lengths of {len(values)} parameters were kept, the optimiser has {len(self._values)}")
        self._lengths, self._values = None, list(values)

    @torch.no_grad()
    def _copy(self) -> None:
        self.values()  # so that a step that moves nothing finds those of the step before
        self._before = [p.detach().clone() for p in self._parameters]

    @torch.no_grad()
    def _compare(self) -> None:
        torch._foreach_sub_([local(b) for b in self._before], [local(p.detach()) for p in self._parameters])
        self._lengths = squared_norms(self._before).sqrt() if self._before else None
        self._before = []
