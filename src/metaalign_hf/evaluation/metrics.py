"""Accuracy of a classifier on a labelled view."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torchmetrics.classification import MulticlassConfusionMatrix

__all__ = ["Accuracy", "evaluate_classifier", "predict_probabilities"]


@dataclass(frozen=True)
class Accuracy:
    """Accuracy on n images, in 0..1.

    Attributes:
        accuracy: Share of images classified correctly.
        class_mean: Mean over classes of the share of each class's images (recall), as VisDA is reported; over the
            classes that occur.
        per_class: The recall of each class; NaN where the class does not occur.
        n: Number of images.
    """

    accuracy: float
    class_mean: float
    per_class: list[float]
    n: int


@torch.no_grad()
def evaluate_classifier(model: nn.Module, batches: Iterable[dict[str, Tensor]], num_labels: int) -> Accuracy:
    """Accuracy over batches with `pixel_values` and `labels`; with several processes, over all their batches.

    The model is put in eval mode and left in the mode it was in.

    Args:
        model: Called with `pixel_values`; its output has `logits`.
        batches: The batches, on any device; each process brings its own share.
        num_labels: Number of classes.

    Returns:
        The accuracy.
    """
    device = next(model.parameters()).device
    confusion = MulticlassConfusionMatrix(num_labels).to(device)
    was_training = model.training
    model.eval()
    for batch in batches:
        logits = model(pixel_values=batch["pixel_values"].to(device)).logits
        confusion.update(logits.argmax(1), batch["labels"].to(device))
    model.train(was_training)
    matrix = confusion.compute().double().cpu()
    counts, hits = matrix.sum(1), matrix.diagonal()
    recall = hits / counts
    total = int(counts.sum())
    return Accuracy(
        accuracy=float(hits.sum() / max(total, 1)),
        class_mean=float(recall.nanmean()),
        per_class=recall.tolist(),
        n=total,
    )


@torch.no_grad()
def predict_probabilities(model: nn.Module, batches: Iterable[dict[str, Any]]) -> Tensor:
    """Class probabilities `(N, K)` in the order of the batches, on the CPU; the model is left in eval mode."""
    device = next(model.parameters()).device
    model.eval()
    found = [model(pixel_values=batch["pixel_values"].to(device)).logits.float().softmax(1).cpu() for batch in batches]
    return torch.cat(found)
