"""Figures of a run, from its `metrics.jsonl`."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import UserError
from ..evaluation import get_validator
from .record import RunRecord

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["FIGURE_FILES", "better", "draw_curves", "running_mean", "selecting_validator", "write_figures"]

FIGURE_FILES = ("training.png",)
"""Every file that `write_figures` may write: curves alone, no image of any data set."""

_COLUMNS = 4
_SOURCE, _TARGET, _OTHER = "#0072b2", "#d55e00", "#444444"
_MARKS = {"selected": ("*", 12), "oracle": ("D", 13)}
_VALIDATOR = "validator_"

Points = list[tuple[float, float]]


def write_figures(record: RunRecord, folder: Path) -> list[Path]:
    """Plot a run: the figure that heads its tables, the losses, their cosine, and all validators.

    Each has a panel and an axis of its own. Marked are the step that was selected without target labels and the best
    one by target labels (the oracle); a source-only baseline is drawn beside the run where there is one.

    Args:
        record: The run's record; however short it is.
        folder: Where `training.png` goes; made when missing.

    Returns:
        The files written; none where the record holds nothing to draw.
    """
    figure = draw_curves(record)
    if figure is None:
        return []
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / FIGURE_FILES[0]
    figure.savefig(path, dpi=110, metadata={"Software": None})
    return [path]


def draw_curves(record: RunRecord) -> Figure | None:
    """The figure that `write_figures` writes; None where the record holds nothing to draw."""
    panels = [panel for panel in (_measure(record), *_losses(record), *_validators(record)) if panel is not None]
    if not panels:
        return None
    # Imported on use, because it is slow. The object interface works without a display.
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    columns = min(_COLUMNS, len(panels))
    rows = math.ceil(len(panels) / columns)
    figure = Figure(figsize=(4.2 * columns, 3.2 * rows), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False).flatten()
    source_steps = record.training.get("training", {}).get("source_steps", 0)
    last = max(line["step"] for line in record.metrics)
    for axes, draw in zip(grid, panels, strict=False):
        draw(axes)
        if 0 < source_steps < last:
            axes.axvline(source_steps, color="grey", linestyle="--", linewidth=0.8, label="adaptation starts")
        axes.set_xlim(-0.03 * last, 1.03 * last)
        axes.set_xlabel("step")
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        axes.grid(alpha=0.3)
    for axes in grid[len(panels) :]:
        axes.remove()
    handles, labels = grid[0].get_legend_handles_labels()
    if labels:
        # Below the panels, where it covers no curve.
        figure.legend(handles, labels, loc="outside lower center", ncols=min(columns, 3), fontsize=9)
    return figure


def _measure(record: RunRecord) -> Callable[[Axes], None] | None:
    """The panel of the figure that heads the tables, of both domains."""
    measure = record.measure
    curves = {domain: _points(record.evaluations, f"{domain}_{measure.name}", 100) for domain in ("source", "target")}
    if not any(curves.values()):
        return None

    def draw(axes: Axes) -> None:
        for (domain, points), colour in zip(curves.items(), (_SOURCE, _TARGET), strict=True):
            name = record.summary.get(domain)
            if points:
                label = _short(f"{domain} {name}" if name else domain)
                axes.plot(*_columns(points), "o-", markersize=4, color=colour, label=label)
        baseline = _points([line for line in record.baseline if "evaluation" in line], f"target_{measure.name}", 100)
        if baseline:
            axes.plot(*_columns(baseline), "s:", markersize=4, color=_OTHER, label="target, source-only baseline")
        for mark, step in _marked(record).items():
            shape, size = _MARKS[mark]
            at = [point for points in curves.values() for point in points if point[0] == step]
            label = {"selected": "selected without target labels", "oracle": "oracle: best by target labels"}[mark]
            _mark(axes, at[-1:] if mark == "oracle" else at, shape, size, f"{label} (step {step})")
        axes.set_title(f"test {measure.heading}, %")

    return draw


def _losses(record: RunRecord) -> list[Callable[[Axes], None]]:
    """A panel for each loss and one for the cosine: the logged values faint, their running mean on top."""
    steps = [line for line in record.metrics if "phase" in line]
    second = "target-loss" if _points(steps, "target_loss") else "alignment"
    titles = {
        "task_loss": "task loss",
        "alignment_loss": "alignment loss",
        "target_loss": "target loss",
        "cosine": f"cosine of task and {second} gradient",
    }

    def panel(name: str, title: str) -> Callable[[Axes], None]:
        def draw(axes: Axes) -> None:
            # Per phase, so that no running mean crosses the change of phase.
            for phase in ("source", "adaptation"):
                points = _points([line for line in steps if line["phase"] == phase], name)
                if not points:
                    continue
                at, values = _columns(points)
                mean = running_mean(values)
                if not np.array_equal(mean, values):
                    axes.plot(at, values, color=_OTHER, alpha=0.25, linewidth=0.8)
                axes.plot(at, mean, "o-" if len(points) < 10 else "-", markersize=3, color=_OTHER)
            if name == "cosine":
                axes.axhline(0, color="grey", linewidth=0.8)
            axes.set_title(title)

        return draw

    return [panel(name, title) for name, title in titles.items() if _points(steps, name)]


def _validators(record: RunRecord) -> list[Callable[[Axes], None]]:
    """A panel for each validator, the only ones that a run without target labels has of the target."""
    names = sorted({key for line in record.evaluations for key in line if key.startswith(_VALIDATOR)})
    marked = _marked(record)

    def panel(key: str) -> Callable[[Axes], None]:
        name, points = key.removeprefix(_VALIDATOR), _points(record.evaluations, key)

        def draw(axes: Axes) -> None:
            axes.plot(*_columns(points), "o-", markersize=4, color=_OTHER)
            if beside := _points([line for line in record.baseline if "evaluation" in line], key):
                axes.plot(*_columns(beside), "s:", markersize=4, color=_OTHER, alpha=0.5)
            for mark, step in marked.items():
                _mark(axes, [point for point in points if point[0] == step], *_MARKS[mark])
            chooses = name == selecting_validator(record)
            direction = f" ({told})" if (told := better(name)) else ""
            title = f"{name.replace('_', ' ')}{direction}" + (", selects" if chooses else "")
            axes.set_title(title, fontweight="bold" if chooses else "normal")

        return draw

    return [panel(key) for key in names if _points(record.evaluations, key)]


def running_mean(values: np.ndarray) -> np.ndarray:
    """The mean of a tenth of the values around each one, fewer at both ends; short series as they are."""
    half = len(values) // 20
    if half == 0:
        return values
    window = np.ones(2 * half + 1)
    return np.convolve(values, window, "same") / np.convolve(np.ones(len(values)), window, "same")


def _marked(record: RunRecord) -> dict[str, int]:
    """The steps to mark, by what they are."""
    rows = record.summary.get("checkpoints") or []
    return {mark: row["step"] for mark in _MARKS for row in rows if row["checkpoint"].startswith(mark)}


def selecting_validator(record: RunRecord) -> str | None:
    """Name of the validator that selected, as `selected (label-free, NAME)` states it."""
    rows = record.summary.get("checkpoints") or []
    named = [row["checkpoint"] for row in rows if row["checkpoint"].startswith("selected")]
    return named[0].rpartition(", ")[2].rstrip(")") if named else None


def better(name: str) -> str:
    """The direction of a validator in words, where this version knows it."""
    try:
        return "higher is better" if get_validator(name).higher_is_better else "lower is better"
    except UserError:
        return ""


def _mark(axes: Axes, points: Points, shape: str, size: float, label: str | None = None) -> None:
    if points:
        axes.plot(
            *_columns(points),
            shape,
            markersize=size,
            markerfacecolor="none" if shape == "D" else "gold",
            markeredgecolor="black",
            label=label,
            zorder=5,
        )


def _points(lines: Iterable[dict[str, Any]], key: str, factor: float = 1.0) -> Points:
    """Steps and values of the finite points."""
    found = [(line["step"], line.get(key)) for line in lines]
    return [(step, factor * v) for step, v in found if isinstance(v, int | float) and math.isfinite(v)]


def _columns(points: Points) -> tuple[np.ndarray, np.ndarray]:
    steps, values = np.array(points, dtype=float).T
    return steps, values


def _short(text: str, most: int = 34) -> str:
    return text if len(text) <= most else f"{text[: most - 1]}…"
