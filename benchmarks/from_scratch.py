"""The package's own loop on a network from scratch: joint and remembered step on digits, with DANN.

    python benchmarks/from_scratch.py              # every run that is not pinned yet, then the table
    python benchmarks/from_scratch.py --part 1/2   # half of the runs, for two processes at once

`examples/digits.yaml` (a small ResNet, AdamW at its learning rate) with statistics by domain, 100 source steps and 300
of adaptation, three pairs, ten seeds. Score: target test accuracy of the last model in points; differences are paired
by pair and seed, with 95 % intervals (Student's t).
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

from rich import box
from rich.table import Table

from metaalign_hf import adapt, load_config
from metaalign_hf.intervals import with_interval
from readme import publish
from runs import RESULTS, ROOT, PinnedRows, machine

CONFIG = ROOT / "examples" / "digits.yaml"
FOLDER = RESULTS / "from_scratch"
PAIRS = (("uci_digits", "mnist"), ("mnist", "uci_digits"), ("mnist", "mnist_m"))
FORMS: dict[str, dict[str, Any]] = {
    "joint": {"coordination.method": "joint"},
    "remembered": {"coordination.method": "metaalign", "coordination.direction": "remembered"},
}
SEEDS = tuple(range(10))
STEPS = 300


class Runs:
    """Runs that are pinned in `results/from_scratch/*.jsonl` and never repeated; new ones go into `part`.jsonl."""

    def __init__(self, part: str) -> None:
        self.rows = PinnedRows(FOLDER, part)

    def __call__(self, form: str, pair: tuple[str, str], seed: int) -> dict[str, float]:
        """The figures of a run."""
        return self.rows((form, " -> ".join(pair), seed), lambda: one(form, pair, seed))

    def scores(self, form: str) -> list[float]:
        """Target accuracy by pair and seed, in points."""
        return [100 * self(form, pair, seed)["target_accuracy"] for pair in PAIRS for seed in SEEDS]


def one(form: str, pair: tuple[str, str], seed: int) -> dict[str, float]:
    """Train in a folder that is thrown away."""
    with tempfile.TemporaryDirectory() as folder:
        overrides = {
            "data.source": pair[0],
            "data.target": pair[1],
            "model.alignment": "dann",
            "training.batch_norm": "per_domain",
            "training.source_steps": 100,
            "training.max_steps": STEPS,
            "training.evaluate_every": 0,
            "training.seed": seed,
            "training.output_dir": f"{folder}/run",
            **FORMS[form],
        }
        summary = adapt(load_config(CONFIG, overrides))
        lines = map(json.loads, Path(folder, "run", "metrics.jsonl").read_text().splitlines())
        last = [line for line in lines if "evaluation" in line][-1]
    return {
        "target_accuracy": last["target_accuracy"],
        "source_accuracy": last["source_accuracy"],
        "bnm": last["validator_bnm"],
        "seconds_per_step": summary.seconds_per_step,
    }


def table(runs: Runs) -> Table:
    """Scores and paired differences to the joint step."""
    found = Table(box=box.MARKDOWN, title=f"DANN, {len(SEEDS)} seeds: target accuracy (points)")
    columns = [" -> ".join(pair).replace("_digits", "") for pair in PAIRS]
    for column in ("step", *columns, "difference to joint", "worst run"):
        found.add_column(column)
    joint = runs.scores("joint")
    for form in FORMS:
        own = runs.scores(form)
        cells = [with_interval(own[i : i + len(SEEDS)]) for i in range(0, len(own), len(SEEDS))]
        gain = [a - b for a, b in zip(own, joint, strict=True)]
        difference = "" if own == joint else with_interval(gain, "+")
        found.add_row(form, *cells, difference, f"{min(own):.0f}")
    return found


def tables() -> dict[str, Table]:
    """The table of the README, from pinned runs."""
    return {"from scratch": table(Runs("1"))}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", default="1/1", help="i/n: make only the i-th of every n runs, and no table")
    options = parser.parse_args()
    part, parts = map(int, options.part.split("/"))
    runs = Runs(str(part))
    listed = [(form, pair, seed) for pair in PAIRS for seed in SEEDS for form in FORMS]
    for key in listed[part - 1 :: parts]:
        runs(*key)
    if parts > 1:
        return
    publish(tables())
    (FOLDER / "machine.json").write_text(json.dumps(machine(), indent=1) + "\n")


if __name__ == "__main__":
    main()
