"""The average of the weights in the loop of transformers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from transformers import TrainerCallback

from ..training.weights import Weights

__all__ = ["KeepAverage"]


class KeepAverage(TrainerCallback):
    """Moves the average after every step, and leaves it in the model at the end of training.

    Args:
        weights: Gives the model that is being trained, and its average where one is kept.
        drop: Called when the model holds the average itself.
    """

    def __init__(self, weights: Callable[[], Weights | None], drop: Callable[[], None]) -> None:
        self.weights, self.drop = weights, drop

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Before the step is logged, evaluated and saved."""
        if (weights := self.weights()) is not None:
            weights.update_average(state.global_step)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Before the trackers see the model that was trained."""
        if (weights := self.weights()) is not None and weights.average is not None:
            weights.bare.load_state_dict(weights.average.module.state_dict())
        self.drop()
