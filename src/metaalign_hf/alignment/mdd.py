"""MDD: a second classifier disagrees with the first on the target as much as it can, and the features prevent it."""

from __future__ import annotations

import math

from torch import Tensor, nn

from ..errors import UserError
from .base import AlignmentBatch, AlignmentObjective, AlignmentOutput
from .registry import register_alignment
from .reversal import reversal_strength, reverse_gradient

__all__ = ["MDD"]


CITATION = """\
@inproceedings{zhang2019bridging,
  title     = {Bridging Theory and Algorithm for Domain Adaptation},
  author    = {Zhang, Yuchen and Liu, Tianle and Long, Mingsheng and Jordan, Michael I.},
  booktitle = {International Conference on Machine Learning},
  year      = {2019}
}"""


@register_alignment("mdd", citation=CITATION)
class MDD(AlignmentObjective):
    """Margin disparity discrepancy.

    With y = argmax(logits) the classifier's own choice, F' an adversarial classifier on the features f `(B, D)`, q =
    softmax(F'(R(f))) `(B, K)` and R the gradient reversal of strength lambda(progress)::

        L = gamma mean_s -log q_y + mean_t -log(1 - q_y)

    F' learns to agree with the classifier on the source and to disagree on the target; the reversed gradient makes
    features on which it cannot.

    Source: Zhang et al., "Bridging Theory and Algorithm for Domain Adaptation", ICML 2019, section 4.

    Args:
        feature_dim: Width D of the features.
        num_labels: Number K of classes.
        gamma: Weight of the source, exp of the margin.
        hidden: Width of the adversarial classifier.
        dropout: Dropout of the adversarial classifier.
        ceiling: Reversal strength at the end of training; published: 0.1.

    Raises:
        UserError: If gamma is not above 0.
    """

    def __init__(
        self,
        feature_dim: int,
        num_labels: int,
        *,
        gamma: float = 4.0,
        hidden: int = 1024,
        dropout: float = 0.5,
        ceiling: float = 0.1,
    ) -> None:
        super().__init__(feature_dim, num_labels)
        if not math.isfinite(gamma) or gamma <= 0:
            raise UserError(f"alignment mdd: gamma is {gamma}; it must be a number above 0")
        self.gamma = gamma
        self.ceiling = ceiling
        self.adversary = nn.Sequential(
            nn.Linear(feature_dim, hidden), nn.ReLU(), nn.Dropout(dropout), nn.Linear(hidden, num_labels)
        )
        for layer in self.adversary:
            if isinstance(layer, nn.Linear):
                nn.init.kaiming_normal_(layer.weight)
                nn.init.zeros_(layer.bias)

    def forward(self, batch: AlignmentBatch) -> AlignmentOutput:
        """The disparity of a batch."""
        strength = reversal_strength(batch.progress, self.ceiling)
        scores = self.adversary(reverse_gradient(batch.features, strength))
        choice = batch.logits.argmax(1, keepdim=True)
        agree, disagree = _choice_and_rest(scores, choice)
        source, _ = batch.split(agree, "mdd")
        _, target = batch.split(disagree, "mdd")
        loss = self.gamma * source.mean() + target.mean()
        agreement = (scores.argmax(1, keepdim=True) == choice).float().squeeze(1)
        on_source, on_target = (rows.mean().detach() for rows in batch.split(agreement, "mdd"))
        return AlignmentOutput(loss, {"source_agreement": on_source, "target_agreement": on_target})


def _choice_and_rest(scores: Tensor, choice: Tensor) -> tuple[Tensor, Tensor]:
    """`-log q_y` and `-log(1 - q_y)`, each `(B,)`, of scores `(B, K)` and choices y `(B, 1)`; finite for any score."""
    whole = scores.logsumexp(1)
    rest = scores.masked_fill(nn.functional.one_hot(choice.squeeze(1), scores.shape[1]).bool(), -math.inf)
    return whole - scores.gather(1, choice).squeeze(1), whole - rest.logsumexp(1)
