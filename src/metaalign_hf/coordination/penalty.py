"""The gradient of a penalty that stands in both losses, taken beside a step without a trace in it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager

from torch import Tensor, nn

from .gradients import take_gradients
from .second_order import RandomState
from .shared_prefix import SharedPrefix
from .statistics import frozen_running_statistics

__all__ = ["SharedPenalty"]


class SharedPenalty:
    """Takes the gradient of the penalty where the alignment gradient is taken, so that a report can tell them apart.

    A term that stands in the task loss and in the alignment loss makes the two gradients look alike, however much the
    rest of them disagrees. The alignment gradient less the penalty's is that of the alignment term alone. The extra
    pass sees the same parameters and random numbers as the alignment pass. Gradients, random numbers, running
    statistics and shared prefixes are left as they were, so the step is the same to the last bit.

    Args:
        closures: One per micro-batch, each runs a forward pass and returns the penalty as it stands in the alignment
            loss. Empty takes nothing.
        parameters: All parameters of the optimiser.
        backward: Runs the closures forward and backward.
        module: The model, whose running statistics stay.
        shared: The shared prefixes of the step.

    Attributes:
        gradients: The penalty's gradient after the alignment pass; None without closures.
    """

    def __init__(
        self,
        closures: Sequence[Callable[[], Tensor]],
        parameters: Sequence[Tensor],
        backward: Callable[[Sequence[Callable[[], Tensor]]], Tensor],
        module: nn.Module | None,
        shared: Sequence[SharedPrefix] = (),
    ) -> None:
        self.gradients: list[Tensor | None] | None = None
        self._closures, self._parameters, self._backward = closures, parameters, backward
        self._module, self._shared = nn.Module() if module is None else module, shared

    @contextmanager
    def beside(self, objective: str = "alignment") -> Iterator[None]:
        """A context around the pass of an objective; leaving that of the alignment takes the gradient."""
        if objective != "alignment" or not self._closures:
            yield
            return
        before = RandomState([p.device for p in self._parameters[:1]])
        yield
        kept = take_gradients(self._parameters)
        try:
            with before.again(), ExitStack() as stack:
                stack.enter_context(frozen_running_statistics(self._module))
                for prefix in self._shared:
                    stack.enter_context(prefix.aside())
                self._backward(self._closures)
            self.gradients = take_gradients(self._parameters)
        finally:
            for p, gradient in zip(self._parameters, kept, strict=True):
                p.grad = gradient
