"""DANN: a discriminator tells source from target, and the features are trained against it."""

from __future__ import annotations

from typing import Literal

from ..errors import UserError
from .base import AlignmentBatch, AlignmentObjective, AlignmentOutput
from .discriminator import DomainDiscriminator, domain_loss
from .entropy import entropy_weights
from .label_smoothing import check_smoothing
from .registry import register_alignment
from .reversal import reversal_strength, reverse_gradient
from .toalign import task_oriented

__all__ = ["DANN"]


CITATION = r"""@article{ganin2016domain,
  title   = {Domain-Adversarial Training of Neural Networks},
  author  = {Ganin, Yaroslav and Ustinova, Evgeniya and Ajakan, Hana and Germain, Pascal and Larochelle, Hugo and
             Laviolette, Fran{\c{c}}ois and Marchand, Mario and Lempitsky, Victor},
  journal = {Journal of Machine Learning Research},
  volume  = {17},
  year    = {2016}
}"""


@register_alignment("dann", citation=CITATION)
class DANN(AlignmentObjective):
    """Domain-adversarial alignment of features or predictions.

    With x the features f `(B, D)` or the predictions softmax(logits) `(B, K)`, D the discriminator and R the gradient
    reversal of strength lambda(progress)::

        L = (mean_s BCE(D(R(x)), 1) + mean_t BCE(D(R(x)), 0)) / 2

    Source: Ganin et al., "Domain-Adversarial Training of Neural Networks", JMLR 2016, sections 4 and 5.2.2. Alignment
    of predictions as the baseline of MetaAlign and ToAlign (Wei et al. 2021); entropy weights from CDAN, section 3.3.

    Args:
        feature_dim: Width D of the features.
        num_labels: Number K of classes.
        on: What is aligned: `features` or `predictions`.
        entropy_weights: Weight each row by `1 + exp(-H(p))`.
        hidden: Width of the discriminator.
        dropout: Dropout of the discriminator.
        ceiling: Reversal strength at the end of training.
        label_smoothing: Smoothing of the domain labels (ELS), 0..0.5, such as 0.1.
        toalign: Align the source's task-oriented features and their predictions (ToAlign) instead of the plain ones.

    Raises:
        UserError: If `on` is neither.
    """

    def __init__(
        self,
        feature_dim: int,
        num_labels: int,
        *,
        on: Literal["features", "predictions"] = "features",
        entropy_weights: bool = False,
        hidden: int = 1024,
        dropout: float = 0.5,
        ceiling: float = 1.0,
        toalign: bool = False,
        label_smoothing: float = 0.0,
    ) -> None:
        super().__init__(feature_dim, num_labels)
        if on not in ("features", "predictions"):
            raise UserError(f"alignment dann: on is {on!r}; it must be features or predictions")
        self.on = on
        self.entropy_weights = entropy_weights
        self.ceiling = ceiling
        self.toalign = toalign
        self.label_smoothing = check_smoothing(label_smoothing, "dann")
        self.discriminator = DomainDiscriminator(feature_dim if on == "features" else num_labels, hidden, dropout)

    def forward(self, batch: AlignmentBatch) -> AlignmentOutput:
        """The adversarial loss of a batch."""
        batch = task_oriented(batch, "dann") if self.toalign else batch
        strength = reversal_strength(batch.progress, self.ceiling)
        predictions = batch.logits.softmax(1)
        aligned = batch.features if self.on == "features" else predictions
        logits, _ = self.discriminator(reverse_gradient(aligned, strength))
        weights = entropy_weights(predictions, strength, offset=1.0) if self.entropy_weights else None
        return AlignmentOutput(*domain_loss(logits, batch, "dann", weights, self.label_smoothing))
