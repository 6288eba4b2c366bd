"""DALN: the classifier itself tells source from target, by the nuclear norm of its predictions."""

from __future__ import annotations

import torch
from torch import Tensor

from .base import AlignmentBatch, AlignmentObjective, AlignmentOutput
from .registry import register_alignment
from .reversal import reversal_strength, reversed_at_features

__all__ = ["DALN"]


CITATION = """\
@inproceedings{chen2022reusing,
  title     = {Reusing the Task-specific Classifier as a Discriminator: Discriminator-free Adversarial Domain
               Adaptation},
  author    = {Chen, Lin and Chen, Huaian and Wei, Zhixiang and Jin, Xin and Tan, Xiao and Jin, Yi and Chen, Enhong},
  booktitle = {Proceedings of the IEEE/CVF Conference on Computer Vision and Pattern Recognition},
  year      = {2022}
}"""


@register_alignment("daln", citation=CITATION)
class DALN(AlignmentObjective):
    """The nuclear-norm Wasserstein discrepancy, with the classifier as the critic.

    With C the classifier, f the features `(B, D)`, R the gradient reversal of strength lambda(progress), P the
    predictions softmax(C(R(f))) of a domain `(N, K)` and ||.||_* the nuclear norm, the sum of singular values::

        L = ||P_t||_* / N_t - ||P_s||_* / N_s

    The nuclear norm is high where predictions are sure and diverse. The classifier raises it on the source and lowers
    it on the target; the reversed gradient makes target features on which it cannot. There is no discriminator.

    Source: Chen et al., "Reusing the Task-specific Classifier as a Discriminator: Discriminator-free Adversarial Domain
    Adaptation", CVPR 2022, section 3.3.

    Args:
        feature_dim: Width D of the features.
        num_labels: Number K of classes.
        ceiling: Reversal strength at the end of training.
    """

    def __init__(self, feature_dim: int, num_labels: int, *, ceiling: float = 1.0) -> None:
        super().__init__(feature_dim, num_labels)
        self.ceiling = ceiling

    def forward(self, batch: AlignmentBatch) -> AlignmentOutput:
        """The discrepancy of a batch.

        Raises:
            UserError: If a domain has no rows, or the batch lacks the classifier's weight.
        """
        batch.split(batch.logits, "daln")
        strength = reversal_strength(batch.progress, self.ceiling)
        logits = reversed_at_features(batch.logits, batch.features, batch.linear_weight("daln"), strength)
        source, target = (_mean_nuclear_norm(rows) for rows in batch.split(logits, "daln"))
        parts = {"nuclear_norm_source": source.detach(), "nuclear_norm_target": target.detach()}
        return AlignmentOutput(target - source, parts)


def _mean_nuclear_norm(logits: Tensor) -> Tensor:
    """`||softmax(logits)||_* / N` of logits `(N, K)`."""
    with torch.autocast(logits.device.type, enabled=False):
        predictions = logits.to(torch.promote_types(logits.dtype, torch.float32)).softmax(1)
        return torch.linalg.matrix_norm(predictions, "nuc") / len(logits)
