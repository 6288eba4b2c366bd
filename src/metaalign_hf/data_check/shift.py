"""How far two domains are apart, and what a classifier of the source would lose, on features that are not trained."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..data.blocks import random_order
from ..data.images import read_images
from ..evaluation.domain_distance import fit_linear, proxy_a_distance
from ..models.origin import is_pretrained
from ..progress import stage

__all__ = ["Shift", "measure_shift"]

_BUDGET = 40.0
"""Seconds that computing features may take."""

_WANTED = {"source_train": 512, "source_test": 256, "target_train": 256, "target_evaluation": 256}
_FEWEST, _BATCH = 16, 16


@dataclass(frozen=True)
class Shift:
    """What was measured.

    Attributes:
        features: What the features are, in words.
        images: Number of images of each view.
        a_distance: Proxy A-distance, 0..2; None with too few images.
        told_apart: Share of held-out images whose domain a linear classifier tells, both domains counted alike.
        error: Half of the 95 % interval of `told_apart`.
        source_score: Accuracy of a linear classifier of the source on the source's test images; None without one.
        target_score: The same on the target's test images, from its labels, for this report only.
        images_per_second: Forward passes a second, images read and preprocessed.
    """

    features: str
    images: dict[str, int]
    a_distance: float | None
    told_apart: float | None
    error: float | None
    source_score: float | None
    target_score: float | None
    images_per_second: float


def measure_shift(task: Any, pair: Any) -> Shift:
    """How far source and target are apart on the features of the task's model as it starts.

    Args:
        task: The task; its model is left as it was.
        pair: Its domain pair as it was loaded: the task may hold views of the images in their place.
    """
    pair = pair.in_order(task.model.config.labels)
    views = {name: view for name in _WANTED if (view := getattr(pair, name)) is not None and len(view) > 0}
    wanted = {name: min(_WANTED[name], len(view)) for name, view in views.items()}
    found, labels, rate = _features(task, views, wanted)
    source, target = found.get("source_train"), found.get("target_train")
    distance = share = error = None
    if source is not None and target is not None and min(len(source), len(target)) >= _FEWEST:
        few = source[: max(len(target), _FEWEST)]
        distance, share = proxy_a_distance(few, target)
        error = 1.96 * (share * (1 - share) / (len(few) + len(target))) ** 0.5
    scores: dict[str, float | None] = {"source_test": None, "target_evaluation": None}
    if source is not None and "source_train" in labels:
        middle, scale = source.mean(0), source.std(0).clamp_min(1e-6)
        weight, bias = fit_linear((source - middle) / scale, labels["source_train"], len(pair.labels))
        for name in scores:
            if name in labels:
                said = ((found[name] - middle) / scale @ weight.T + bias).argmax(1)
                scores[name] = float((said == labels[name]).float().mean())
    return Shift(
        _words(task),
        {name: len(rows) for name, rows in found.items()},
        distance,
        share,
        error,
        scores["source_test"],
        scores["target_evaluation"],
        rate,
    )


def _words(task: Any) -> str:
    weights = "" if is_pretrained(task.model.config) else ", whose weights are random,"
    return f"features of {task.model_name}{weights}"


@torch.no_grad()
def _features(
    task: Any, views: dict[str, Any], wanted: dict[str, int]
) -> tuple[dict[str, Tensor], dict[str, Tensor], float]:
    """Features of a random choice of each view, their labels where they have any, and images per second."""
    model, was_training = task.model.eval(), task.model.training
    chosen = {name: random_order(views[name], [0, n])[: wanted[name]].tolist() for n, name in enumerate(wanted)}
    _batch(task, views["target_train"], chosen["target_train"][:2])  # what only the first forward pass does
    started = time.perf_counter()
    first, _ = _batch(task, views["target_train"], chosen["target_train"][:_BATCH])
    rate = max(len(first), 1) / (time.perf_counter() - started)
    share = min(1.0, _BUDGET * rate / sum(wanted.values()))
    chosen = {name: order[: max(_FEWEST, int(share * len(order)))] for name, order in chosen.items()}
    found: dict[str, Tensor] = {}
    labels: dict[str, Tensor] = {}
    with stage("features of both domains", sum(map(len, chosen.values()))) as shown:
        for name, order in chosen.items():
            rows: list[Tensor] = []
            kept: list[int] = []
            for start in range(0, len(order), _BATCH):
                indices = order[start : start + _BATCH]
                features, numbers = _batch(task, views[name], indices)
                rows += [features] if numbers else []
                kept += numbers
                shown.advance(len(indices))
            if not rows:
                continue
            found[name] = torch.cat(rows)
            if isinstance(known := getattr(views[name], "labels", None), Sequence):
                labels[name] = torch.tensor([known[index] for index in kept])
    model.train(was_training)
    return found, labels, rate


def _batch(task: Any, view: Any, indices: list[int]) -> tuple[Tensor, list[int]]:
    """Features of the images that can be read, and their numbers."""
    kept, read = read_images(view, indices, lambda *_: None)
    if not read:
        return torch.empty(0), []
    device = next(task.model.parameters()).device
    return task.features(task.pixel_values(read).to(device)).float().cpu(), kept
