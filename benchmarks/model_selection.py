"""Which validator selects best without target labels, and does selection beat the last checkpoint.

    python benchmarks/model_selection.py

Joint DANN and GVB on three embedded pairs, three seeds, evaluated every 50 of 500 adaptation steps. It chose the
default of `training.select_by`; so its own row is in-sample, with target labels, and optimistic.
"""

from __future__ import annotations

import json
import statistics
import tempfile
from pathlib import Path
from typing import Any

from rich import box
from rich.table import Table
from scipy.stats import spearmanr

from metaalign_hf import adapt, load_config
from metaalign_hf.evaluation import get_validator, validator_names
from metaalign_hf.intervals import with_interval
from metaalign_hf.training.selection import Evaluation, choose
from readme import publish
from runs import RESULTS, ROOT, machine, may_run

PAIRS = (("uci_digits", "mnist"), ("mnist", "mnist_m"), ("mnist", "uci_digits"))
TOLERANCE = 0.05


def pinned_evaluations(source: str, target: str, alignment: str, seed: int) -> list[dict[str, Any]]:
    """The evaluations of a run with all validators; read from its JSON where the same run was made before."""
    overrides = {
        "data.source": source,
        "data.target": target,
        "model.alignment": alignment,
        "coordination.method": "joint",
        "training.source_steps": 200,
        "training.max_steps": 500,
        "training.evaluate_every": 50,
        "training.seed": seed,
    }
    path = RESULTS / "model_selection" / f"{source}-{target}-{alignment}-{seed}.json"
    if path.exists():
        found = json.loads(path.read_text())
        if found["overrides"] == overrides:
            return found["evaluations"]
    may_run(path.stem)
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "run"
        adapt(load_config(ROOT / "examples" / "digits.yaml", {**overrides, "training.output_dir": str(output)}))
        lines = map(json.loads, (output / "metrics.jsonl").read_text().splitlines())
        evaluations = [line for line in lines if "validator_bnm" in line]
    path.parent.mkdir(parents=True, exist_ok=True)
    pinned = {"config": "digits.yaml", "overrides": overrides, "machine": machine(), "evaluations": evaluations}
    path.write_text(json.dumps(pinned, indent=1) + "\n")
    return evaluations


def gains(runs: list[list[dict[str, Any]]], name: str) -> tuple[list[float], float]:
    """Points of target accuracy over the last checkpoint in every run, and the mean rank correlation with it."""
    validator = get_validator(name)
    found, correlations = [], []
    for lines in runs:
        scores = [validator.score(line[f"validator_{name}"]) for line in lines]
        target = [100 * line["target_accuracy"] for line in lines]
        pairs = zip(lines, scores, target, strict=True)
        offered = [Evaluation(line["step"], line["source_accuracy"], score, value) for line, score, value in pairs]
        found.append((choose(offered, TOLERANCE).target or 0.0) - target[-1])
        correlations.append(float(spearmanr(scores, target)[0]))
    return found, statistics.fmean(correlations)


def tables() -> dict[str, Table]:
    """The tables of the README; runs that are not pinned are made."""
    runs = [
        pinned_evaluations(source, target, alignment, seed)
        for source, target in PAIRS
        for alignment in ("dann", "gvb")
        for seed in (0, 1, 2)
    ]
    mean = {
        "source only": statistics.fmean(100 * lines[0]["target_accuracy"] for lines in runs),
        "last": statistics.fmean(100 * lines[-1]["target_accuracy"] for lines in runs),
        "oracle": statistics.fmean(max(100 * line["target_accuracy"] for line in lines) for lines in runs),
    }
    means = Table(box=box.MARKDOWN, title="Target accuracy, mean of all runs (%)")
    for name in mean:
        means.add_column(name)
    means.add_row(*(f"{value:.1f}" for value in mean.values()))
    table = Table(box=box.MARKDOWN, title=f"Selected less last checkpoint, target accuracy in points, {len(runs)} runs")
    for column in ("validator", "mean, 95 % interval", "worst run", "best run", "rank correlation"):
        table.add_column(column)
    for name in validator_names():
        found, correlation = gains(runs, name)
        table.add_row(
            name, with_interval(found, "+"), f"{min(found):+.1f}", f"{max(found):+.1f}", f"{correlation:+.2f}"
        )
    return {"model selection, means": means, "model selection": table}


if __name__ == "__main__":
    publish(tables())
