"""OSBP: the classifier gives target images to a class of their own by half, and the features move to either side."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from .base import AlignmentBatch, AlignmentObjective, AlignmentOutput
from .registry import register_alignment
from .reversal import reversal_strength, reversed_at_features

__all__ = ["OSBP"]


CITATION = """\
@inproceedings{saito2018open,
  title     = {Open Set Domain Adaptation by Backpropagation},
  author    = {Saito, Kuniaki and Yamamoto, Shohei and Ushiku, Yoshitaka and Harada, Tatsuya},
  booktitle = {European Conference on Computer Vision},
  year      = {2018}
}"""


@register_alignment("osbp", citation=CITATION)
class OSBP(AlignmentObjective):
    """Open-set adaptation by backpropagation, for a target with classes that the source lacks.

    The classifier's last class is `unknown` (`data.label_policy: open`). With q its probability on the target's images
    `(B_t,)`::

        L = -mean_t (log q + log(1 - q)) / 2

    The classifier learns it, so that q is 1/2. Its gradient is reversed, with strength lambda(progress), on the way
    into the features, which so move either way: to one of the known classes or to unknown. There is no discriminator.

    Nothing bounds what the features can gain, so it wants a small learning rate; on frozen features all runs diverged
    at 0.01, and none at 0.003.

    Source: Saito et al., "Open Set Domain Adaptation by Backpropagation", ECCV 2018, section 3.2, with t = 0.5; the
    strength of the reversal grows as DANN's.

    Args:
        feature_dim: Width D of the features.
        num_labels: Number K of classes, `unknown` included.
        ceiling: Reversal strength at the end of training.
    """

    def __init__(self, feature_dim: int, num_labels: int, *, ceiling: float = 1.0) -> None:
        super().__init__(feature_dim, num_labels)
        self.ceiling = ceiling

    def forward(self, batch: AlignmentBatch) -> AlignmentOutput:
        """The loss of a batch's target rows; its part `unknown_share` is the share of them with q above 1/2.

        Raises:
            UserError: If the batch has no target rows, or no weight of a linear classifier.
        """
        features, logits = (batch.target_rows(values, "osbp") for values in (batch.features, batch.logits))
        strength = reversal_strength(batch.progress, self.ceiling)
        logits = reversed_at_features(logits, features, batch.linear_weight("osbp"), strength)
        odds = logits[:, -1] - logits[:, :-1].logsumexp(1)
        loss = F.binary_cross_entropy_with_logits(odds, torch.full_like(odds, 0.5))
        return AlignmentOutput(loss, {"unknown_share": (odds > 0).float().mean().detach()})
