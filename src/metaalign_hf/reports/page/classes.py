"""Figures of a classifier by class and by confidence, from labelled target test images."""

from __future__ import annotations

import torch
from torch import Tensor

from ...evaluation.calibration import reliability
from .shown import STATES, ShownRun
from .style import COLOURS, GREY, INK, TARGET, Drawn, new_figure, plot_changes, shortened

__all__ = ["changed_classes", "confusion", "gained_and_lost", "reliability_diagram"]

_MOST_CLASSES = 12


def confusion(run: ShownRun) -> Drawn | None:
    """Confusion matrices before, after and of the source-only run; of many classes those that are confused most."""
    found = _labelled(run)
    if not found:
        return None
    counts = {word: confusion_matrix(*pair, len(run.labels)) for word, pair in found.items()}
    last = list(counts.values())[-1]
    chosen = list(range(len(run.labels)))
    if len(chosen) > 25:
        wrong = last.sum(1) - last.diagonal()
        chosen = sorted(wrong.argsort(descending=True)[:25].tolist())
    names = [shortened(run.labels[n], 14) for n in chosen]
    width, height = ((5.5, 5.0), (9.5, 4.8), (10.6, 4.1))[len(counts) - 1]
    figure, panels = new_figure(len(counts), width=width, height=height)
    for axes, (word, matrix) in zip(panels, counts.items(), strict=True):
        share = (matrix / matrix.sum(1, keepdim=True).clamp_min(1))[chosen][:, chosen]
        image = axes.imshow((100 * share).numpy(), cmap="Blues", vmin=0, vmax=100)
        axes.grid(False)
        axes.set(title=word, xlabel="said", ylabel="true")
        axes.set_xticks(range(len(names)), names, rotation=90 if max(map(len, names)) > 2 else 0, fontsize=9)
        axes.set_yticks(range(len(names)), names, fontsize=9)
        if len(names) <= 12:
            for row, column in torch.cartesian_prod(*[torch.arange(len(names))] * 2).tolist():
                value = 100 * float(share[row, column])
                if value >= 0.5:
                    colour = "white" if value > 55 else INK
                    axes.text(column, row, f"{value:.0f}", ha="center", va="center", fontsize=8, color=colour)
    figure.colorbar(image, ax=panels, shrink=0.8, pad=0.01, label="% of the true class")
    part = "" if len(chosen) == len(run.labels) else f" The {len(chosen)} classes with most mistakes are shown."
    text = (
        f"Confusion matrices on {len(next(iter(found.values()))[0]):,} target test images, rows add up to 100 %.{part}"
    )
    return Drawn("confusion", figure, text)


def gained_and_lost(run: ShownRun) -> Drawn | None:
    """Recall of the classes that gained and lost most."""
    found = _labelled(run)
    if not {*STATES.values()} <= found.keys():
        return None
    before, after = (_recall(*found[word], len(run.labels)) for word in STATES.values())
    change = after - before
    known = [n for n in change.argsort(descending=True).tolist() if not bool(change[n].isnan())]
    chosen = known if len(known) <= _MOST_CLASSES else [*known[: _MOST_CLASSES // 2], *known[-_MOST_CLASSES // 2 :]]
    if not chosen:
        return None
    names = [run.labels[n] for n in chosen]
    axis = "% of the class's target images that are recognised"
    figure = plot_changes(before[chosen].tolist(), after[chosen].tolist(), names, axis)
    part = "" if len(chosen) == len(known) else f", the {len(chosen)} with the largest changes"
    text = f"Classes by what they gained{part}; the numbers on the right are the changes in points."
    return Drawn("classes", figure, text)


def reliability_diagram(run: ShownRun) -> Drawn | None:
    """Accuracy against confidence, with the expected calibration error."""
    found = _labelled(run)
    if not found:
        return None
    figure, panels = new_figure(len(found), width=3.4 * len(found) if len(found) > 1 else 4.5, height=3.7)
    keys = list(found)
    for axes, word, colour in zip(panels, keys, (GREY, TARGET, COLOURS[2]), strict=False):
        true, said = found[word]
        measured = reliability(run.models[word]["target_confidence"].float(), true == said)
        axes.plot([0, 1], [0, 1], "--", color=GREY, linewidth=1)
        filled = measured.counts > 0
        axes.bar(
            measured.edges[:-1][filled].tolist(),
            measured.accuracy[filled].tolist(),
            width=float(measured.edges[1]),
            align="edge",
            color=colour,
            edgecolor="white",
            alpha=0.85,
        )
        axes.plot(
            measured.confidence[filled].tolist(), measured.accuracy[filled].tolist(), "o", color=INK, markersize=3
        )
        axes.set(title=f"{word}\nECE {100 * measured.error:.1f} %", xlabel="confidence", xlim=(0, 1), ylim=(0, 1))
    panels[0].set_ylabel("share of right answers")
    text = (
        "Is the model right as often as it says? On the dashed line it is; below it it is too sure. ECE, the expected "
        "calibration error, is the mean distance to that line."
    )
    return Drawn("reliability", figure, text)


def changed_classes(run: ShownRun) -> tuple[int, int] | None:
    """How many target test images changed their class by adaptation, and of how many; needs no label."""
    before, after = (run.outputs.get(when, {}).get("target_predicted") for when in STATES)
    if before is None or after is None or len(before) != len(after):
        return None
    return int(before.ne(after).sum()), len(after)


def confusion_matrix(labels: Tensor, predicted: Tensor, classes: int) -> Tensor:
    """Counts by true class (row) and predicted class (column), `(K, K)`."""
    return torch.bincount(labels.long() * classes + predicted.long(), minlength=classes**2).reshape(classes, classes)


def _recall(labels: Tensor, predicted: Tensor, classes: int) -> Tensor:
    counts = confusion_matrix(labels, predicted, classes).double()
    return counts.diagonal() / counts.sum(1)


def _labelled(run: ShownRun) -> dict[str, tuple[Tensor, Tensor]]:
    """True and predicted classes before, after and of the source-only run, where the labels are known."""
    return {
        word: (outputs["target_label"], outputs["target_predicted"])
        for word, outputs in run.models.items()
        if "target_label" in outputs and run.labels
    }
