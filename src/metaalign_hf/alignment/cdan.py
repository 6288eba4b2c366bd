"""CDAN: the discriminator sees features conditioned on predictions."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .base import AlignmentBatch, AlignmentObjective, AlignmentOutput
from .discriminator import DomainDiscriminator, domain_loss
from .entropy import entropy_weights
from .label_smoothing import check_smoothing
from .registry import register_alignment
from .reversal import reversal_strength, reverse_gradient
from .toalign import task_oriented

__all__ = ["CDAN"]


CITATION = """\
@inproceedings{long2018conditional,
  title     = {Conditional Adversarial Domain Adaptation},
  author    = {Long, Mingsheng and Cao, Zhangjie and Wang, Jianmin and Jordan, Michael I.},
  booktitle = {Advances in Neural Information Processing Systems},
  year      = {2018}
}"""


@register_alignment("cdan", citation=CITATION)
class CDAN(AlignmentObjective):
    """Conditional domain-adversarial alignment.

    With f the features `(B, D)` and p = softmax(logits) `(B, K)`, held constant, the discriminator sees the multilinear
    map `f (x) p` of `D K` entries, or, where that exceeds `max_dim`, its random projection::

        h = (R_f f) * (R_p p) / sqrt(d)

    with fixed Gaussian matrices R_f `(d, D)` and R_p `(d, K)`, d = `max_dim` / 4. The loss is DANN's, each row
    weighted by `1 + exp(-H(p))` (CDAN+E).

    Source: Long et al., "Conditional Adversarial Domain Adaptation", NeurIPS 2018, sections 3.2 and 3.3.

    Args:
        feature_dim: Width D of the features.
        num_labels: Number K of classes.
        entropy_weights: Weight rows by the certainty of their prediction.
        max_dim: Widest multilinear map before the random projection takes over.
        hidden: Width of the discriminator.
        dropout: Dropout of the discriminator.
        ceiling: Reversal strength at the end of training.
        label_smoothing: Smoothing of the domain labels (ELS), 0..0.5, such as 0.1.
        toalign: Align the source's task-oriented features and their predictions (ToAlign) instead of the plain ones.
    """

    project_features: Tensor | None
    project_predictions: Tensor | None

    def __init__(
        self,
        feature_dim: int,
        num_labels: int,
        *,
        entropy_weights: bool = True,
        max_dim: int = 4096,
        hidden: int = 1024,
        dropout: float = 0.5,
        ceiling: float = 1.0,
        toalign: bool = False,
        label_smoothing: float = 0.0,
    ) -> None:
        super().__init__(feature_dim, num_labels)
        self.entropy_weights = entropy_weights
        self.ceiling = ceiling
        self.toalign = toalign
        self.label_smoothing = check_smoothing(label_smoothing, "cdan")
        width = feature_dim * num_labels
        self.register_buffer("project_features", None)
        self.register_buffer("project_predictions", None)
        if width > max_dim:
            width = max(1, max_dim // 4)
            # A generator of its own: the projection must not depend on what else drew random numbers. The buffers are
            # persistent, so that a loaded checkpoint has the very same projection.
            generator = torch.Generator().manual_seed(0)
            self.project_features = torch.randn(width, feature_dim, generator=generator, device="cpu")
            self.project_predictions = torch.randn(width, num_labels, generator=generator, device="cpu")
        self.discriminator = DomainDiscriminator(width, hidden, dropout)

    def forward(self, batch: AlignmentBatch) -> AlignmentOutput:
        """The conditional adversarial loss of a batch."""
        batch = task_oriented(batch, "cdan") if self.toalign else batch
        strength = reversal_strength(batch.progress, self.ceiling)
        predictions = batch.logits.softmax(1)
        joint = self._joint(batch.features, predictions.detach())
        logits, _ = self.discriminator(reverse_gradient(joint, strength))
        weights = entropy_weights(predictions, strength, offset=1.0) if self.entropy_weights else None
        return AlignmentOutput(*domain_loss(logits, batch, "cdan", weights, self.label_smoothing))

    def _joint(self, features: Tensor, predictions: Tensor) -> Tensor:
        if self.project_features is None or self.project_predictions is None:
            return (predictions.unsqueeze(2) * features.unsqueeze(1)).flatten(1)
        width = self.project_features.shape[0]
        return (features @ self.project_features.T) * (predictions @ self.project_predictions.T) / math.sqrt(width)
