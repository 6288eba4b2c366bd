"""How the figures of a report look: colours that colour-blind people tell apart, and text that is readable at 100 %."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..figures import running_mean

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = [
    "COLOURS",
    "GREY",
    "INK",
    "SOURCE",
    "TARGET",
    "Drawn",
    "new_figure",
    "plot_changes",
    "plot_series",
    "shortened",
]

# Okabe and Ito's palette.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")
SOURCE, TARGET, INK, GREY = COLOURS[0], COLOURS[1], "#222222", "#888888"


@dataclass(frozen=True)
class Drawn:
    """A figure of a report.

    Attributes:
        name: Name of its file, without an ending.
        figure: The figure, as matplotlib holds it.
        caption: What it shows, in words.
    """

    name: str
    figure: Figure
    caption: str

    @property
    def width(self) -> int:
        """How wide it is on the page, in its pixels."""
        return round(96 * self.figure.get_figwidth())


def new_figure(columns: int = 1, rows: int = 1, width: float = 10.0, height: float = 3.6) -> tuple[Figure, list[Axes]]:
    """A figure with a row or grid of panels.

    Args:
        columns: Panels beside each other.
        rows: Rows of panels.
        width: Width of all of them, in inches of the page.
        height: Height of a row.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height * rows), layout="constrained")
    panels = list(figure.subplots(rows, columns, squeeze=False).flatten())
    for axes in panels:
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.25)
        axes.set_axisbelow(True)
    return figure, panels


def plot_series(
    axes: Axes, points: Sequence[tuple[float, float]], colour: str, label: str | None, **style: Any
) -> None:
    """A noisy series: its values faint, and their running mean on top."""
    import numpy as np

    steps, values = np.array(points, dtype=float).T
    mean = running_mean(values)
    if not np.array_equal(mean, values):
        axes.plot(steps, values, color=colour, alpha=0.2, linewidth=0.8)
    marker = {"marker": "o", "markersize": 3} if len(points) < 10 else {}
    axes.plot(steps, mean, color=colour, label=label, **{"linewidth": 1.8, **marker, **style})


def plot_changes(before: Sequence[float], after: Sequence[float], names: Sequence[str], axis: str) -> Figure:
    """Shares before and after, a row for each name, with the changes in points on the right.

    Args:
        before: Shares, 0..1.
        after: The same afterwards.
        names: What the rows are called, from above.
        axis: What the shares are, for the axis.
    """
    figure, (axes,) = new_figure(width=7.5, height=0.9 + 0.36 * len(names))
    rows = list(range(len(names)))[::-1]
    old, new = ([100 * share for share in shares] for shares in (before, after))
    axes.hlines(rows, old, new, color=GREY, linewidth=2)
    axes.plot(old, rows, "o", color="white", markeredgecolor=INK, markersize=8, label="before")
    axes.plot(new, rows, "o", color=TARGET, markersize=8, label="after")
    for row, first, last in zip(rows, old, new, strict=True):
        axes.text(103, row, f"{last - first:+.0f}", va="center", fontsize=10, color=INK)
    axes.set_yticks(rows, [shortened(name) for name in names])
    axes.set(xlabel=axis, xlim=(-3, 102), ylim=(-0.6, len(rows) - 0.4))
    axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=2, frameon=False)
    return figure


def shortened(text: str, most: int = 28) -> str:
    """A text, cut where it is too long for an axis or a legend."""
    return text if len(text) <= most else f"{text[: most - 1]}…"
