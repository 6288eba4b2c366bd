"""Class weights (PADA) for label sets that differ, registered as anybody would.

They are no part of the package; `label_sets.py` says what they gain.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from metaalign_hf import AlignmentObjective, AlignmentOutput, register_alignment
from metaalign_hf.alignment import CDAN, DANN, AlignmentBatch, reversal_strength, reverse_gradient
from metaalign_hf.alignment.discriminator import domain_loss
from metaalign_hf.alignment.entropy import entropy_weights

__all__ = ["PartialCDAN", "PartialDANN"]

EVERY = 100
"""Batches of the target between two sets of weights; a few passes over the target."""
RATE = 0.02
"""Share of a batch in the running mean of predictions, where there is one."""


class _Weighing(AlignmentObjective):
    """Weights of the source rows by class, for a target that has only some of the source's classes.

    With p the class probabilities of target rows, m their mean `(K,)` over the last `EVERY` batches, taken anew after
    as many, at first 1/K, and w = K m, the weighted losses are::

        L_task      = mean_s w_{y_i} CE_i
        L_alignment = (sum_s w_{y_i} BCE_i / sum_s w_{y_i} + mean_t BCE_i) / 2

    An objective cannot change the task loss, so it adds the difference, `mean_s (w_{y_i} - 1) CE_i`: with the joint
    step and weight 1 the sum is the same.

    Source: Cao et al., "Partial Adversarial Domain Adaptation" (PADA), ECCV 2018, section 3.2. There m is the mean over
    the whole target, taken now and then, and w is divided by its largest entry, in the authors' code by its mean.

    Args:
        feature_dim: Width D of the features.
        num_labels: Number K of classes.
        hidden: Width of the discriminator.
        weights: `found`, as above; `found, running mean`, where m follows every batch; `found, alignment alone`,
            which leaves the task loss as it is; or `true`, a bound that knows that the target has the first
            `present` classes, evenly.
        present: Number of these.
    """

    mean: Tensor
    seen: Tensor

    def __init__(
        self, feature_dim: int, num_labels: int, *, hidden: int = 1024, weights: str = "found", present: int = 0
    ) -> None:
        super().__init__(feature_dim, num_labels, hidden=hidden)
        self.weights = weights
        mean = torch.full((self.num_labels,), 1 / self.num_labels)
        if weights == "true":
            mean = (torch.arange(self.num_labels) < present) / present
        self.register_buffer("mean", mean)
        self.register_buffer("seen", torch.empty(0, self.num_labels))

    def class_weights(self) -> Tensor:
        """The weights w `(K,)`; their mean is 1, and none is 0, so that a batch without such a class has a mean."""
        return (self.num_labels * self.mean).clamp_min(1e-6)

    def observe(self, predictions: Tensor) -> None:
        """Let the weights follow the mean predictions `(K,)` of a batch."""
        if self.weights == "found, running mean":
            self.mean.lerp_(predictions, RATE)
            return
        self.seen = torch.cat([self.seen, predictions.unsqueeze(0)])
        if len(self.seen) == EVERY:
            self.mean, self.seen = self.seen.mean(0), self.seen[:0]

    def weighed(self, domain_logits: Tensor, batch: AlignmentBatch, certainty: Tensor | None = None) -> AlignmentOutput:
        """The weighted adversarial loss, and what the task loss lacks."""
        assert batch.labels is not None
        if self.training and self.weights != "true":
            self.observe(batch.target_rows(batch.logits.detach().softmax(1), "partial").mean(0))
        source = batch.domain_labels == 0
        labels = batch.labels[source]
        weights = torch.ones_like(domain_logits)
        weights[source] = self.class_weights()[labels]
        rows = weights if certainty is None else weights * certainty
        loss, parts = domain_loss(domain_logits, batch, "partial", rows)
        if self.weights == "found, alignment alone":
            return AlignmentOutput(loss, parts)
        errors = F.cross_entropy(batch.logits[source], labels, reduction="none")
        return AlignmentOutput(loss + ((weights[source] - 1) * errors).mean(), parts)


@register_alignment("partial_dann")
class PartialDANN(_Weighing, DANN):
    """DANN with class weights."""

    def forward(self, batch: AlignmentBatch) -> AlignmentOutput:
        strength = reversal_strength(batch.progress, self.ceiling)
        return self.weighed(self.discriminator(reverse_gradient(batch.features, strength))[0], batch)


@register_alignment("partial_cdan")
class PartialCDAN(_Weighing, CDAN):
    """CDAN+E with class weights."""

    def forward(self, batch: AlignmentBatch) -> AlignmentOutput:
        strength = reversal_strength(batch.progress, self.ceiling)
        predictions = batch.logits.softmax(1)
        joint = self._joint(batch.features, predictions.detach())
        domain_logits, _ = self.discriminator(reverse_gradient(joint, strength))
        return self.weighed(domain_logits, batch, entropy_weights(predictions, strength, offset=1.0))
