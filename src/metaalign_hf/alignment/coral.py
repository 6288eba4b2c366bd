"""CORAL: the covariances of the two domains are made equal."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from ..errors import UserError
from .base import AlignmentBatch, AlignmentObjective, AlignmentOutput
from .registry import register_alignment

__all__ = ["CORAL"]


CITATION = """\
@inproceedings{sun2016deep,
  title     = {Deep {CORAL}: Correlation Alignment for Deep Domain Adaptation},
  author    = {Sun, Baochen and Saenko, Kate},
  booktitle = {European Conference on Computer Vision Workshops},
  year      = {2016}
}"""


@register_alignment("coral", citation=CITATION)
class CORAL(AlignmentObjective):
    """Deep CORAL, the distance of second-order statistics.

    With C_s and C_t the covariance matrices `(d, d)` (divisor n - 1) of the source rows and the target rows of x, the
    features `(B, D)` or the logits `(B, K)`::

        L = |C_s - C_t|_F^2 / (4 d^2)

    It does not see a mere shift of the mean. The factor 1 / (4 d^2) makes it small for wide features, so its weight
    must grow with them. Each domain needs 2 rows.

    Source: Sun and Saenko, "Deep CORAL: Correlation Alignment for Deep Domain Adaptation", ECCV Workshops 2016,
    section 3.1; the paper aligns the logits.

    Args:
        feature_dim: Width D of the features.
        num_labels: Number K of classes.
        on: What is aligned: `features` or `logits`.

    Raises:
        UserError: If `on` is neither.
    """

    uses_progress = False

    def __init__(self, feature_dim: int, num_labels: int, *, on: Literal["features", "logits"] = "features") -> None:
        super().__init__(feature_dim, num_labels)
        if on not in ("features", "logits"):
            raise UserError(f"alignment coral: on is {on!r}; it must be features or logits")
        self.on = on

    def forward(self, batch: AlignmentBatch) -> AlignmentOutput:
        """The distance of the covariances of a batch."""
        aligned = batch.features if self.on == "features" else batch.logits
        source, target = batch.split(aligned, "coral", at_least=2)
        with torch.autocast(aligned.device.type, enabled=False):
            difference = _covariance(source) - _covariance(target)
            loss = difference.square().sum() / (4 * aligned.shape[1] ** 2)
        return AlignmentOutput(loss, {"covariance_distance": loss.detach()})


def _covariance(rows: Tensor) -> Tensor:
    """Covariance `(d, d)` of rows `(n, d)`, at least in single precision."""
    rows = rows.to(torch.promote_types(rows.dtype, torch.float32))
    centred = rows - rows.mean(0)
    return centred.T @ centred / (len(rows) - 1)
