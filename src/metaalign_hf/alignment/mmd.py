"""MMD: the distance of the two domains' means in the space of a mixture of Gaussian kernels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from ..errors import UserError
from .base import AlignmentBatch, AlignmentObjective, AlignmentOutput
from .kernels import Estimator, check_kernels, discrepancy, gaussian_kernel, row_distances
from .registry import register_alignment

__all__ = ["MMD"]


CITATION = """\
@inproceedings{long2015learning,
  title     = {Learning Transferable Features with Deep Adaptation Networks},
  author    = {Long, Mingsheng and Cao, Yue and Wang, Jianmin and Jordan, Michael I.},
  booktitle = {International Conference on Machine Learning},
  year      = {2015}
}"""


@register_alignment("mmd", citation=CITATION)
class MMD(AlignmentObjective):
    """Multi-kernel maximum mean discrepancy, as in DAN.

    With x the features f `(B, D)` or the predictions softmax(logits) `(B, K)` and k the mean of Gaussian kernels
    `exp(-|x - y|^2 / (m b))` over the multipliers m, the bandwidth b being the mean squared distance between different
    rows of the batch, held constant::

        L = E k(s, s') + E k(t, t') - 2 E k(s, t)

    estimated without bias from all pairs of rows (`quadratic`) or in linear time from consecutive ones (`linear`). An
    unbiased estimate of a small distance may be negative. DAN weights its kernels by a quadratic programme; here, as
    in most implementations, they weigh the same. Each domain needs 2 rows.

    Source: Long et al., "Learning Transferable Features with Deep Adaptation Networks", ICML 2015, section 3; Gretton
    et al., "A Kernel Two-Sample Test", JMLR 2012, sections 2.2 and 6.

    Args:
        feature_dim: Width D of the features.
        num_labels: Number K of classes.
        on: What is aligned: `features` or `predictions`.
        estimator: `quadratic` or `linear`.
        multipliers: Multiples of the bandwidth, one Gaussian for each.
        bandwidth: A fixed bandwidth b; None takes that of the batch.

    Raises:
        UserError: If an option has no such value.
    """

    uses_progress = False

    def __init__(
        self,
        feature_dim: int,
        num_labels: int,
        *,
        on: Literal["features", "predictions"] = "features",
        estimator: Estimator = "quadratic",
        multipliers: Sequence[float] = (0.25, 0.5, 1.0, 2.0, 4.0),
        bandwidth: float | None = None,
    ) -> None:
        super().__init__(feature_dim, num_labels)
        if on not in ("features", "predictions"):
            raise UserError(f"alignment mmd: on is {on!r}; it must be features or predictions")
        check_kernels("mmd", estimator, multipliers, bandwidth=bandwidth)
        self.on = on
        self.estimator = estimator
        self.multipliers = multipliers
        self.bandwidth = bandwidth

    def forward(self, batch: AlignmentBatch) -> AlignmentOutput:
        """The squared discrepancy of a batch."""
        aligned = batch.features if self.on == "features" else batch.logits.softmax(1)
        source, target = batch.split(aligned, "mmd", at_least=2)
        distances = row_distances(source, target, self.estimator)
        kernel = gaussian_kernel(distances, self.estimator, self.multipliers, self.bandwidth)
        loss = discrepancy(kernel, len(source), self.estimator)
        return AlignmentOutput(loss, {"discrepancy": loss.detach()})
