"""What every alignment objective takes and gives."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

from torch import Tensor, nn

from ..errors import UserError
from .gradient_scale import scale_gradient

__all__ = ["IGNORED_LABEL", "AlignmentBatch", "AlignmentObjective", "AlignmentOutput", "weighted_sum"]

IGNORED_LABEL = -100
"""Label of a row without a label, as every target row; as a domain label, that of a row left out of alignment."""


@dataclass
class AlignmentBatch:
    """A batch with rows of both domains.

    Attributes:
        features: Features `(B, D)`.
        logits: Class scores `(B, K)`, bridges included.
        domain_labels: `(B,)`, 0 for the source and 1.. for the target.
        progress: Training progress in 0..1.
        labels: Class indices `(B,)`, -100 where unknown, as for every target row; None where there are none.
        classifier_weight: Weight `(K, D)` of the classifier, bridges included.
        source_index: `(B,)`, the number of each source row's domain where there are several sources; None with one.
    """

    features: Tensor
    logits: Tensor
    domain_labels: Tensor
    progress: float = 1.0
    labels: Tensor | None = None
    classifier_weight: Tensor | None = None
    source_index: Tensor | None = None

    def rows(self, kept: Tensor) -> AlignmentBatch:
        """The batch of the rows that the mask `kept` `(B,)` names."""
        return replace(
            self,
            features=self.features[kept],
            logits=self.logits[kept],
            domain_labels=self.domain_labels[kept],
            labels=None if self.labels is None else self.labels[kept],
            source_index=None if self.source_index is None else self.source_index[kept],
        )

    def scaled(self, scale: Tensor) -> AlignmentBatch:
        """The batch, whose gradient on its way into the network is multiplied by a scalar; see `scale_gradient`."""
        weight = self.classifier_weight
        return replace(
            self,
            features=scale_gradient(self.features, scale),
            logits=scale_gradient(self.logits, scale),
            classifier_weight=None if weight is None else scale_gradient(weight, scale),
        )

    def split(self, values: Tensor, objective: str, at_least: int = 1) -> tuple[Tensor, Tensor]:
        """The source rows and the target rows of `values`.

        Args:
            values: `(B, ...)`.
            objective: Name of the objective, for the error.
            at_least: Rows of each domain that the objective needs.

        Raises:
            UserError: If a domain has fewer rows.
        """
        source = self.domain_labels == 0
        found = {"source": int(source.sum()), "target": int((~source).sum())}
        for domain, rows in found.items():
            if rows < at_least:
                raise UserError(
                    f"alignment {objective}: the batch has {rows} {domain} rows, and it needs {at_least} of each domain"
                )
        return values[source], values[~source]

    def target_rows(self, values: Tensor, objective: str) -> Tensor:
        """The target rows of `values`, for an objective that looks at the target alone.

        Args:
            values: `(B, ...)`.
            objective: Name of the objective, for the error.

        Raises:
            UserError: If there is none.
        """
        target = self.domain_labels != 0
        if not bool(target.any()):
            raise UserError(f"alignment {objective}: the batch has 0 target rows, and it needs 1")
        return values[target]

    def linear_weight(self, objective: str) -> Tensor:
        """The weight `(K, D)` of the classifier, for an objective that needs it.

        Args:
            objective: Name of the objective, for the error.

        Raises:
            UserError: If the classifier is not linear.
        """
        if self.classifier_weight is None:
            raise UserError(f"alignment {objective}: it needs the weight of a linear classifier")
        return self.classifier_weight


@dataclass
class AlignmentOutput:
    """What an objective computes.

    Attributes:
        loss: The alignment loss, scalar.
        parts: Named parts of it, detached scalars, for the logs.
        penalty: The part of it that stands in the task loss as well, scalar; see `AlignmentObjective.shared_penalty`.
    """

    loss: Tensor
    parts: dict[str, Tensor] = field(default_factory=dict)
    penalty: Tensor | None = None


class AlignmentObjective(nn.Module):
    """An alignment objective; subclass it, implement `forward` and register it with `register_alignment`.

    Keyword-only arguments of the constructor are the objective's options; their defaults must be JSON values.
    Parameters are initialised in the constructor, and buffers must be persistent (`from_pretrained` loses others).

    Args:
        feature_dim: Width D of the features.
        num_labels: Number K of classes.

    Attributes:
        uses_progress: Whether the loss depends on `AlignmentBatch.progress`; a run whose loss does not may be made
            longer. Set it to False where that is so.
    """

    uses_progress: ClassVar[bool] = True

    def __init__(self, feature_dim: int, num_labels: int) -> None:
        super().__init__()
        self.feature_dim = feature_dim
        self.num_labels = num_labels

    def forward(self, batch: AlignmentBatch) -> AlignmentOutput:
        """The alignment loss of a batch."""
        raise NotImplementedError

    def classifier_bridge(self) -> nn.Linear | None:
        """A linear map `D -> K` that is subtracted from the classifier (GVB's generator bridge), or None."""
        return None

    def task_penalty(self, features: Tensor) -> Tensor | None:
        """A scalar that is added to the task loss, from the features `(B_s, D)` of the labelled rows, or None."""
        return None

    def shared_penalty(self) -> str | None:
        """Name of a penalty that stands in both losses: `task_penalty`, and `AlignmentOutput.penalty` in `forward`.

        The reported cosine of the two gradients leaves it out, since it would make them agree whatever they are.
        """
        return None


def weighted_sum(objectives: nn.ModuleDict, weights: dict[str, float], batch: Any) -> AlignmentOutput:
    """The weighted sum of what several objectives compute.

    Args:
        objectives: The objectives by name, at least one.
        weights: Weight of each.
        batch: What each is called with.

    Returns:
        The sum; parts are prefixed with the objective's name where there are several.
    """
    losses: list[Tensor] = []
    penalties: list[Tensor] = []
    parts: dict[str, Tensor] = {}
    for name, objective in objectives.items():
        output = objective(batch)
        losses.append(weights[name] * output.loss)
        if output.penalty is not None:
            penalties.append(weights[name] * output.penalty)
        prefix = f"{name}/" if len(objectives) > 1 else ""
        parts.update({f"{prefix}{key}": value for key, value in output.parts.items()})
    penalty = sum(penalties[1:], penalties[0]) if penalties else None
    return AlignmentOutput(sum(losses[1:], losses[0]), parts, penalty)
