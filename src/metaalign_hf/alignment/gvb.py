"""GVB: bridges in the classifier and the discriminator carry what is domain specific, and are made to vanish."""

from __future__ import annotations

from torch import Tensor, nn

from .base import AlignmentBatch, AlignmentObjective, AlignmentOutput
from .discriminator import DomainDiscriminator, domain_loss
from .entropy import entropy_weights
from .label_smoothing import check_smoothing
from .registry import register_alignment
from .reversal import reversal_strength, reverse_gradient
from .toalign import task_oriented

__all__ = ["GVB"]


CITATION = """\
@inproceedings{cui2020gradually,
  title     = {Gradually Vanishing Bridge for Adversarial Domain Adaptation},
  author    = {Cui, Shuhao and Wang, Shuhui and Zhuo, Junbao and Su, Chi and Huang, Qingming and Tian, Qi},
  booktitle = {Proceedings of the IEEE/CVF Conference on Computer Vision and Pattern Recognition},
  year      = {2020}
}"""


@register_alignment("gvb", citation=CITATION)
class GVB(AlignmentObjective):
    """Gradually vanishing bridges, GVB-GD, the baseline of MetaAlign.

    With y the classifier, z = bridge(f) `(B, K)` the generator's bridge and logits = y - z, p = softmax(logits), D the
    discriminator with its own bridge B, R gradient reversal of strength lambda(progress) and H the entropy::

        d     = sigmoid(D(R(p)) - B(R(p)))
        w_i   = exp(-R(H(p_i))), normalised to sum 1 in each domain with a constant denominator
        L_adv = (sum_s w_i BCE(d_i, 1) + sum_t w_i BCE(d_i, 0)) / 2
        L     = trade_off L_adv + discriminator_penalty mean|B| + generator_penalty mean|z|

    and the task loss gains `generator_penalty mean|z_s|`. The published code halves both penalties of z in the outer
    loss of task-first steps only; here they are the same in every step. The sigmoid and the cross entropy are computed
    together (no 1e-8 inside the logarithm).

    Source: Cui et al., "Gradually Vanishing Bridge for Adversarial Domain Adaptation", CVPR 2020, section 3, and the
    code of Wei et al., "MetaAlign", CVPR 2021.

    Args:
        feature_dim: Width D of the features.
        num_labels: Number K of classes.
        trade_off: Weight of the adversarial loss. Published: 1, which on small networks from scratch fell below
            source-only where 0.1 gained 15 points; so the default is 0.1, and the published recipe says 1.
        generator_penalty: Weight of mean|z|.
        discriminator_penalty: Weight of mean|B|.
        hidden: Width of the discriminator.
        dropout: Dropout of the discriminator.
        ceiling: Reversal strength at the end of training.
        label_smoothing: Smoothing of the domain labels (ELS), 0..0.5, such as 0.1.
        toalign: Align the predictions of the source's task-oriented features (ToAlign) instead of the plain ones; the
            penalty of z stays on the plain features.
    """

    def __init__(
        self,
        feature_dim: int,
        num_labels: int,
        *,
        trade_off: float = 0.1,
        generator_penalty: float = 1.0,
        discriminator_penalty: float = 1.0,
        hidden: int = 1024,
        dropout: float = 0.5,
        ceiling: float = 1.0,
        toalign: bool = False,
        label_smoothing: float = 0.0,
    ) -> None:
        super().__init__(feature_dim, num_labels)
        self.trade_off = trade_off
        self.generator_penalty = generator_penalty
        self.discriminator_penalty = discriminator_penalty
        self.ceiling = ceiling
        self.toalign = toalign
        self.label_smoothing = check_smoothing(label_smoothing, "gvb")
        self.bridge = nn.Linear(feature_dim, num_labels)
        nn.init.xavier_normal_(self.bridge.weight)
        nn.init.zeros_(self.bridge.bias)
        self.discriminator = DomainDiscriminator(num_labels, hidden, dropout, bridge=True)

    def forward(self, batch: AlignmentBatch) -> AlignmentOutput:
        """The adversarial loss and the penalties of both bridges, of a batch."""
        strength = reversal_strength(batch.progress, self.ceiling)
        aligned = task_oriented(batch, "gvb") if self.toalign else batch
        predictions = aligned.logits.softmax(1)
        logits, share = self.discriminator(reverse_gradient(predictions, strength))
        adversarial, parts = domain_loss(
            logits, batch, "gvb", entropy_weights(predictions, strength), self.label_smoothing
        )
        generator, discriminator = self.bridge(batch.features).abs().mean(), share.abs().mean()
        loss = (
            self.trade_off * adversarial
            + self.discriminator_penalty * discriminator
            + self.generator_penalty * generator
        )
        bridges = {"generator_bridge": generator.detach(), "discriminator_bridge": discriminator.detach()}
        return AlignmentOutput(loss, {**parts, **bridges}, self.generator_penalty * generator)

    def classifier_bridge(self) -> nn.Linear:
        """The generator's bridge."""
        return self.bridge

    def shared_penalty(self) -> str | None:
        """The penalty of z is in both losses."""
        return "generator bridge" if self.generator_penalty > 0 else None

    def task_penalty(self, features: Tensor) -> Tensor | None:
        """`generator_penalty mean|z_s|` of the labelled rows; None without a row."""
        return self.generator_penalty * self.bridge(features).abs().mean() if len(features) else None
