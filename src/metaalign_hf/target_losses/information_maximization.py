"""Information maximisation: predictions on the target should be sure one by one, and diverse on the whole."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial

from torch import Tensor

from ..errors import UserError
from .base import OfLogits, TargetContext
from .logits import LogitsLoss
from .registry import register_target_loss

__all__ = ["InformationMaximization", "information_maximization"]

CITATION = """\
@inproceedings{liang2020we,
  title     = {Do We Really Need to Access the Source Data? Source Hypothesis Transfer for Unsupervised Domain
               Adaptation},
  author    = {Liang, Jian and Hu, Dapeng and Feng, Jiashi},
  booktitle = {International Conference on Machine Learning},
  year      = {2020}
}"""


def information_maximization(logits: Tensor, diversity: float = 1.0) -> Tensor:
    """`mean_i H(p_i) - diversity H(mean_i p_i)` of logits `(B, K)`, in nats; see `InformationMaximization`."""
    logs = logits.float().log_softmax(1)
    mean = logs.exp().mean(0)
    sure = -(logs.exp() * logs).sum(1).mean()
    # A class whose mean probability underflows adds 0.
    diverse = -(mean * mean.clamp_min(1e-30).log()).sum()
    return sure - diversity * diverse


@register_target_loss("information_maximization", citation=CITATION)
class InformationMaximization(LogitsLoss):
    """The information that predictions hold about the target's images, negated.

    With p = softmax(logits) `(B, K)` and H the entropy::

        L = mean_i H(p_i) - diversity H(mean_i p_i)

    Its first term makes every prediction sure; the second keeps the classes of a micro-batch diverse, without which all
    images may fall into one. Where classes of the target are far from equally frequent, lower `diversity`.

    Source: Liang et al., "Do We Really Need to Access the Source Data? Source Hypothesis Transfer for Unsupervised
    Domain Adaptation" (SHOT), ICML 2020, section 3.2, equations 3 to 5.

    Args:
        context: The classes.
        diversity: Weight of the second term, 0 or more.

    Raises:
        UserError: If it is not.
    """

    def __init__(self, context: TargetContext, *, diversity: float = 1.0) -> None:
        super().__init__()
        if not isinstance(diversity, int | float) or not math.isfinite(diversity) or diversity < 0:
            raise UserError(
                f"training.target_losses information_maximization: diversity is {diversity!r}: it must be a finite "
                "number, 0 or more"
            )
        self.diversity = float(diversity)

    def losses(self, taught: Sequence[Tensor]) -> tuple[list[OfLogits], dict[str, float]]:
        """The loss, which asks no teacher."""
        return [partial(information_maximization, diversity=self.diversity)] * len(taught), {}
