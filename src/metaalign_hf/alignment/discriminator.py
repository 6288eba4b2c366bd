"""The domain discriminator of the adversarial objectives."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .base import AlignmentBatch
from .label_smoothing import smoothed_domains

__all__ = ["DomainDiscriminator", "domain_loss"]


class DomainDiscriminator(nn.Module):
    """`Linear-ReLU-Dropout` twice, then a linear layer to one domain logit; optionally less GVB's bridge.

    Weights are Kaiming normal and biases zero, as in the published code of GVB (Cui et al., CVPR 2020).

    Args:
        in_features: Width of the input.
        hidden: Width of both hidden layers.
        dropout: Dropout probability after each hidden layer.
        bridge: Whether a second linear layer on the last hidden layer is subtracted from the logit.
    """

    def __init__(self, in_features: int, hidden: int = 1024, dropout: float = 0.5, bridge: bool = False) -> None:
        super().__init__()
        if hidden < 1:
            raise ValueError(f"hidden is {hidden}; it must be 1 or more")
        if not 0 <= dropout < 1:
            raise ValueError(f"dropout is {dropout}; it must be in 0..1, 1 excluded")
        self.hidden = nn.Sequential(
            nn.Linear(in_features, hidden),
            nn.ReLU(),
            nn.Dropout(dropout),
            nn.Linear(hidden, hidden),
            nn.ReLU(),
            nn.Dropout(dropout),
        )
        self.output = nn.Linear(hidden, 1)
        self.bridge = nn.Linear(hidden, 1) if bridge else None
        for layer in self.modules():
            if isinstance(layer, nn.Linear):
                nn.init.kaiming_normal_(layer.weight)
                nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """Domain logits `(B,)` of inputs `(B, C)`, high for the source, and the bridge's share `(B,)` or None."""
        hidden = self.hidden(x)
        logit = self.output(hidden).squeeze(1)
        if self.bridge is None:
            return logit, None
        share = self.bridge(hidden).squeeze(1)
        return logit - share, share


def domain_loss(
    logits: Tensor,
    batch: AlignmentBatch,
    objective: str,
    weights: Tensor | None = None,
    smoothing: float = 0.0,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Binary cross entropy of the domain, source 1 and target 0, each domain counting half.

    `L = (sum_s w_i BCE_i / sum_s w_i + sum_t w_i BCE_i / sum_t w_i) / 2`, the denominators held constant.

    Args:
        logits: Domain logits `(B,)`.
        batch: The batch, for its domain labels.
        objective: Name of the objective, for errors.
        weights: Weights `(B,)`; all 1 by default.
        smoothing: Smoothing of the domain labels; see `smoothed_domains`.

    Returns:
        The loss, and as parts the loss itself and the discriminator's accuracy.

    Raises:
        UserError: If a domain has no rows.
    """
    is_source = (batch.domain_labels == 0).to(logits.dtype)
    errors = F.binary_cross_entropy_with_logits(logits, smoothed_domains(is_source, smoothing), reduction="none")
    losses = []
    for rows, share in zip(
        batch.split(errors, objective),
        (None, None) if weights is None else batch.split(weights, objective),
        strict=True,
    ):
        losses.append(rows.mean() if share is None else (share / share.sum().detach() * rows).sum())
    loss = torch.stack(losses).mean()
    right = ((logits > 0) == (is_source > 0)).float().mean()
    return loss, {"domain_loss": loss.detach(), "domain_accuracy": right.detach()}
