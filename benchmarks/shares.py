"""Alignment by a share of the task gradient against weights set by hand, for classifiers on frozen features.

    python benchmarks/shares.py   # every run that is not pinned yet, then the table

Pairs, network, budget and seeds 0 to 4 of `accuracy.py`, joint step: with `coordination.alignment_share: 0.25`, fixed
before the runs, against the weight 1, from which the objectives come, at the learning rate that `accuracy.py` chose for
the latter without target labels. Score: mean over classes of the target's recall, in points; differences are paired by
pair and seed, with 95 % intervals (Student's t). For detectors see `detection.py`.
"""

from __future__ import annotations

import tempfile
from itertools import chain
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from rich import box
from rich.table import Table

import accuracy
import frozen
from metaalign_hf.coordination import AlignmentShare, Joint
from metaalign_hf.intervals import with_interval
from readme import publish
from runs import RESULTS, PinnedRows

OBJECTIVES = ("dann", "cdan")
SEEDS = tuple(range(5))
SHARE = 0.25
FOLDER = RESULTS / "shares"


def by_share(optimizer: torch.optim.Optimizer, network: frozen.Network) -> Joint:
    """A joint step whose alignment gradient is scaled."""
    joint = Joint(optimizer, module=network)
    joint.share = AlignmentShare(SHARE)
    return joint


class Runs:
    """Runs that are pinned in `results/shares/*.jsonl`, beside those of `accuracy.py`."""

    def __init__(self, features: Path) -> None:
        self.rows, self.accuracy = PinnedRows(FOLDER, "1"), accuracy.Runs("1", features)

    def scores(self, objective: str, family: str) -> tuple[list[dict[str, float]], list[dict[str, float]]]:
        """The runs by share and those by weight, by pair and seed."""
        rate = self.accuracy.rate(objective, "joint", family)
        cells = [(pair, seed) for pair in accuracy.FAMILIES[family] for seed in SEEDS]

        def make(pair: Any, seed: int) -> dict[str, float]:
            domains = self.accuracy.domains(pair)
            return frozen.run(*domains, objective, by_share, lr=rate, steps=accuracy.SHORT, seed=seed)

        return (
            [self.rows((objective, rate, " -> ".join(p), s), lambda p=p, s=s: make(p, s)) for p, s in cells],
            [self.accuracy(objective, "joint", rate, accuracy.SHORT, p, s) for p, s in cells],
        )


def table(runs: Runs) -> Table:
    """Scores by share and by weight, and their differences."""
    found = Table(box=box.MARKDOWN, title=f"share {SHARE} against weight 1, {len(SEEDS)} seeds")
    for column in ("objective", "share 0.25", "weight 1", "solar", "digits", "all pairs", "source"):
        found.add_column(column)
    for objective in OBJECTIVES:
        cells = {family: runs.scores(objective, family) for family in accuracy.FAMILIES}
        share, weight = (list(chain(*(pair[side] for pair in cells.values()))) for side in (0, 1))
        apart = [_differences(*pair) for pair in cells.values()]
        found.add_row(
            objective,
            *(f"{100 * fmean(run['target_class_mean'] for run in every):.1f}" for every in (share, weight)),
            *(with_interval(each, "+") for each in (*apart, list(chain(*apart)))),
            with_interval(_differences(share, weight, "source_class_mean"), "+"),
        )
    return found


def _differences(
    first: list[dict[str, float]], second: list[dict[str, float]], name: str = "target_class_mean"
) -> list[float]:
    return [100 * (a[name] - b[name]) for a, b in zip(first, second, strict=True)]


def tables() -> dict[str, Table]:
    """The table of the README, from pinned runs."""
    return {"shares": table(Runs(Path()))}


def main() -> None:
    torch.set_num_threads(1)
    publish({"shares": table(Runs(Path(tempfile.gettempdir()) / "frozen_features.safetensors"))})


if __name__ == "__main__":
    main()
