"""Both domains' features before and after, in the plane, and how far apart they are."""

from __future__ import annotations

import importlib.util
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ...evaluation.domain_distance import proxy_a_distance
from .shown import STATES, ShownRun
from .style import COLOURS, SOURCE, TARGET, Drawn, new_figure, shortened

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["distances", "embedding", "has_tsne"]

_MOST_POINTS = 400


def has_tsne() -> bool:
    """Whether scikit-learn, the extra `report`, is there."""
    return importlib.util.find_spec("sklearn") is not None


def distances(run: ShownRun) -> dict[str, float]:
    """The proxy A-distance of the domains' features, by what it is of; empty where no features are kept."""
    return {
        word: proxy_a_distance(there["source_features"].float(), there["target_features"].float())[0]
        for word, there in run.models.items()
        if "source_features" in there and "target_features" in there
    }


def embedding(run: ShownRun) -> Drawn | None:
    """The features in the plane, by domain above and by class below; target classes are the predicted ones."""
    found = {
        word: run.outputs[when]
        for when, word in STATES.items()
        if {"source_features", "target_features"} <= run.outputs.get(when, {}).keys()
    }
    if not found:
        return None
    tsne = has_tsne()
    # One choice of classes and colours for all panels: the legend stands beside the last one.
    shown = _commonest(torch.cat([labels for there in found.values() for labels in _classes(there)]), len(COLOURS))
    figure, panels = new_figure(len(found), 2, width=5.0 * len(found), height=4.2)
    for column, (word, there) in enumerate(found.items()):
        pair = [there[f"{domain}_features"][:_MOST_POINTS].float() for domain in ("source", "target")]
        counts = [len(rows) for rows in pair]
        source, target = _plane(torch.cat(pair), tsne).split(counts)
        top, below = panels[column], panels[len(found) + column]
        _scatter(top, source, s=14, color=SOURCE, alpha=0.75, label="source")
        _scatter(top, target, s=18, color=TARGET, alpha=0.75, marker="^", label="target")
        top.set_title(word)
        top.legend(frameon=False, fontsize=9, markerscale=1.5)
        for domain, rows, labels, marker in zip(
            ("source", "target"), (source, target), _classes(there), "o^", strict=True
        ):
            label = labels[: len(rows)]
            others = ~torch.isin(label, torch.tensor(shown, dtype=label.dtype))
            _scatter(below, rows[others], s=10, color="#cccccc", marker=marker)
            for number, colour in zip(shown, COLOURS, strict=False):
                mine = label == number
                name = shortened(run.labels[number], 16) if domain == "source" and run.labels else None
                _scatter(below, rows[mine], s=16, color=colour, marker=marker, alpha=0.8, label=name)
        if column == len(found) - 1 and run.labels:
            below.legend(loc="upper left", bbox_to_anchor=(1, 1), frameon=False, fontsize=9, markerscale=1.5)
    for axes in panels:
        axes.set(xticks=[], yticks=[])
        axes.spines[:].set_visible(False)
    how = "t-SNE" if tsne else "the first two principal components (pip install 'metaalign-hf[report]' gives t-SNE)"
    text = (
        f"Features of up to {_MOST_POINTS} test images of each domain, by {how}: circles are source images, triangles "
        "target images. Above by domain; below by class, of the target as the model says it (the commonest classes in "
        "colour). Where adaptation works, the domains lie on each other, and the classes apart."
    )
    return Drawn("features", figure, text)


def _scatter(axes: Axes, rows: Tensor, **style: Any) -> None:
    axes.scatter(rows[:, 0].numpy(), rows[:, 1].numpy(), linewidths=0, **style)


def _plane(features: Tensor, tsne: bool) -> Tensor:
    """Features `(N, D)` in the plane, `(N, 2)`."""
    if not tsne or len(features) < 20:
        return features[:, :2] if features.shape[1] > 1 else torch.cat([features, torch.zeros_like(features)], 1)
    from sklearn.manifold import TSNE

    found = TSNE(perplexity=min(30, len(features) // 4), init="pca", random_state=0, max_iter=500)
    return torch.from_numpy(found.fit_transform(features.numpy()))


def _classes(there: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Classes of the source images, true where known, and of the target images as predicted."""
    return there["source_label" if "source_label" in there else "source_predicted"], there["target_predicted"]


def _commonest(labels: Tensor, most: int) -> list[int]:
    values, counts = labels.unique(return_counts=True)
    return sorted(values[counts.argsort(descending=True)[:most]].tolist())
