"""Several sources: one objective of each source with the target, instead of one of their pool."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ..citations import cite
from ..errors import UserError
from .base import AlignmentBatch, AlignmentObjective, AlignmentOutput

__all__ = ["PerSource"]

CITATION = r"""@inproceedings{zhao2018adversarial,
  title     = {Adversarial Multiple Source Domain Adaptation},
  author    = {Zhao, Han and Zhang, Shanghang and Wu, Guanhang and Moura, Jos{\'e} M. F. and Costeira, Joao P. and
               Gordon, Geoffrey J.},
  booktitle = {Advances in Neural Information Processing Systems},
  year      = {2018}
}"""
cite("alignment/sources", CITATION)


class PerSource(AlignmentObjective):
    """The mean over the sources j of an objective on the rows of source j and of the target.

    With a discriminator per source this is the soft form of MDAN; an objective without parameters becomes the mean
    distance of the sources to the target.

    Source: Zhao et al., "Adversarial Multiple Source Domain Adaptation", NeurIPS 2018, section 4.

    Args:
        name: The objective's name, for errors.
        objectives: One instance for each source.

    Raises:
        UserError: If the objective has a bridge in the classifier, which all sources share.
    """

    uses_progress = False  # each inner objective says its own

    def __init__(self, name: str, objectives: Sequence[AlignmentObjective]) -> None:
        super().__init__(objectives[0].feature_dim, objectives[0].num_labels)
        if objectives[0].classifier_bridge() is not None:
            raise UserError(f"alignment {name}: sources must be 1, because its bridge is part of the one classifier")
        self.name = name
        self.each = nn.ModuleList(objectives)

    def forward(self, batch: AlignmentBatch) -> AlignmentOutput:
        """The mean of the objectives; parts are averaged too."""
        if batch.source_index is None:
            raise UserError(
                f"alignment {self.name}: sources is {len(self.each)}, but there is one source; list several in "
                "data.source, or leave sources out"
            )
        target = batch.domain_labels != 0
        outputs = [
            objective(batch.rows(target | (batch.source_index == number))) for number, objective in enumerate(self.each)
        ]
        parts: dict[str, Tensor] = {
            key: torch.stack([output.parts[key] for output in outputs]).mean() for key in outputs[0].parts
        }
        return AlignmentOutput(torch.stack([output.loss for output in outputs]).mean(), parts)
