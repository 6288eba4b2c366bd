"""The README's figure, from the pinned runs of `accuracy.py` and `from_scratch.py`.

python benchmarks/figure.py docs/does_it_help.png
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import matplotlib
from matplotlib.axes import Axes

import accuracy
import from_scratch
from metaalign_hf.intervals import mean_and_interval

matplotlib.use("Agg")
COLOURS = {"source only": "#999999", "joint": "#0072b2", "remembered": "#d55e00"}  # Okabe and Ito's
LABELS = {"source only": "source only", "joint": "joint step", "remembered": "MetaAlign from memory"}


def draw(axes: Axes, title: str, pairs: list[str], scores: dict[str, list[float]], seeds: int) -> None:
    """Means and 95 % intervals of every form, one row a pair."""
    for place, (form, values) in enumerate(scores.items()):
        for row in range(len(pairs)):
            mean, half = mean_and_interval(values[row * seeds : (row + 1) * seeds])
            y = row + 0.22 * (place - (len(scores) - 1) / 2)
            label = LABELS[form] if row == 0 else None
            axes.errorbar(mean, y, xerr=half, fmt="o", color=COLOURS[form], capsize=3, label=label)
    axes.set_yticks(range(len(pairs)), pairs)
    axes.set_ylim(len(pairs) - 0.5, -0.5)
    axes.set_title(title, fontsize=9)
    axes.set_xlabel("target score, %")
    axes.grid(axis="x", alpha=0.3)


def main(path: Path) -> None:
    from matplotlib import pyplot

    runs = accuracy.Runs("none", Path(tempfile.gettempdir()) / "frozen_features.safetensors")
    steps = accuracy.SHORT
    frozen: dict[str, list[float]] = {}
    for form in COLOURS:
        objective = "none" if form == "source only" else "dann"
        frozen[form] = [v for family in accuracy.FAMILIES for v in runs.scores(objective, form, steps, family)]
    loop = from_scratch.Runs("none")
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(10, 3.6), layout="constrained", width_ratios=(5, 3))
    title = f"Frozen ImageNet features, DANN, {steps} steps"
    draw(left, title, accuracy.PAIRS_SHORT, frozen, len(accuracy.SEEDS))
    names = [" -> ".join(pair).replace("_digits", "") for pair in from_scratch.PAIRS]
    scratch = {form: loop.scores(form) for form in from_scratch.FORMS}
    draw(right, f"Network from scratch, DANN, {from_scratch.STEPS} steps", names, scratch, len(from_scratch.SEEDS))
    handles, labels = left.get_legend_handles_labels()
    title = "ten seeds, 95 % intervals"
    figure.legend(handles, labels, title=title, loc="outside lower center", ncols=3, frameon=False)
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        raise SystemExit(__doc__)
    main(Path(sys.argv[1]))
