"""A classifier on images some of which are of no class that it knows: which ones it says are unknown, and how well."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean, harmonic_mean

import torch
from torch import Tensor, nn
from torchmetrics.classification import MulticlassConfusionMatrix

__all__ = ["OpenSet", "evaluate_open_set", "is_unknown", "open_set"]


@dataclass(frozen=True)
class OpenSet:
    """Figures on n images, in 0..1.

    Attributes:
        known: Mean over the known classes that occur of the share of their images that is said to be of them (OS*).
        unknown: Share of the images of unknown classes that is said to be unknown (UNK).
        hos: Harmonic mean of both (HOS); 0 where one of them is.
        per_class: The share of each class, unknown last; NaN where it does not occur.
        counts: Number of images of each.
        n: Number of images.
    """

    known: float
    unknown: float
    hos: float
    per_class: list[float]
    counts: list[int]
    n: int

    @property
    def shares(self) -> dict[str, float]:
        """The three figures by name."""
        return {"known": self.known, "unknown": self.unknown, "hos": self.hos}

    def __str__(self) -> str:
        known, unknown, hos = ("-" if math.isnan(v) else f"{100 * v:.1f} %" for v in self.shares.values())
        return f"known classes {known} (OS*), unknown {unknown} (UNK), their harmonic mean {hos} (HOS)"


def open_set(per_class: Sequence[float], counts: Sequence[int]) -> OpenSet:
    """The figures of a model whose last class is `unknown`.

    Accuracy does not show whether unknown images are told apart, for it follows their number. Source of the harmonic
    mean: Bucci et al., "On the Effectiveness of Image Rotation for Open Set Domain Adaptation", ECCV 2020, section 4.1.

    Args:
        per_class: The recall of each class; NaN where no image is of it.
        counts: Number of images of each.
    """
    known = [share for share in per_class[:-1] if not math.isnan(share)]
    both = fmean(known) if known else math.nan, per_class[-1]
    hos = math.nan if any(map(math.isnan, both)) else harmonic_mean(both)
    return OpenSet(*both, hos, list(per_class), list(counts), sum(counts))


def is_unknown(probabilities: Tensor) -> Tensor:
    """Whether images are unknown: the entropy of their class probabilities is above half of its maximum, `log(K) / 2`.

    It is fixed by the number of classes alone, so that no label and no image takes part.

    Source: Saito et al., "Universal Domain Adaptation through Self Supervision" (DANCE), NeurIPS 2020, section 3.3.

    Args:
        probabilities: `(N, K)`.

    Returns:
        `(N,)`, bool.
    """
    return torch.special.entr(probabilities).sum(1) > math.log(probabilities.shape[1]) / 2


@torch.no_grad()
def evaluate_open_set(model: nn.Module, batches: Iterable[dict[str, Tensor]], num_labels: int) -> OpenSet:
    """Figures over batches with `pixel_values` and `labels`; the model is left in eval mode.

    Args:
        model: Called with `pixel_values`; its output has `logits`.
        batches: The batches; the label of an unknown image is `num_labels`.
        num_labels: Number K of classes that the model knows.
    """
    device = next(model.parameters()).device
    confusion = MulticlassConfusionMatrix(num_labels + 1).to(device)
    model.eval()
    for batch in batches:
        probabilities = model(pixel_values=batch["pixel_values"].to(device)).logits.float().softmax(1)
        said = torch.where(is_unknown(probabilities), num_labels, probabilities.argmax(1))
        confusion.update(said, batch["labels"].to(device))
    matrix = confusion.compute().double().cpu()
    counts = matrix.sum(1)
    return open_set((matrix.diagonal() / counts).tolist(), [int(count) for count in counts])
