"""Does MetaAlign help, with which inner step, and under which alignment objective: an ablation and a comparison.

    python benchmarks/accuracy.py            # every run that is not pinned yet, then the tables
    python benchmarks/accuracy.py --part 1/2 # half of the runs, for two processes side by side

Embedded pairs, a small ResNet from scratch, equal numbers of steps, target accuracy of the last checkpoint.
Differences are paired by pair and seed, against the joint step of the same objective, with 95 % confidence intervals.

The ablation runs DANN with seeds 10-12 under every form of the step. The comparison then runs three objectives with
seeds 0-4, jointly and with the form that the ablation's label-free figure prefers: the largest mean nuclear norm (BNM)
among forms whose source accuracy is within one point of the joint step's. No target label takes part in that choice.
All other settings are those of `examples/digits.yaml` and each objective's defaults.
"""

from __future__ import annotations

import argparse
import json
from typing import Any

from rich.console import Console
from rich.table import Table

from runs import RESULTS, ROOT, machine, mean_and_interval, pinned_run

PAIRS = (("uci_digits", "mnist"), ("mnist", "uci_digits"), ("mnist", "mnist_m"))
BASE = {"training.source_steps": 100, "training.max_steps": 200, "training.evaluate_every": 0}
ABLATION_SEEDS = (10, 11, 12)
SEEDS = (0, 1, 2, 3, 4)
TRUST = {"coordination.inner_rule": "trust_ratio", "coordination.inner_lr": 0.1}
SHARED = {**TRUST, "coordination.inner_scope": "last_stage"}
FORMS: dict[str, dict[str, Any]] = {
    "joint": {"coordination.method": "joint"},
    "joint, twice the steps": {"coordination.method": "joint", "training.max_steps": 400},
    "fixed 1": {},
    "fixed 1, source-only task pass (as published)": {"training.batch_norm": "train"},
    "normalised 0.5": {"coordination.inner_rule": "normalised", "coordination.inner_lr": 0.5},
    "trust ratio 0.02": {**TRUST, "coordination.inner_lr": 0.02},
    "trust ratio 0.1": TRUST,
    "trust ratio 0.1, task first": {**TRUST, "coordination.roles": "task"},
    "trust ratio 0.1, warm-up and guard": {
        **TRUST,
        "coordination.inner_warmup": 0.5,
        "coordination.inner_guard": True,
    },
    "trust ratio 0.1, group weights": {**TRUST, "coordination.groups": "stage"},
    "fixed 1, last stage shared": {"coordination.inner_scope": "last_stage"},
    "trust ratio 0.1, order 2": {**TRUST, "coordination.order": 2},
    "trust ratio 0.1, last stage shared": SHARED,
}
OBJECTIVES: dict[str, Any] = {
    "dann": {"name": "dann"},
    "cdan": {"name": "cdan"},
    "gvb": {"name": "gvb"},
}


def one(objective: str, form: str, pair: tuple[str, str], seed: int) -> dict[str, Any]:
    """The pinned summary of one run."""
    overrides = {
        **BASE,
        "model.alignment": OBJECTIVES[objective],
        "data.source": pair[0],
        "data.target": pair[1],
        "training.seed": seed,
        **FORMS[form],
    }
    name = f"accuracy/{objective}-{form}-{pair[0]}-{pair[1]}-{seed}".translate(str.maketrans(" ", "_", ",()"))
    return pinned_run(name, ROOT / "examples" / "digits.yaml", overrides)


def figures(objective: str, form: str, seeds: tuple[int, ...], key: str) -> list[float]:
    """One figure of all runs of a form, in points, by pair and seed."""
    return [100 * one(objective, form, pair, seed)[key] for pair in PAIRS for seed in seeds]


def nuclear_norm(form: str) -> float:
    """Mean nuclear norm of the target predictions of the last checkpoints, which no label enters."""
    values = [
        one("dann", form, pair, seed)["evaluations"][-1]["validator_bnm"] for pair in PAIRS for seed in ABLATION_SEEDS
    ]
    return sum(values) / len(values)


def prefer() -> str:
    """The form of the step that the comparison uses."""
    joint = mean_and_interval(figures("dann", "joint", ABLATION_SEEDS, "source_accuracy"))[0]
    forms = [form for form in FORMS if not form.startswith("joint")]
    sound = [
        form
        for form in forms
        if mean_and_interval(figures("dann", form, ABLATION_SEEDS, "source_accuracy"))[0] >= joint - 1
    ]
    return max(sound or forms, key=nuclear_norm)


def difference(objective: str, form: str, seeds: tuple[int, ...], key: str = "target_accuracy_after") -> str:
    """Paired difference to the joint step, with its interval."""
    pairs = zip(figures(objective, form, seeds, key), figures(objective, "joint", seeds, key), strict=True)
    mean, half = mean_and_interval([a - b for a, b in pairs])
    return f"{mean:+.1f} ± {half:.1f}"


def ablation_table() -> Table:
    table = Table(title="Ablation: DANN, 3 pairs x 3 seeds, points of target accuracy")
    for column in ("form of the step", "target", "against joint", "source", "BNM (label-free)"):
        table.add_column(column)
    for form in FORMS:
        table.add_row(
            form,
            f"{mean_and_interval(figures('dann', form, ABLATION_SEEDS, 'target_accuracy_after'))[0]:.1f}",
            "" if form == "joint" else difference("dann", form, ABLATION_SEEDS),
            f"{mean_and_interval(figures('dann', form, ABLATION_SEEDS, 'source_accuracy'))[0]:.1f}",
            f"{nuclear_norm(form):.3f}",
        )
    return table


def comparison_table(form: str) -> Table:
    table = Table(title=f"Comparison: joint and MetaAlign ({form}), 5 seeds, target accuracy in %")
    for column in ("objective", "step", *(f"{s} -> {t}" for s, t in PAIRS), "mean", "paired difference"):
        table.add_column(column)
    sources = [[100 * one("dann", "joint", p, s)["target_accuracy_before"] for s in SEEDS] for p in PAIRS]
    cells = [mean_and_interval(values) for values in sources]
    mean = sum(value for value, _ in cells) / len(cells)
    table.add_row("", "source phase alone", *(f"{m:.1f} ± {h:.1f}" for m, h in cells), f"{mean:.1f}", "")
    for objective in OBJECTIVES:
        for step in ("joint", form):
            found = [
                mean_and_interval([100 * one(objective, step, pair, seed)["target_accuracy_after"] for seed in SEEDS])
                for pair in PAIRS
            ]
            mean = sum(value for value, _ in found) / len(found)
            gain = "" if step == "joint" else difference(objective, step, SEEDS)
            name = "joint" if step == "joint" else "metaalign"
            table.add_row(objective, name, *(f"{m:.1f} ± {h:.1f}" for m, h in found), f"{mean:.1f}", gain)
    pooled = [
        a - b
        for objective in OBJECTIVES
        for a, b in zip(
            figures(objective, form, SEEDS, "target_accuracy_after"),
            figures(objective, "joint", SEEDS, "target_accuracy_after"),
            strict=True,
        )
    ]
    mean, half = mean_and_interval(pooled)
    table.add_row("all", "metaalign", "", "", "", "", f"{mean:+.2f} ± {half:.2f}")
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", default="1/1", help="i/n: make only the i-th of every n runs, and no table")
    part, parts = map(int, parser.parse_args().part.split("/"))
    ablation = [("dann", form, pair, seed) for form in FORMS for pair in PAIRS for seed in ABLATION_SEEDS]
    joint = [(objective, "joint", pair, seed) for objective in OBJECTIVES for pair in PAIRS for seed in SEEDS]
    for index, run in enumerate([*ablation, *joint]):
        if index % parts == part - 1:
            one(*run)
    if parts > 1:
        return
    form = prefer()
    for objective in OBJECTIVES:
        for pair in PAIRS:
            for seed in SEEDS:
                one(objective, form, pair, seed)
    console = Console(width=150)
    console.print(ablation_table())
    console.print(comparison_table(form))
    path = RESULTS / "accuracy" / "machine.json"
    path.write_text(json.dumps({"preferred": form, **machine()}, indent=1) + "\n")


if __name__ == "__main__":
    main()
