"""From which confidence on a pseudo-label of a class is accepted."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

__all__ = ["THRESHOLDS", "Adaptive", "ClassBalanced", "Fixed", "Thresholds"]

_MOMENTUM = 0.99


class Thresholds:
    """One threshold for each class.

    Args:
        threshold: The least confidence of an accepted label, in 0..1; where thresholds move, the highest they may be.
        num_labels: Number K of classes.
    """

    learns = True

    def __init__(self, threshold: float, num_labels: int) -> None:
        self.threshold, self.num_labels = threshold, num_labels
        # Doubles: JSON keeps every bit of them.
        self.average: Tensor | None = None
        self.updates = 0

    def measured(self, probabilities: Tensor) -> Tensor:
        """What of the teacher's probabilities `(N, K)` is averaged over rows, as `(N, ...)`."""
        raise NotImplementedError

    def of_average(self, average: Tensor) -> Tensor:
        """The thresholds `(K,)` for this moving average."""
        raise NotImplementedError

    def update(self, mean: Tensor) -> None:
        """Take note of the mean over all rows of a step of what `measured` gives.

        The average of t steps is `sum_i d^(t-i) mean_i / sum_i d^(t-i)`, d = 0.99.
        """
        mean = mean.double().cpu()
        self.updates += 1
        share = (1 - _MOMENTUM) / (1 - _MOMENTUM**self.updates)
        self.average = mean if self.average is None else self.average + share * (mean - self.average)

    def values(self) -> Tensor:
        """The thresholds `(K,)`."""
        if self.average is None:
            return torch.full((self.num_labels,), self.threshold, dtype=torch.double)
        return self.of_average(self.average)

    def state_dict(self) -> dict[str, Any]:
        """The moving average, as JSON values."""
        return {"updates": self.updates, "average": None if self.average is None else self.average.tolist()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what `state_dict` gave."""
        average = state["average"]
        self.updates, self.average = state["updates"], None if average is None else torch.tensor(average).double()


class Fixed(Thresholds):
    """The same for every class and step: `T_c = threshold` (FixMatch)."""

    learns = False


class ClassBalanced(Thresholds):
    """Lower for classes that are seldom said with confidence, so that no class is left out.

    With s_c the moving average of the share of rows that are said to be c with a confidence of `threshold` or more::

        b_c = s_c / max_k s_k,    T_c = threshold b_c / (2 - b_c)

    and `threshold` for all as long as no row is that sure. Source: Zhang et al., "FlexMatch: Boosting Semi-Supervised
    Learning with Curriculum Pseudo Labeling", NeurIPS 2021, section 3, without its warm-up (which accepts everything at
    first), and over recent steps in the place of the whole data set.
    """

    def measured(self, probabilities: Tensor) -> Tensor:
        """One-hot rows of sure predictions, zeros of the others."""
        confidence, label = probabilities.max(1)
        sure = confidence >= self.threshold
        return torch.nn.functional.one_hot(label, self.num_labels) * sure.unsqueeze(1)

    def of_average(self, average: Tensor) -> Tensor:
        """See the class."""
        most = average.max()
        share = average / most if most > 0 else torch.ones_like(average)
        return self.threshold * share / (2 - share)


class Adaptive(Thresholds):
    """As confident as the model is on the whole, and lower for classes that it gives little probability.

    With g the moving average of the confidence and p_c that of the probability of class c::

        T_c = min(threshold, g p_c / max_k p_k)

    Source: Wang et al., "FreeMatch: Self-adaptive Thresholding for Semi-supervised Learning", ICLR 2023, section 4.1,
    with the upper limit of its code.
    """

    def measured(self, probabilities: Tensor) -> Tensor:
        """The confidence, and then the probabilities."""
        return torch.cat([probabilities.max(1, keepdim=True).values, probabilities], 1)

    def of_average(self, average: Tensor) -> Tensor:
        """See the class."""
        confidence, of_class = average[0], average[1:]
        return (confidence * of_class / of_class.max()).clamp_max(self.threshold)


THRESHOLDS: dict[str, Callable[[float, int], Thresholds]] = {
    "fixed": Fixed,
    "class_balanced": ClassBalanced,
    "adaptive": Adaptive,
}
