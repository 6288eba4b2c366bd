"""MCC: the classifier should not confuse classes on the target."""

from __future__ import annotations

import math

import torch

from ..errors import UserError
from .base import AlignmentBatch, AlignmentObjective, AlignmentOutput
from .entropy import prediction_entropy
from .registry import register_alignment

__all__ = ["MCC"]


CITATION = """\
@inproceedings{jin2020minimum,
  title     = {Minimum Class Confusion for Versatile Domain Adaptation},
  author    = {Jin, Ying and Wang, Ximei and Long, Mingsheng and Wang, Jianmin},
  booktitle = {European Conference on Computer Vision},
  year      = {2020}
}"""


@register_alignment("mcc", citation=CITATION)
class MCC(AlignmentObjective):
    """Minimum class confusion, on the target rows alone.

    With p = softmax(logits / T) `(B_t, K)` and H the entropy::

        w_i = B_t (1 + exp(-H(p_i))) / sum_j (1 + exp(-H(p_j))), held constant
        C   = p^T diag(w) p, each row divided by its sum        (K, K)
        L   = sum_{j != k} C_jk / K

    It does not measure a distance between the domains. It sharpens the target's predictions, alone or beside an
    adversarial objective (`[{name: cdan}, {name: mcc}]`).

    Source: Jin et al., "Minimum Class Confusion for Versatile Domain Adaptation", ECCV 2020, section 3; weights held
    constant as in the authors' code.

    Args:
        feature_dim: Width D of the features.
        num_labels: Number K of classes.
        temperature: Temperature T of the predictions.

    Raises:
        UserError: If the temperature is not above 0.
    """

    uses_progress = False

    def __init__(self, feature_dim: int, num_labels: int, *, temperature: float = 2.5) -> None:
        super().__init__(feature_dim, num_labels)
        if not math.isfinite(temperature) or temperature <= 0:
            raise UserError(f"alignment mcc: temperature is {temperature}; it must be a number above 0")
        self.temperature = temperature

    def forward(self, batch: AlignmentBatch) -> AlignmentOutput:
        """The class confusion of a batch's target rows."""
        logits = batch.target_rows(batch.logits, "mcc")
        with torch.autocast(logits.device.type, enabled=False):
            logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
            predictions = (logits / self.temperature).softmax(1)
            certainty = 1 + (-prediction_entropy(predictions.detach())).exp()
            weights = len(certainty) * certainty / certainty.sum()
            confusion = predictions.T @ (weights.unsqueeze(1) * predictions)
        # A class that no row gives any probability in this precision is confused with none.
        confusion = confusion / confusion.sum(1, keepdim=True).clamp_min(torch.finfo(confusion.dtype).tiny)
        loss = (confusion.sum() - confusion.diagonal().sum()) / self.num_labels
        return AlignmentOutput(loss, {"class_confusion": loss.detach()})
