"""A detector by class: precision-recall curves and average precision."""

from __future__ import annotations

from .shown import ShownRun
from .style import GREY, TARGET, Drawn, new_figure, plot_changes, shortened

__all__ = ["average_precisions", "precision_recall"]

_MOST_CURVES = 12
_WHEN = {"before": (GREY, "--"), "after": (TARGET, "-")}


def precision_recall(run: ShownRun) -> Drawn | None:
    """Precision over recall of each class, at an IoU of .50."""
    found = {when: run.outputs[when] for when in _WHEN if "precision" in run.outputs.get(when, {})}
    if not found:
        return None
    last = list(found.values())[-1]
    known = [n for n in range(len(last["ap50"])) if not bool(last["ap50"][n].isnan())]
    if len(known) > _MOST_CURVES:
        change = last["ap50"] - next(iter(found.values()))["ap50"]
        known = sorted(sorted(known, key=lambda n: -abs(float(change[n])))[:_MOST_CURVES])
    if not known:
        return None
    columns = min(4, len(known))
    rows = -(-len(known) // columns)
    # The legend above and the words below take the same space of one row as of three.
    figure, panels = new_figure(columns, rows, width=max(2.6 * columns + 0.4, 4.0), height=2.4 + 0.7 / rows)
    recall = [mark / 100 for mark in range(101)]
    for axes, n in zip(panels, known, strict=False):
        for when, there in found.items():
            colour, line = _WHEN[when]
            axes.plot(recall, there["precision"][n].tolist(), line, color=colour, linewidth=1.8, label=when)
        values = ", ".join(f"{100 * float(there['ap50'][n]):.0f}" for there in found.values())
        axes.set_title(f"{shortened(_name(run, n), 18)}: AP {values.replace(', ', ' → ')}", fontsize=10)
        axes.set(xlim=(0, 1), ylim=(0, 1.02), box_aspect=0.9)
    for axes in panels[len(known) :]:
        axes.remove()
    figure.supxlabel("recall", fontsize=10)
    figure.supylabel("precision", fontsize=10)
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside upper right", ncols=2, frameon=False, fontsize=9)
    return Drawn("precision", figure, "Precision over recall of each class on the target's test images, at IoU .50.")


def average_precisions(run: ShownRun) -> Drawn | None:
    """Average precision of each class before and after."""
    found = {when: run.outputs[when]["ap50"] for when in _WHEN if "ap50" in run.outputs.get(when, {})}
    if set(found) != set(_WHEN):
        return None
    before, after = found["before"], found["after"]
    change = after - before
    known = [n for n in change.argsort(descending=True).tolist() if not bool(change[n].isnan())][:40]
    if not known:
        return None
    names = [_name(run, n) for n in known]
    axis = "average precision on the target at IoU .50, %"
    figure = plot_changes(before[known].tolist(), after[known].tolist(), names, axis)
    text = "Classes by what they gained; the numbers on the right are the changes in points."
    return Drawn("average_precision", figure, text)


def _name(run: ShownRun, number: int) -> str:
    return run.labels[number] if number < len(run.labels) else str(number)
