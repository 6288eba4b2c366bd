"""Alignment of encoder tokens and decoder queries, as DETR-style detectors are aligned."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..base import AlignmentOutput
from ..reversal import reversal_strength, reverse_gradient
from .base import AlignmentLevel, DetectionAlignmentBatch, DetectorWidths, Level, domain_mean, register_level

__all__ = ["EncoderTokens", "QueryTokens"]


class _TokenDiscriminator(nn.Sequential):
    """One domain logit `(B, N)` for each token `(B, N, C)`; no norm, so tokens are judged one by one."""

    def __init__(self, width: int, hidden: int) -> None:
        if hidden < 1:
            raise ValueError(f"hidden is {hidden}; it must be 1 or more")
        super().__init__(
            nn.Linear(width, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU(), nn.Linear(hidden, 1)
        )
        for layer in self:
            if isinstance(layer, nn.Linear):
                nn.init.xavier_uniform_(layer.weight)
                nn.init.zeros_(layer.bias)

    def forward(self, tokens: Tensor) -> Tensor:
        """Domain logits, high for the source."""
        return super().forward(tokens).squeeze(-1)


def _token_loss(
    logits: Tensor, level: Level, domain_labels: Tensor, name: str, weights: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Binary cross entropy, source 1 and target 0, each domain counting half; and the discriminator's accuracy."""
    is_source = (domain_labels == 0).to(logits.dtype)[:, None].expand_as(logits)
    errors = F.binary_cross_entropy_with_logits(logits, is_source, reduction="none")
    source, target = domain_mean(errors, level.mask, domain_labels, name, weights)
    right = ((logits > 0) == (is_source > 0)).to(logits.dtype)
    accuracy = torch.stack(domain_mean(right, level.mask, domain_labels, name, weights)).mean()
    return (source + target) / 2, accuracy.detach()


CITATION = """\
@inproceedings{wang2021exploring,
  title     = {Exploring Sequence Feature Alignment for Domain Adaptive Detection Transformers},
  author    = {Wang, Wen and Cao, Yang and Zhang, Jing and He, Fengxiang and Zha, Zheng-Jun and Wen, Yonggang and Tao,
               Dacheng},
  booktitle = {Proceedings of the 29th ACM International Conference on Multimedia},
  year      = {2021}
}"""


@register_level("encoder", citation=CITATION)
class EncoderTokens(AlignmentLevel):
    """A discriminator on every encoder token, the mean over feature levels.

    With D_l the discriminator of feature level l, padded tokens left out::

        L = mean_l (mean_s BCE(D_l(R(x)), 1) + mean_t BCE(D_l(R(x)), 0)) / 2

    The mean over each level first: else the finest level, with three quarters of all tokens, would decide alone.

    Source: Wang et al., "Exploring Sequence Feature Alignment for Domain Adaptive Detection Transformers" (SFA), ACM MM
    2021, section 3.2; without its domain queries and layer-wise terms.

    Args:
        widths: Channel counts of the detector's features.
        hidden: Width of the discriminators.
        ceiling: Gradient reversal at the end of training.
    """

    def __init__(self, widths: DetectorWidths, *, hidden: int = 256, ceiling: float = 1.0) -> None:
        super().__init__(widths)
        self.ceiling = ceiling
        self.discriminators = nn.ModuleList(_TokenDiscriminator(width, hidden) for width in widths.encoder)

    def forward(self, batch: DetectionAlignmentBatch) -> AlignmentOutput:
        """The mean loss over feature levels."""
        strength = reversal_strength(batch.progress, self.ceiling)
        losses, accuracies = [], []
        for discriminator, level in zip(self.discriminators, batch.encoder, strict=True):
            logits = discriminator(reverse_gradient(level.values, strength))
            loss, accuracy = _token_loss(logits, level, batch.domain_labels, "encoder")
            losses.append(loss)
            accuracies.append(accuracy)
        mean = torch.stack(losses).mean()
        return AlignmentOutput(mean, {"domain_loss": mean.detach(), "domain_accuracy": torch.stack(accuracies).mean()})


@register_level("query", citation=CITATION)
class QueryTokens(AlignmentLevel):
    """A discriminator on every decoder query of the last layer.

    With w the weight of a query (its objectness, or 1), held constant and normalised for each image::

        L = (mean_s sum_q w BCE(D(R(q)), 1) + mean_t sum_q w BCE(D(R(q)), 0)) / 2

    Denoising queries, which exist only where there are labels, and the extra query groups of Group DETR never get
    here: either would tell the domain by its count.

    Source: SFA, ACM MM 2021, section 3.2.

    Args:
        widths: Channel counts of the detector's features.
        hidden: Width of the discriminator.
        objectness_weights: Weight each query by its highest class probability, so that the few queries on objects are
            not drowned by the many on background.
        ceiling: Gradient reversal at the end of training.
    """

    def __init__(
        self, widths: DetectorWidths, *, hidden: int = 256, objectness_weights: bool = False, ceiling: float = 1.0
    ) -> None:
        super().__init__(widths)
        self.objectness_weights = objectness_weights
        self.ceiling = ceiling
        self.discriminator = _TokenDiscriminator(widths.queries, hidden)

    def forward(self, batch: DetectionAlignmentBatch) -> AlignmentOutput:
        """The loss of the queries."""
        strength = reversal_strength(batch.progress, self.ceiling)
        logits = self.discriminator(reverse_gradient(batch.queries, strength))
        weights = batch.objectness if self.objectness_weights else None
        loss, accuracy = _token_loss(logits, Level(batch.queries), batch.domain_labels, "query", weights)
        return AlignmentOutput(loss, {"domain_loss": loss.detach(), "domain_accuracy": accuracy})
