"""Validators of detectors: which of several detectors is best on the target, told without a target label.

They have the names and directions of the corresponding validators for classifiers, so that `training.select_by` means
the same for both.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torchvision.ops import box_iou

from ..citations import cite
from .citations import ENTROPY, UNBIASED_MEAN_TEACHER
from .detection import Detections

__all__ = ["DETECTION_VALIDATORS", "detection_agreement", "detection_entropy"]

DETECTION_VALIDATORS = ("agreement", "entropy")
"""Validators that detectors have."""
cite("detection_validator/agreement", UNBIASED_MEAN_TEACHER)
cite("detection_validator/entropy", ENTROPY)

_SURE = 0.1
"""Least score of a detection that counts for the entropy; a query on background has less."""


def detection_agreement(first: Sequence[Detections], second: Sequence[Detections]) -> float:
    """How far two views of the same images lead to the same detections, in 0..1. Higher is better.

    Detections of one class are matched one to one, best first, at an IoU of at least .5. With s the scores and the sums
    over an image's detections::

        agreement = 2 sum_matched IoU min(s, s') / (sum s + sum s'), the mean over images

    An image in which neither view shows anything of weight counts 0: a detector that finds nothing agrees with itself
    without knowing anything. Falls for confident mistakes that are stable.

    Args:
        first: What was found in each image.
        second: What was found in another view of it, in the same coordinates.

    Returns:
        The agreement; NaN without images.

    Source: the consistency under augmentation that mean teachers train for (e.g. Deng et al., "Unbiased Mean Teacher
    for Cross-domain Object Detection", CVPR 2021), as a measure; the formula is ours.
    """
    found = [_agreement(a, b) for a, b in zip(first, second, strict=True)]
    return sum(found) / len(found) if found else math.nan


def _agreement(a: Detections, b: Detections) -> float:
    total = float(a.scores.sum() + b.scores.sum())
    if total < _SURE:
        return 0.0
    overlaps = box_iou(a.boxes, b.boxes) * (a.labels[:, None] == b.labels[None])
    shared, free = 0.0, torch.ones(len(b.scores), dtype=torch.bool)
    for row in range(len(a.scores)):
        if not bool(free.any()):
            break
        overlap, pick = (overlaps[row] * free).max(0)
        if overlap >= 0.5:
            free[pick] = False
            shared += float(overlap * torch.minimum(a.scores[row], b.scores[pick]))
    return 2 * shared / total


def detection_entropy(found: Sequence[Detections]) -> float:
    """Mean binary entropy of the scores of detections above .1, in nats, 0..log 2. Lower is better.

    Falls for confident collapse, and knows nothing of objects that are missed.

    Args:
        found: What was found in each image.

    Returns:
        The entropy; NaN where nothing was found.
    """
    scores = torch.cat([f.scores[f.scores >= _SURE] for f in found]) if found else torch.zeros(0)
    if len(scores) == 0:
        return math.nan
    share = scores.double().clamp(1e-9, 1 - 1e-9)
    return float(-(share * share.log() + (1 - share) * (1 - share).log()).mean())
