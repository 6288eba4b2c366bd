"""What the optimiser's last step has changed."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from .gradient_memory import GradientMemory
from .gradients import local, optimizer_parameters, squared_norms

__all__ = ["UpdateLengths", "remember_updates"]


def watch_steps(optimizer: Optimizer, owner: Any, before: Callable[[Any], None], after: Callable[[Any], None]) -> None:
    """Call `before(owner)` and `after(owner)` around every step of the optimiser for as long as the owner lives.

    Args:
        optimizer: The optimiser, or accelerate's wrapper of it.
        owner: Its lifetime ends the watch: the optimiser may outlive it.
        before: Called before the parameters change.
        after: Called when they have.
    """
    this = weakref.ref(owner)

    def call(function: Callable[[Any], None]) -> Callable[..., None]:
        def hook(*_: Any) -> None:
            if (found := this()) is not None:
                function(found)

        return hook

    inner = getattr(optimizer, "optimizer", optimizer)
    inner.register_step_pre_hook(call(before))
    inner.register_step_post_hook(call(after))


def remember_updates(optimizer: Optimizer, memory: GradientMemory) -> None:
    """Keep `theta_p before - theta_p after` of the optimiser's last step in the memory of every parameter.

    Its sign is a gradient's, so that a step along it leads further the way that the optimiser has gone.
    """
    parameters = optimizer_parameters(optimizer)

    @torch.no_grad()
    def before(memory: GradientMemory) -> None:
        memory.keep([p.detach() for p in parameters])

    @torch.no_grad()
    def after(memory: GradientMemory) -> None:
        pairs = [(b, p) for b, p in zip(memory.gradients(), parameters, strict=True) if b is not None]
        torch._foreach_sub_([local(b) for b, _ in pairs], [local(p.detach()) for _, p in pairs])

    watch_steps(optimizer, memory, before, after)


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
        watch_steps(optimizer, self, UpdateLengths._copy, UpdateLengths._compare)

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
