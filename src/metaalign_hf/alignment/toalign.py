"""ToAlign: of the source, only what the classifier uses for the image's own class is aligned."""

from __future__ import annotations

import dataclasses

import torch

from ..citations import cite
from ..errors import UserError
from .base import AlignmentBatch

__all__ = ["task_oriented"]

EPSILON = 1e-12

CITATION = """\
@inproceedings{wei2021toalign,
  title     = {{ToAlign}: Task-oriented Alignment for Unsupervised Domain Adaptation},
  author    = {Wei, Guoqiang and Lan, Cuiling and Zeng, Wenjun and Zhang, Zhizheng and Chen, Zhibo},
  booktitle = {Advances in Neural Information Processing Systems},
  year      = {2021}
}"""
cite("alignment/toalign", CITATION)


def task_oriented(batch: AlignmentBatch, objective: str) -> AlignmentBatch:
    """The batch with the positive features of its source rows, and their logits.

    With f a source feature `(D,)`, y its label and W the weight of the classifier `(K, D)`, held constant in the mask::

        f_p    = s (W_y * f),  s = sqrt(|f|^2 / |W_y * f|^2)
        logits = logits + W (f_p - f), the classifier on f_p

    The scale s keeps the energy of the feature. Target rows stay as they are.

    Source: Wei et al., "ToAlign: Task-oriented Alignment for Unsupervised Domain Adaptation", NeurIPS 2021, section
    3.2.

    Args:
        batch: The batch.
        objective: Name of the objective, for errors.

    Returns:
        A batch of the same shapes.

    Raises:
        UserError: If the batch lacks the labels of its source rows, or the classifier's weight.
    """
    source = batch.domain_labels == 0
    labels, weight = batch.labels, batch.classifier_weight
    if labels is None or bool((labels[source] < 0).any()):
        raise UserError(f"alignment {objective}: toalign needs the label of every source row of the batch")
    if weight is None:
        raise UserError(f"alignment {objective}: toalign needs the weight of a linear classifier")
    features = batch.features
    masked = weight.detach()[labels.clamp_min(0)] * features
    # Both energies have the same tiny offset: a feature of zeros stays one, with finite derivatives.
    energy, left = (x.square().sum(1, keepdim=True) + EPSILON for x in (features, masked))
    positive = torch.where(source.unsqueeze(1), (energy / left).sqrt() * masked, features)
    return dataclasses.replace(batch, features=positive, logits=batch.logits + (positive - features) @ weight.T)
