"""The second-order term of the meta-gradient."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

__all__ = ["GradientGraph", "RandomState", "vector_jacobian_product"]


class RandomState:
    """The state of the random number generators at one moment, to repeat what was drawn after it."""

    def __init__(self, devices: Sequence[torch.device]) -> None:
        self._cpu = torch.get_rng_state()
        self._cuda = {d: torch.cuda.get_rng_state(d) for d in devices if d.type == "cuda"}

    @contextmanager
    def again(self) -> Iterator[None]:
        """The same numbers are drawn inside; afterwards those that would have been drawn without."""
        with torch.random.fork_rng(list(self._cuda)):
            torch.set_rng_state(self._cpu)
            for device, state in self._cuda.items():
                torch.cuda.set_rng_state(state, device)
            yield


class GradientGraph:
    """The gradient of a loss with its graph, to be differentiated once more.

    Args:
        loss: Scalar; its graph lives as long as this object.
        parameters: The parameters theta.

    Attributes:
        gradients: The gradient of each parameter, with its graph; None where the loss does not reach it.

    Raises:
        RuntimeError: If a kernel of the model has no double backward.
    """

    def __init__(self, loss: Tensor, parameters: Sequence[Tensor]) -> None:
        self._trained = [p for p in parameters if p.requires_grad]
        self._places = [index for index, p in enumerate(parameters) if p.requires_grad]
        with _explained():
            found = torch.autograd.grad(loss, self._trained, create_graph=True, allow_unused=True)
        self.gradients = self._placed(found, len(parameters))

    def vector_jacobian_product(self, vector: Sequence[Tensor | None]) -> list[Tensor | None]:
        """`J^T v` with J the Jacobian of the gradient with respect to the parameters; frees the graph.

        J is the Hessian only where the gradient is that of a scalar. With gradient reversal it is an adversarial vector
        field, J is not symmetric, and the transpose matters::

            (J^T v)_q = d/d theta_q  sum_p <g_p(theta), v_p>

        Args:
            vector: v, constant; None where it is zero.

        Returns:
            One tensor per parameter; None where the term is zero.

        Raises:
            RuntimeError: If a kernel of the model has no double backward.
        """
        pairs = [
            (g, v)
            for g, v in zip(self.gradients, vector, strict=True)
            if g is not None and v is not None and g.requires_grad
        ]
        if not pairs:
            return [None] * len(vector)
        with _explained():
            outputs, given = [g for g, _ in pairs], [v for _, v in pairs]
            found = torch.autograd.grad(outputs, self._trained, given, allow_unused=True)
        return self._placed(found, len(vector))

    def _placed(self, found: Sequence[Tensor | None], count: int) -> list[Tensor | None]:
        """One entry for every parameter from those of the trained ones."""
        full: list[Tensor | None] = [None] * count
        for index, value in zip(self._places, found, strict=True):
            full[index] = value
        return full


def vector_jacobian_product(
    losses: Sequence[Callable[[], Tensor]], parameters: Sequence[Tensor], vector: Sequence[Tensor | None]
) -> list[Tensor | None]:
    """`GradientGraph.vector_jacobian_product` for the mean of several losses, one graph at a time.

    Args:
        losses: Closures, one per micro-batch; each runs a forward pass.
        parameters: The parameters theta.
        vector: v, constant; None where it is zero.

    Returns:
        One tensor per parameter; None where the term is zero.

    Raises:
        RuntimeError: If a kernel of the model has no double backward.
    """
    total: list[Tensor | None] = [None] * len(parameters)
    for loss in losses:
        terms = GradientGraph(loss() / len(losses), parameters).vector_jacobian_product(vector)
        for index, term in enumerate(terms):
            if term is not None:
                known = total[index]
                total[index] = term if known is None else known + term
    return total


@contextmanager
def _explained() -> Iterator[None]:
    """Name the remedy where a kernel has no double backward."""
    try:
        yield
    except RuntimeError as error:
        if "derivative for" in str(error) or "does not support double" in str(error) or "twice" in str(error):
            raise RuntimeError(
                f"order 2 needs a model that can be differentiated twice, and a kernel of this one cannot "
                f"({str(error).splitlines()[0]}); for attention call model.set_attn_implementation('eager'), "
                "or use order 1"
            ) from error
        raise
