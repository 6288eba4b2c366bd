"""Entropy weighting: confident rows count more in adversarial alignment."""

from __future__ import annotations

from torch import Tensor

from .reversal import reverse_gradient

__all__ = ["entropy_weights", "prediction_entropy"]


def prediction_entropy(probabilities: Tensor, epsilon: float = 1e-5) -> Tensor:
    """`H(p) = -sum_k p_k log(p_k + epsilon)` of class probabilities `(B, K)`, as `(B,)`, in nats."""
    return -(probabilities * (probabilities + epsilon).log()).sum(1)


def entropy_weights(probabilities: Tensor, strength: float, offset: float = 0.0) -> Tensor:
    """`w = offset + exp(-H(p))`, with a reversed gradient on H; normalise them per domain.

    Args:
        probabilities: Class probabilities `(B, K)`.
        strength: Strength of the gradient reversal on the entropy.
        offset: 0 as in GVB's published code (Cui et al., CVPR 2020), 1 as in CDAN (Long et al., NeurIPS 2018, section
            3.3).

    Returns:
        Weights `(B,)`.
    """
    return offset + (-reverse_gradient(prediction_entropy(probabilities), strength)).exp()
