"""The second-order term of the meta-gradient."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

__all__ = ["RandomState", "vector_jacobian_product"]


class RandomState:
    """The state of the random number generators at one moment, to repeat what was drawn after it."""

    def __init__(self, devices: Sequence[torch.device]) -> None:
        self._cpu = torch.get_rng_state()
        self._cuda = {d: torch.cuda.get_rng_state(d) for d in devices if d.type == "cuda"}

    def restore(self) -> None:
        """Go back to that moment."""
        torch.set_rng_state(self._cpu)
        for device, state in self._cuda.items():
            torch.cuda.set_rng_state(state, device)


def vector_jacobian_product(
    losses: Sequence[Callable[[], Tensor]], parameters: Sequence[Tensor], vector: Sequence[Tensor | None]
) -> list[Tensor | None]:
    """`J^T v` with J the Jacobian of the gradient of `mean(losses)` with respect to the parameters.

    J is the Hessian only where that gradient is the gradient of a scalar. With gradient reversal it is an adversarial
    vector field, J is not symmetric, and the transpose matters::

        (J^T v)_q = d/d theta_q  sum_p <g_p(theta), v_p>

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
    moved = [(p, v) for p, v in zip(parameters, vector, strict=True) if v is not None]
    if not moved:
        return total
    for loss in losses:
        try:
            gradients = torch.autograd.grad(
                loss() / len(losses), [p for p, _ in moved], create_graph=True, allow_unused=True
            )
            products = [(g * v).sum() for g, (_, v) in zip(gradients, moved, strict=True) if g is not None]
            products = [product for product in products if product.requires_grad]
            if not products:
                continue
            terms = torch.autograd.grad(torch.stack(products).sum(), list(parameters), allow_unused=True)
        except RuntimeError as error:
            if "derivative for" in str(error) or "does not support double" in str(error) or "twice" in str(error):
                raise RuntimeError(
                    f"order 2 needs a model that can be differentiated twice, and a kernel of this one cannot "
                    f"({str(error).splitlines()[0]}); for attention call model.set_attn_implementation('eager'), "
                    "or use order 1"
                ) from error
            raise
        for index, term in enumerate(terms):
            if term is not None:
                known = total[index]
                total[index] = term if known is None else known + term
    return total
