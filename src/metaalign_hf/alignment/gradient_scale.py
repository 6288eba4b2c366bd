"""A factor on the gradient that an alignment objective sends into the network."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["scale_gradient"]


class _ScaleGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, x: Tensor, scale: Tensor) -> Tensor:
        ctx.save_for_backward(scale)
        return x.view_as(x)

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, *gradients: Tensor) -> tuple[Tensor, None]:
        (scale,) = ctx.saved_tensors  # type: ignore[attr-defined]
        return gradients[0] * scale.to(gradients[0].dtype), None


def scale_gradient(x: Tensor, scale: Tensor) -> Tensor:
    """The identity, whose gradient is multiplied by `scale`; can be differentiated twice.

    Args:
        x: Any tensor.
        scale: The factor, scalar. A tensor, so that a compiled model is not compiled anew for each value.
    """
    return _ScaleGradient.apply(x, scale)
