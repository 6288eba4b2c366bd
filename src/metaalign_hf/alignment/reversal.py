"""Gradient reversal, whose strength is a pure function of training progress."""

from __future__ import annotations

import math

import torch
from torch import Tensor

__all__ = ["reversal_strength", "reverse_gradient", "reversed_at_features"]


class _ReverseGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, x: Tensor, strength: float) -> Tensor:
        ctx.strength = strength  # type: ignore[attr-defined]
        return x.view_as(x)

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0] * -ctx.strength, None  # type: ignore[attr-defined]


def reverse_gradient(x: Tensor, strength: float) -> Tensor:
    """The identity, whose gradient is multiplied by `-strength`; can be differentiated twice.

    Args:
        x: Any tensor.
        strength: 0 stops the gradient, 1 reverses it.

    Source: Ganin et al., "Domain-Adversarial Training of Neural Networks", JMLR 2016, section 4.2.
    """
    return _ReverseGradient.apply(x, strength)


def reversed_at_features(logits: Tensor, features: Tensor, weight: Tensor, strength: float) -> Tensor:
    """The logits themselves, bit for bit, whose gradient is as it is at the classifier, and reversed at the features.

    Args:
        logits: `(B, K)`, of a linear classifier.
        features: `(B, D)`, which it was given.
        weight: `(K, D)`, its weight.
        strength: As `reverse_gradient` takes it.
    """
    return logits + (reverse_gradient(features, strength) - features) @ weight.T


def reversal_strength(progress: float, ceiling: float = 1.0, steepness: float = 10.0) -> float:
    """`ceiling * (2 / (1 + exp(-steepness * progress)) - 1)`: 0 at the start, nearly `ceiling` at the end.

    Args:
        progress: Training progress in 0..1. A function of progress and not of a hidden counter: a short run warms up as
            fully as a long one, and resuming has nothing to restore.
        ceiling: The limit.
        steepness: How fast it rises.

    Source: Ganin et al., JMLR 2016, section 5.2.2.
    """
    return ceiling * (2.0 / (1.0 + math.exp(-steepness * progress)) - 1.0)
