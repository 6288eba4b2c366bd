"""The heads of an image classifier: a bottleneck, a linear classifier, alignment objectives with their bridges."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn
from transformers.modeling_outputs import ModelOutput

from ..alignment import IGNORED_LABEL, AlignmentBatch, AlignmentOutput, build_alignment
from ..coordination import find_stages
from ..errors import UserError
from .base import MetaAlignModel

__all__ = ["ClassifierHeads", "MetaAlignOutput"]


@dataclass
class MetaAlignOutput(ModelOutput):
    """Output of `MetaAlignForImageClassification`.

    Attributes:
        loss: The losses that were asked for, summed; None where neither labels nor domain labels were given.
        logits: Class scores `(B, K)`.
        task_loss: Cross entropy of the labelled rows, plus the objectives' task penalty; scalar.
        alignment_loss: Weighted sum of the alignment objectives; scalar.
        features: The features `(B, D)` that the classifier and the objectives see.
        parts: Named parts of the alignment loss, detached scalars.
    """

    loss: Tensor | None = None
    logits: Tensor | None = None
    task_loss: Tensor | None = None
    alignment_loss: Tensor | None = None
    features: Tensor | None = None
    parts: dict[str, Tensor] | None = None


class ClassifierHeads(MetaAlignModel):
    """What a classifier has on top of its backbone's pooled feature, and how it folds into one linear layer."""

    def _build_heads(self, backbone_dim: int) -> None:
        config = self.config
        self.bottleneck = None
        if config.bottleneck_dim is not None:
            narrow = nn.Linear(backbone_dim, config.bottleneck_dim)
            nn.init.normal_(narrow.weight, std=0.005)
            nn.init.constant_(narrow.bias, 0.1)
            layers: list[nn.Module] = [narrow]
            if config.bottleneck_kind != "linear":
                layers.append(nn.BatchNorm1d(config.bottleneck_dim))
            if config.bottleneck_kind is None:
                layers.append(nn.ReLU())
            self.bottleneck = nn.Sequential(*layers)
        config.feature_dim = config.bottleneck_dim or backbone_dim
        # Marks the place where the heads begin, for those who hook into it; see `stage_entry`.
        self.head_entry = nn.Identity()
        self.classifier = nn.Linear(config.feature_dim, config.num_labels)
        nn.init.xavier_normal_(self.classifier.weight)
        nn.init.zeros_(self.classifier.bias)
        self.alignment = build_alignment(config.alignment, config.feature_dim, config.num_labels)

    def _aligned(self, batch: AlignmentBatch) -> AlignmentOutput:
        """The alignment loss of the rows that take part in it."""
        assert self.alignment is not None
        if self.alignment_scale is not None:
            batch = batch.scaled(self.alignment_scale)
        taking_part = batch.domain_labels != IGNORED_LABEL
        return self.alignment(batch if bool(taking_part.all()) else batch.rows(taking_part))

    def _task_loss(self, features: Tensor, logits: Tensor, labels: Tensor) -> Tensor:
        labelled = labels != IGNORED_LABEL
        # The sum over the count, not the mean: a batch without a labelled row has loss 0, not NaN.
        loss = F.cross_entropy(logits, labels, ignore_index=IGNORED_LABEL, reduction="sum")
        loss = loss / labelled.sum().clamp_min(1)
        penalty = self.alignment.task_penalty(features[labelled]) if self.alignment is not None else None
        return loss if penalty is None else loss + penalty

    def _role_of(self) -> Callable[[str, nn.Parameter], str]:
        """The backbone; bottleneck, classifier and bridges; the rest of the objectives."""
        bridges = self.alignment.classifier_bridges() if self.alignment is not None else []
        bridge_ids = {id(parameter) for bridge in bridges for parameter in bridge.parameters()}

        def role(name: str, parameter: nn.Parameter) -> str:
            if name.startswith("alignment.") and id(parameter) not in bridge_ids:
                return "discriminator"
            return "backbone" if name.startswith("backbone.") else "head"

        return role

    def stage_entry(self, scope: Literal["last_stage", "head"]) -> nn.Module:
        """The submodule with which the last stage of the backbone, or what follows the backbone, begins.

        Raises:
            UserError: If the backbone has no stages that can be told apart.
        """
        if scope == "head":
            return self.head_entry
        try:
            last = [stage for stage in find_stages(self) if stage.entry is not None][-1]
        except ValueError as error:
            raise UserError(f"backbone {self.config.backbone_name}: {error}") from error
        assert last.entry is not None
        return last.entry

    def effective_classifier(self) -> tuple[Tensor, Tensor]:
        """Weight `(K, D)` and bias `(K,)` of the classifier less the objectives' bridges."""
        weight: Tensor = self.classifier.weight
        bias: Tensor = self.classifier.bias
        for bridge in self.alignment.classifier_bridges() if self.alignment is not None else ():
            weight, bias = weight - bridge.weight, bias - bridge.bias
        return weight, bias

    def folded_classifier(self) -> tuple[Tensor, Tensor]:
        """Weight `(K, D)` and bias `(K,)` of the classifier on the backbone's feature, with bridges and bottleneck.

        With the bottleneck's layer A, a and its batch normalisation y = s x + t in evaluation mode::

            W' = W diag(s) A,   b' = b + W (s a + t)

        Raises:
            UserError: If the bottleneck ends in a ReLU.
        """
        weight, bias = self.effective_classifier()
        if self.bottleneck is None:
            return weight, bias
        if (reason := self.no_native_form()) is not None:
            raise UserError(reason)
        narrow, *norms = self.bottleneck
        assert isinstance(narrow, nn.Linear)
        for norm in norms:
            assert isinstance(norm, nn.BatchNorm1d) and norm.running_mean is not None and norm.running_var is not None
            scale = norm.weight * (norm.running_var + norm.eps).rsqrt()
            bias = bias + weight @ (norm.bias - norm.running_mean * scale)
            weight = weight * scale
        return weight @ narrow.weight, bias + weight @ narrow.bias

    def no_native_form(self) -> str | None:
        """Why the model has no native form; None where it has one."""
        if self.bottleneck is not None and isinstance(self.bottleneck[-1], nn.ReLU):
            return (
                "a bottleneck that ends in a ReLU has no place in a plain transformers model; train with "
                "model.bottleneck_kind linear or batch_norm, which fold into the classifier"
            )
        return None
