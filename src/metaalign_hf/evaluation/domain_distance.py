"""How far apart the features of two domains are."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["proxy_a_distance"]


def proxy_a_distance(source: Tensor, target: Tensor, ridge: float = 1e-2, folds: int = 2) -> float:
    """The proxy A-distance, `2 (1 - 2 error)`, of a linear classifier that tells the domains apart.

    It is 0 where the classifier is wrong for half of the images, and 2 where it is never wrong. The error is the mean
    over both domains, of images that the classifier was not fitted to, in turns. Negative values count as 0.

    Args:
        source: Features `(N, D)`.
        target: Features `(M, D)`.
        ridge: Weight of the squared norm in the logistic regression, on standardised features.
        folds: How many parts the images are divided into.

    Source: Ben-David et al., "Analysis of Representations for Domain Adaptation", NeurIPS 2006, section 4.
    """
    features = torch.cat([source, target]).double()
    features = (features - features.mean(0)) / features.std(0).clamp_min(1e-9)
    domains = torch.cat([torch.zeros(len(source)), torch.ones(len(target))]).double()
    part = torch.cat([torch.arange(len(source)) % folds, torch.arange(len(target)) % folds])
    errors = []
    for fold in range(folds):
        fit, held = part != fold, part == fold
        weights = _logistic(features[fit], domains[fit], ridge)
        wrong = ((_with_one(features[held]) @ weights > 0).double() - domains[held]).abs()
        errors += [float(wrong[domains[held] == domain].mean()) for domain in (0, 1)]
    return max(0.0, 2 * (1 - 2 * sum(errors) / len(errors)))


def _with_one(features: Tensor) -> Tensor:
    return torch.cat([features, features.new_ones(len(features), 1)], 1)


def _logistic(features: Tensor, labels: Tensor, ridge: float, steps: int = 20) -> Tensor:
    """Weights of a ridge logistic regression, both classes weighed alike, by Newton's method."""
    inputs = _with_one(features)
    balance = torch.where(labels == 1, 0.5 / labels.mean(), 0.5 / (1 - labels.mean())) / len(labels)
    penalty = torch.full((inputs.shape[1],), ridge, dtype=torch.double)
    penalty[-1] = 1e-6
    weights = inputs.new_zeros(inputs.shape[1])
    for _ in range(steps):
        share = torch.sigmoid(inputs @ weights)
        gradient = inputs.T @ (balance * (share - labels)) + penalty * weights
        curvature = (inputs.T * (balance * share * (1 - share))) @ inputs + torch.diag(penalty)
        move = torch.linalg.solve(curvature, gradient)
        weights = weights - move
        if float(move.norm()) < 1e-8:
            break
    return weights
