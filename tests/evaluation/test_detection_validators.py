"""Label-free validators of detectors on hand-made detections."""

import math

import pytest
import torch

from metaalign_hf.evaluation import Detections, get_validator
from metaalign_hf.evaluation.detection_validators import DETECTION_VALIDATORS, detection_agreement, detection_entropy


def found(*entries: tuple[list[float], float, int]) -> Detections:
    boxes, scores, labels = zip(*entries, strict=True) if entries else ([], [], [])
    return Detections(torch.tensor(boxes).reshape(-1, 4), torch.tensor(scores), torch.tensor(labels, dtype=torch.long))


BOX, FAR = [0.0, 0.0, 10.0, 10.0], [50.0, 50.0, 60.0, 60.0]


def test_agreement_by_hand():
    same = [found((BOX, 0.9, 0), (FAR, 0.4, 1))]
    assert detection_agreement(same, same) == pytest.approx(1.0)
    assert detection_agreement(same, [found((BOX, 0.9, 1))]) == 0.0, "another class does not agree"
    # Shifted by a quarter: IoU 0.6, the lower score counts, the second detection is not confirmed.
    shifted = [found(([2.5, 0.0, 12.5, 10.0], 0.5, 0))]
    assert detection_agreement(same, shifted) == pytest.approx(2 * 0.6 * 0.5 / (0.9 + 0.4 + 0.5))
    assert detection_agreement(same, [found((BOX, 0.9, 0), (BOX, 0.4, 0))]) == pytest.approx(1.8 / 2.6)


def test_a_detector_that_finds_nothing_is_not_rewarded():
    assert detection_agreement([found()], [found()]) == 0.0
    assert detection_agreement([found((BOX, 0.01, 0))], [found((BOX, 0.01, 0))]) == 0.0
    assert math.isnan(detection_entropy([found()])) and math.isnan(detection_agreement([], []))


def test_entropy_is_that_of_the_scores():
    assert detection_entropy([found((BOX, 0.5, 0))]) == pytest.approx(math.log(2))
    assert detection_entropy([found((BOX, 0.999, 0), (FAR, 0.02, 0))]) < 0.01


def test_the_names_mean_for_classifiers_what_they_mean_here():
    assert [get_validator(name).higher_is_better for name in DETECTION_VALIDATORS] == [True, False]
    assert "Higher is better" in detection_agreement.__doc__ and "Lower is better" in detection_entropy.__doc__
