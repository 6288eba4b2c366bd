"""Whether a classifier is right as often as it says."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Reliability", "reliability"]


@dataclass(frozen=True)
class Reliability:
    """Confidence and accuracy in bins of equal width.

    Attributes:
        edges: Edges of the bins, `(B + 1,)`, from 0 to 1.
        confidence: Mean confidence in each bin, `(B,)`; NaN in an empty one.
        accuracy: Share of right answers in each bin, `(B,)`; NaN in an empty one.
        counts: Images in each bin, `(B,)`.
        error: Expected calibration error, in 0..1.
    """

    edges: Tensor
    confidence: Tensor
    accuracy: Tensor
    counts: Tensor
    error: float


def reliability(confidence: Tensor, right: Tensor, bins: int = 15) -> Reliability:
    """The reliability diagram and the expected calibration error.

    `ECE = sum_b n_b / n |accuracy_b - confidence_b|` over bins of equal width.

    Args:
        confidence: Probability of the predicted class, `(N,)`.
        right: Whether it is right, `(N,)`, bool.
        bins: Number of bins.

    Source: Guo et al., "On Calibration of Modern Neural Networks", ICML 2017, section 2.
    """
    confidence, hits = confidence.double(), right.double()
    place = (confidence * bins).long().clamp(0, bins - 1)
    counts = torch.bincount(place, minlength=bins)
    mean = torch.zeros(bins, dtype=torch.double).index_add_(0, place, confidence) / counts
    share = torch.zeros(bins, dtype=torch.double).index_add_(0, place, hits) / counts
    gaps = (share - mean).abs().nan_to_num()
    error = float((counts * gaps).sum() / counts.sum().clamp_min(1))
    return Reliability(torch.linspace(0, 1, bins + 1), mean, share, counts, error)
