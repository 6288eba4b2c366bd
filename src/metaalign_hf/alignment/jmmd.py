"""JMMD: the discrepancy of the joint distribution of features and predictions."""

from __future__ import annotations

from collections.abc import Sequence

from .base import AlignmentBatch, AlignmentObjective, AlignmentOutput
from .kernels import Estimator, check_kernels, discrepancy, gaussian_kernel, row_distances
from .registry import register_alignment

__all__ = ["JMMD"]


CITATION = """\
@inproceedings{long2017deep,
  title     = {Deep Transfer Learning with Joint Adaptation Networks},
  author    = {Long, Mingsheng and Zhu, Han and Wang, Jianmin and Jordan, Michael I.},
  booktitle = {International Conference on Machine Learning},
  year      = {2017}
}"""


@register_alignment("jmmd", citation=CITATION)
class JMMD(AlignmentObjective):
    """Joint maximum mean discrepancy, as in JAN.

    The kernel of two rows is the product of a kernel on the features f `(B, D)`, a mean of Gaussians as in `mmd`, and
    one Gaussian on the predictions p = softmax(logits) `(B, K)`::

        k((f, p), (f', p')) = mean_m exp(-|f - f'|^2 / (m b)) * exp(-|p - p'|^2 / b_p)
        L                   = E k(s, s') + E k(t, t') - 2 E k(s, t)

    estimated without bias. Each domain needs 2 rows.

    Source: Long et al., "Deep Transfer Learning with Joint Adaptation Networks", ICML 2017, section 4; the fixed
    bandwidth of the predictions is that of the authors' code.

    Args:
        feature_dim: Width D of the features.
        num_labels: Number K of classes.
        estimator: `quadratic` (all pairs) or `linear` (consecutive rows).
        multipliers: Multiples of the features' bandwidth, one Gaussian for each.
        bandwidth: A fixed bandwidth b of the features; None takes the mean squared distance of the batch's rows.
        prediction_bandwidth: Bandwidth b_p of the predictions; None takes that of the batch.

    Raises:
        UserError: If an option has no such value.
    """

    uses_progress = False

    def __init__(
        self,
        feature_dim: int,
        num_labels: int,
        *,
        estimator: Estimator = "quadratic",
        multipliers: Sequence[float] = (0.25, 0.5, 1.0, 2.0, 4.0),
        bandwidth: float | None = None,
        prediction_bandwidth: float | None = 1.68,
    ) -> None:
        super().__init__(feature_dim, num_labels)
        check_kernels("jmmd", estimator, multipliers, bandwidth=bandwidth, prediction_bandwidth=prediction_bandwidth)
        self.estimator = estimator
        self.multipliers = multipliers
        self.bandwidth = bandwidth
        self.prediction_bandwidth = prediction_bandwidth

    def forward(self, batch: AlignmentBatch) -> AlignmentOutput:
        """The squared joint discrepancy of a batch."""
        source, target = batch.split(batch.features, "jmmd", at_least=2)
        predicted = batch.split(batch.logits.softmax(1), "jmmd", at_least=2)
        on_features = gaussian_kernel(
            row_distances(source, target, self.estimator), self.estimator, self.multipliers, self.bandwidth
        )
        on_predictions = gaussian_kernel(
            row_distances(*predicted, self.estimator), self.estimator, (1.0,), self.prediction_bandwidth
        )
        loss = discrepancy(on_features * on_predictions, len(source), self.estimator)
        return AlignmentOutput(loss, {"discrepancy": loss.detach()})
