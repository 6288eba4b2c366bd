"""Figures of a classifier on a labelled view."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torchmetrics.classification import MulticlassConfusionMatrix
from torchmetrics.functional.classification import binary_average_precision
from torchmetrics.utilities.distributed import gather_all_tensors

__all__ = ["Accuracy", "evaluate_classifier", "predict_probabilities", "wilson_interval"]


@dataclass(frozen=True)
class Accuracy:
    """Figures on n images, in 0..1.

    Attributes:
        accuracy: Share of images classified correctly.
        balanced_accuracy: Mean over classes of the share of each class's images (recall), as VisDA is reported; over
            the classes that occur.
        average_precision: Area under the precision-recall curve of the class probabilities. With two classes that of
            the positive class, which is the last label; otherwise the mean over the classes that occur. NaN where the
            positive class does not occur.
        per_class: The recall of each class; NaN where the class does not occur.
        n: Number of images.
        precision: Share of the images said to be of a class that are of it, for each class; NaN where none was said to.
        counts: Number of images of each class.
    """

    accuracy: float
    balanced_accuracy: float
    average_precision: float
    per_class: list[float]
    n: int
    precision: list[float]
    counts: list[int]

    @property
    def interval(self) -> tuple[float, float]:
        """The 95 % interval of the accuracy, by Wilson."""
        return wilson_interval(self.accuracy, self.n)

    @property
    def class_intervals(self) -> list[tuple[float, float]]:
        """The 95 % interval of each class's recall, by Wilson; 0 to 1 where the class does not occur."""
        return [wilson_interval(share, n) for share, n in zip(self.per_class, self.counts, strict=True)]


def wilson_interval(share: float, n: int) -> tuple[float, float]:
    """The 95 % score interval of a share (Wilson, JASA 1927), which holds for few trials and for shares of 0 and 1.

    Args:
        share: The share of successes, in 0..1.
        n: Number of trials.

    Returns:
        Its ends; 0 and 1 without trials.
    """
    if n == 0:
        return 0.0, 1.0
    z = 1.959964
    centre, shrink = share + z * z / (2 * n), 1 + z * z / n
    half = z * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return max(0.0, (centre - half) / shrink), min(1.0, (centre + half) / shrink)


@torch.no_grad()
def evaluate_classifier(
    model: nn.Module,
    batches: Iterable[dict[str, Tensor]],
    num_labels: int,
    keep: Callable[[Any, Tensor], object] = lambda *_: None,
) -> Accuracy:
    """Figures over batches with `pixel_values` and `labels`; with several processes, over all their batches.

    The model is put in eval mode and left in the mode it was in.

    Args:
        model: Called with `pixel_values`; its output has `logits`.
        batches: The batches, on any device; each process brings its own share.
        num_labels: Number of classes.
        keep: Called with the model's output and the labels of each batch, for whatever else is made of them.

    Returns:
        The figures.
    """
    device = next(model.parameters()).device
    confusion = MulticlassConfusionMatrix(num_labels).to(device)
    was_training = model.training
    probabilities = [torch.empty(0, num_labels, device=device)]
    labels = [torch.empty(0, dtype=torch.long, device=device)]
    model.eval()
    for batch in batches:
        output = model(pixel_values=batch["pixel_values"].to(device))
        logits = output.logits
        labels.append(batch["labels"].to(device))
        keep(output, labels[-1])
        probabilities.append(logits.float().softmax(1))
        confusion.update(logits.argmax(1), labels[-1])
    model.train(was_training)
    matrix = confusion.compute().double().cpu()
    counts, hits = matrix.sum(1), matrix.diagonal()
    recall = hits / counts
    total = int(counts.sum())
    return Accuracy(
        accuracy=float(hits.sum() / max(total, 1)),
        balanced_accuracy=float(recall.nanmean()),
        average_precision=_average_precision(_of_all_processes(probabilities), _of_all_processes(labels)),
        per_class=recall.tolist(),
        n=total,
        precision=(hits / matrix.sum(0)).tolist(),
        counts=[int(count) for count in counts],
    )


def _of_all_processes(rows: list[Tensor]) -> Tensor:
    """The rows of all processes, which may hold different numbers of them, on the CPU."""
    own = torch.cat(rows)
    return torch.cat(gather_all_tensors(own) if dist.is_available() and dist.is_initialized() else [own]).cpu()


def _average_precision(probabilities: Tensor, labels: Tensor) -> float:
    """Average precision of the last of two classes, or the mean over the classes that occur."""
    count = probabilities.shape[1]
    classes = [1] if count == 2 else range(count)
    of_class = [binary_average_precision(probabilities[:, c], labels == c) for c in classes if (labels == c).any()]
    return float(torch.stack(of_class).mean()) if of_class else math.nan


@torch.no_grad()
def predict_probabilities(model: nn.Module, batches: Iterable[dict[str, Any]]) -> Tensor:
    """Class probabilities `(N, K)` in the order of the batches, on the CPU; the model is left in eval mode."""
    device = next(model.parameters()).device
    model.eval()
    found = [model(pixel_values=batch["pixel_values"].to(device)).logits.float().softmax(1).cpu() for batch in batches]
    return torch.cat(found)
