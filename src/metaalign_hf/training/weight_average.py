"""The moving average of the weights, which is what is evaluated and saved, and the teacher of pseudo-labels."""

from __future__ import annotations

from itertools import chain

import torch
from timm.utils import ModelEmaV3
from torch import nn

__all__ = ["WeightAverage"]


class WeightAverage(ModelEmaV3):
    """`average = d average + (1 - d) weights` after every step; running statistics are averaged likewise.

    d rises to `decay` as timm's warm-up has it, `d = min(decay, 1 - step^(-2/3))`, so that the average follows a young
    model closely: after 1000 steps it spans the last 100 of them.

    Timm's own update goes through the state dict, which names a tensor once for every place that it has in the model.
    Detectors tie their heads: those would be averaged several times a step, and so follow the weights faster than the
    rest.

    Args:
        model: The model, of which the average starts as a copy.
        decay: The decay in the long run.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        super().__init__(model, decay, use_warmup=True)

    @torch.no_grad()
    def apply_update_(self, model: nn.Module, decay: float) -> None:
        """One update with the given decay; tensors of whole numbers are copied."""
        mine = chain(self.module.parameters(), self.module.buffers())
        for average, value in zip(mine, chain(model.parameters(), model.buffers()), strict=True):
            if average.is_floating_point():
                average.lerp_(value, 1.0 - decay)
            else:
                average.copy_(value)
