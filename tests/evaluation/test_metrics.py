"""Figures of a classifier against scikit-learn's."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from sklearn.metrics import accuracy_score, average_precision_score, balanced_accuracy_score
from torch import nn

from metaalign_hf.evaluation import evaluate_classifier


class Told(nn.Module):
    """Its logits are the first pixels of each image."""

    def __init__(self, classes: int):
        super().__init__()
        self.classes, self.scale = classes, nn.Parameter(torch.ones(()))

    def forward(self, pixel_values):
        return SimpleNamespace(logits=self.scale * pixel_values.flatten(1)[:, : self.classes])


def images(classes: int, n: int = 53):
    """Images whose first pixels lean to their class, and their labels, more of the early classes."""
    generator = np.random.default_rng(0)
    labels = np.minimum(generator.geometric(0.6, n) - 1, classes - 1)
    pixels = generator.normal(size=(n, 3, 2, 2)).astype(np.float32)
    pixels.reshape(n, -1)[np.arange(n), labels] += 1
    return torch.from_numpy(pixels), torch.from_numpy(labels)


def figures(pixels, labels, classes):
    batches = [{"pixel_values": p, "labels": y} for p, y in zip(pixels.split(20), labels.split(20), strict=True)]
    return evaluate_classifier(Told(classes), batches, classes)


@pytest.mark.parametrize("classes", [2, 4])
def test_figures_are_those_of_scikit_learn(classes):
    pixels, labels = images(classes)
    found = figures(pixels, labels, classes)
    logits = pixels.flatten(1)[:, :classes]
    said, probabilities = logits.argmax(1), logits.double().softmax(1)
    assert found.accuracy == pytest.approx(accuracy_score(labels, said))
    assert found.balanced_accuracy == pytest.approx(balanced_accuracy_score(labels, said))
    if classes == 2:
        expected = average_precision_score(labels, probabilities[:, 1])
    else:
        expected = average_precision_score(np.eye(classes)[labels], probabilities, average="macro")
    assert found.average_precision == pytest.approx(expected)
    assert found.accuracy != pytest.approx(found.balanced_accuracy)


@pytest.mark.filterwarnings("error")
def test_classes_without_images_do_not_count():
    pixels, labels = images(3)
    known = figures(pixels[:, :, :, :], labels, 3)
    more = torch.cat([pixels.flatten(1)[:, :3], torch.full((len(pixels), 9), -60.0)], 1).reshape(-1, 3, 2, 2)
    found = figures(more, labels, 5)
    assert found.average_precision == pytest.approx(known.average_precision)
    assert found.balanced_accuracy == pytest.approx(known.balanced_accuracy)
    pixels, labels = images(2)
    assert math.isnan(figures(pixels, torch.zeros_like(labels), 2).average_precision)
