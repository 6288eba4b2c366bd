"""How far apart the features of two domains are."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["fit_linear", "proxy_a_distance"]


def fit_linear(
    features: Tensor, labels: Tensor, classes: int, decay: float = 0.01, class_weights: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """A multinomial logistic regression, `mean cross entropy + decay / 2 |W|^2`, fitted by L-BFGS.

    Args:
        features: `(n, d)`.
        labels: `(n,)`, 0..classes-1.
        classes: Number of classes.
        decay: Strength of the penalty.
        class_weights: What a row of each class counts in the mean, `(classes,)`; None counts all alike.

    Returns:
        Weights `(classes, d)` and biases `(classes,)`.
    """
    weight = torch.zeros(classes, features.shape[1], requires_grad=True)
    bias = torch.zeros(classes, requires_grad=True)
    optimizer = torch.optim.LBFGS([weight, bias], max_iter=100, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        entropy = F.cross_entropy(features @ weight.T + bias, labels, class_weights)
        value = entropy + 0.5 * decay * weight.square().sum()
        value.backward()
        return value

    optimizer.step(loss)
    return weight.detach(), bias.detach()


def proxy_a_distance(source: Tensor, target: Tensor) -> tuple[float, float]:
    """The proxy A-distance, `2 (1 - 2 e)`, with e the error of a linear classifier that tells the domains apart.

    It is 0 where the classifier is wrong for half of the images, and 2 where it is never wrong. Each half of the images
    is held out once; the error is that on held-out images, both domains counted alike, and at most 1/2. Source:
    Ben-David et al., "Analysis of Representations for Domain Adaptation", NeurIPS 2006, section 4.

    Args:
        source: Features `(n, d)`.
        target: Features `(m, d)`.

    Returns:
        The distance, 0..2, and the share of images `1 - e` whose domain was told.
    """
    right: list[list[float]] = [[], []]
    orders = [np.random.default_rng([1, i]).permutation(len(x)) for i, x in enumerate((source, target))]
    for half in (0, 1):
        held = [order[half::2] for order in orders]
        kept = [order[1 - half :: 2] for order in orders]
        train = torch.cat([source[kept[0]], target[kept[1]]])
        counts = [len(rows) for rows in kept]
        labels = torch.tensor([0] * counts[0] + [1] * counts[1])
        balance = torch.tensor([len(train) / (2 * count) for count in counts])
        middle, scale = train.mean(0), train.std(0).clamp_min(1e-6)
        weight, bias = fit_linear((train - middle) / scale, labels, 2, class_weights=balance)
        for domain, features in enumerate((source[held[0]], target[held[1]])):
            said = ((features - middle) / scale @ weight.T + bias).argmax(1)
            right[domain] += (said == domain).float().tolist()
    share = max(0.5, float(np.mean([np.mean(found) for found in right])))
    return 2 * (1 - 2 * (1 - share)), share
