"""Does MetaAlign help, with which inner step, and under which alignment objective: an ablation and two comparisons.

    python benchmarks/accuracy.py            # every run that is not pinned yet, then the tables and the figure
    python benchmarks/accuracy.py --part 1/2 # half of the ablation and of the joint runs, for two processes at once

Embedded pairs, a small ResNet from scratch, target accuracy of the last checkpoint. Differences are paired by pair and
seed, with 95 % confidence intervals, against the joint step of the same objective under the same batch statistics: with
as many steps, and with as many more as a step of the form costs (`EQUAL_COMPUTE`).

The ablation runs DANN with seeds 10-14 under every form of the step. The comparisons, one under mixed batch
statistics and one under statistics by domain, then run three objectives with seeds 0-9, jointly and with the form
that a label-free figure of the ablation prefers: the largest mean nuclear norm (BNM) among forms whose source
accuracy is within one point of the joint step's. No target label takes part in that choice. All other settings are
those of `examples/digits.yaml` and each objective's defaults. The last table says how each validator ranks the last
checkpoints of all these runs, compared with their target accuracy.
"""

from __future__ import annotations

import argparse
import json
import statistics
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from rich.console import Console
from rich.table import Table
from scipy.stats import spearmanr

from metaalign_hf.evaluation import get_validator, validator_names
from runs import RESULTS, ROOT, machine, mean_and_interval, pinned_run

PAIRS = (("uci_digits", "mnist"), ("mnist", "uci_digits"), ("mnist", "mnist_m"))
BASE = {"training.source_steps": 100, "training.max_steps": 200, "training.evaluate_every": 0}
ABLATION_SEEDS = tuple(range(10, 15))
SEEDS = tuple(range(10))
TRUST = {"coordination.inner_rule": "trust_ratio", "coordination.inner_lr": 0.1}
SHARED = {**TRUST, "coordination.inner_scope": "last_stage"}
STEPS = {"": 200, ", 1.25 times the steps": 250, ", 1.5 times the steps": 300, ", twice the steps": 400}
BY_DOMAIN = ", statistics by domain"
MIXED_FORMS: dict[str, dict[str, Any]] = {
    **{f"joint{more}": {"coordination.method": "joint", "training.max_steps": steps} for more, steps in STEPS.items()},
    "joint, SDAT 0.02": {"coordination.method": "joint", "coordination.smoothing": 0.02},
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
CHEAPER = ("joint", "joint, 1.25 times the steps", "joint, 1.5 times the steps")
FORMS = {
    **MIXED_FORMS,
    **{
        f"{form}{BY_DOMAIN}": {**MIXED_FORMS[form], "training.batch_norm": "per_domain"}
        for form in (*CHEAPER, "fixed 1", "trust ratio 0.1, last stage shared")
    },
}
EQUAL_COMPUTE = {
    # With mixed live statistics both passes of a step are on both domains: it costs two joint steps, and with order 2
    # more than that. The published task pass is on the source alone, which is consistent with statistics by domain.
    **{form: "joint, twice the steps" for form in MIXED_FORMS if not form.startswith("joint")},
    "joint, SDAT 0.02": "joint, twice the steps",
    "fixed 1, source-only task pass (as published)": "joint, 1.5 times the steps",
    **{form: "joint, 1.25 times the steps" for form in MIXED_FORMS if form.endswith("last stage shared")},
    f"fixed 1{BY_DOMAIN}": f"joint, 1.5 times the steps{BY_DOMAIN}",
    f"trust ratio 0.1, last stage shared{BY_DOMAIN}": f"joint, 1.25 times the steps{BY_DOMAIN}",
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


def joint_of(form: str) -> str:
    """The joint step under the same batch statistics."""
    return f"joint{BY_DOMAIN}" if form.endswith(BY_DOMAIN) else "joint"


def prefer(joint: str) -> str:
    """The form of the step that is compared with a joint step."""
    least = mean_and_interval(figures("dann", joint, ABLATION_SEEDS, "source_accuracy"))[0] - 1
    forms = [form for form in FORMS if not form.startswith("joint") and joint_of(form) == joint]
    sound = [f for f in forms if mean_and_interval(figures("dann", f, ABLATION_SEEDS, "source_accuracy"))[0] >= least]
    return max(sound or forms, key=nuclear_norm)


def differences(objective: str, form: str, other: str, seeds: tuple[int, ...]) -> list[float]:
    """Paired differences of target accuracy, in points."""
    key = "target_accuracy_after"
    return [
        a - b for a, b in zip(figures(objective, form, seeds, key), figures(objective, other, seeds, key), strict=True)
    ]


def written(values: list[float], digits: int = 1) -> str:
    """A mean difference with its interval."""
    mean, half = mean_and_interval(values)
    return f"{mean:+.{digits}f} ± {half:.{digits}f}"


def ablation_table() -> Table:
    table = Table(title=f"Ablation: DANN, 3 pairs x {len(ABLATION_SEEDS)} seeds, points of target accuracy")
    for column in ("form of the step", "target", "at equal steps", "at equal compute", "source", "BNM (label-free)"):
        table.add_column(column)
    for form in FORMS:
        equal = EQUAL_COMPUTE.get(form)
        table.add_row(
            form,
            f"{mean_and_interval(figures('dann', form, ABLATION_SEEDS, 'target_accuracy_after'))[0]:.1f}",
            "" if form == joint_of(form) else written(differences("dann", form, joint_of(form), ABLATION_SEEDS)),
            "" if equal is None else written(differences("dann", form, equal, ABLATION_SEEDS)),
            f"{mean_and_interval(figures('dann', form, ABLATION_SEEDS, 'source_accuracy'))[0]:.1f}",
            f"{nuclear_norm(form):.3f}",
        )
    return table


def ablation_figure() -> None:
    """The ablation's differences, at equal steps and at equal compute, as `results/accuracy/ablation.png`."""
    forms = list(EQUAL_COMPUTE)[::-1]
    figure, axes = plt.subplots(figsize=(9, 5), layout="constrained")
    for shift, color, label in ((0.12, "tab:blue", "at equal steps"), (-0.12, "tab:orange", "at equal compute")):
        others = [joint_of(form) if label == "at equal steps" else EQUAL_COMPUTE[form] for form in forms]
        found = [
            mean_and_interval(differences("dann", f, o, ABLATION_SEEDS)) for f, o in zip(forms, others, strict=True)
        ]
        places = [index + shift for index in range(len(forms))]
        means, halves = zip(*found, strict=True)
        axes.errorbar(means, places, xerr=halves, fmt="o", color=color, label=label, capsize=3)
    axes.axvline(0, color="black", linewidth=0.8)
    axes.set_yticks(range(len(forms)), forms)
    axes.set_xlabel("points of target accuracy against joint (95 %)")
    axes.legend(loc="lower left")
    figure.savefig(RESULTS / "accuracy" / "ablation.png", dpi=120)
    plt.close(figure)


def comparison_table(form: str) -> Table:
    title = f"Comparison: joint and MetaAlign ({form}), {len(SEEDS)} seeds, target accuracy in %"
    table = Table(title=title)
    columns = ("mean", "at equal steps", "at equal compute")
    for column in ("objective", "step", *(f"{s} -> {t}" for s, t in PAIRS), *columns):
        table.add_column(column)
    sources = [[100 * one("dann", "joint", p, s)["target_accuracy_before"] for s in SEEDS] for p in PAIRS]
    cells = [mean_and_interval(values) for values in sources]
    mean = sum(value for value, _ in cells) / len(cells)
    table.add_row("", "source phase alone", *(f"{m:.1f} ± {h:.1f}" for m, h in cells), f"{mean:.1f}", "", "")
    joint, longer = joint_of(form), EQUAL_COMPUTE[form]
    for objective in OBJECTIVES:
        for step in (joint, longer, form):
            found = [
                mean_and_interval([100 * one(objective, step, pair, seed)["target_accuracy_after"] for seed in SEEDS])
                for pair in PAIRS
            ]
            mean = sum(value for value, _ in found) / len(found)
            gains = ("", "")
            if step == form:
                gains = (
                    written(differences(objective, form, joint, SEEDS)),
                    written(differences(objective, form, longer, SEEDS)),
                )
            name = "metaalign" if step == form else step.removesuffix(BY_DOMAIN)
            table.add_row(objective, name, *(f"{m:.1f} ± {h:.1f}" for m, h in found), f"{mean:.1f}", *gains)
    pooled = [
        written([x for objective in OBJECTIVES for x in differences(objective, form, other, SEEDS)], 2)
        for other in (joint, longer)
    ]
    table.add_row("all", "metaalign", "", "", "", "", *pooled)
    return table


def validator_table(forms: list[str]) -> Table:
    """How validators rank the last checkpoints of all runs on a pair, compared with target accuracy."""
    runs = {pair: [one("dann", f, pair, seed) for f in FORMS for seed in ABLATION_SEEDS] for pair in PAIRS}
    steps = [step for form in forms for step in (joint_of(form), EQUAL_COMPUTE[form], form)]
    for pair in PAIRS:
        runs[pair] += [one(objective, step, pair, seed) for objective in OBJECTIVES for step in steps for seed in SEEDS]
    count = len(runs[PAIRS[0]])
    table = Table(title=f"Spearman rank correlation of validator and target accuracy over {count} runs a pair")
    for column in ("validator", *(f"{s} -> {t}" for s, t in PAIRS), "mean"):
        table.add_column(column)
    rows = []
    for name in validator_names():
        validator, found = get_validator(name), []
        for pair in PAIRS:
            last = [run["evaluations"][-1] for run in runs[pair]]
            scores = [validator.score(evaluation[f"validator_{name}"]) for evaluation in last]
            found.append(float(spearmanr(scores, [run["target_accuracy_after"] for run in runs[pair]]).statistic))
        rows.append((statistics.fmean(found), name, found))
    for mean, name, found in sorted(rows, reverse=True):
        table.add_row(name, *(f"{value:+.2f}" for value in found), f"{mean:+.2f}")
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", default="1/1", help="i/n: make only the i-th of every n runs, and no table")
    part, parts = map(int, parser.parse_args().part.split("/"))
    ablation = [("dann", form, pair, seed) for form in FORMS for pair in PAIRS for seed in ABLATION_SEEDS]
    baselines = ("joint", f"joint{BY_DOMAIN}")
    joint = [
        (o, baseline, pair, seed) for baseline in baselines for o in OBJECTIVES for pair in PAIRS for seed in SEEDS
    ]
    for index, run in enumerate([*ablation, *joint]):
        if index % parts == part - 1:
            one(*run)
    if parts > 1:
        return
    forms = [prefer(baseline) for baseline in baselines]
    console = Console(width=160)
    for table in (ablation_table(), *map(comparison_table, forms), validator_table(forms)):
        console.print(table)
    ablation_figure()
    path = RESULTS / "accuracy" / "machine.json"
    path.write_text(json.dumps({"preferred": forms, **machine()}, indent=1) + "\n")


if __name__ == "__main__":
    main()
