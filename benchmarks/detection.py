"""Digit scenes: what adapts a small detector, over several seeds, and what it gains over more training on the source.

    python benchmarks/detection.py               # every run that is not pinned yet, then the table
    python benchmarks/detection.py --seeds 1 3   # the runs of seeds 1 to 3, and no table

For each seed the small D-FINE of `examples/digit_scenes.yaml` is trained on the source. All methods start from this one
model, as from any pretrained detector, and take the same number of steps at half its learning rate; `source only` goes
on as it began, `oracle` trains on the labels of the target. The models are kept in
`runs/benchmark_detection/`, and used only where their weights have the checksum that is pinned with the runs in
`results/detection/`. Score: target test mAP@50 of the last model in points; differences are paired by seed, with 95 %
intervals (Student's t). The time of a step is the median over seeds of its ratio to that of source only:
those of seed 3 ran beside other work.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import tempfile
from statistics import median
from typing import Any
from unittest.mock import patch

from rich import box
from rich.table import Table

from frozen import Noise
from metaalign_hf import MetaAlignForObjectDetection, adapt, load_config
from metaalign_hf.intervals import with_interval
from metaalign_hf.training import steps as training_steps
from readme import publish
from runs import RESULTS, ROOT, PinnedRows, machine

CONFIG = ROOT / "examples" / "digit_scenes.yaml"
FOLDER = RESULTS / "detection"
KEPT = ROOT / "runs" / "benchmark_detection"
SEEDS = (1, 2, 3, 4)
SOURCE_STEPS, STEPS = 600, 150
BASE: dict[str, Any] = {
    "training.source_steps": 0,
    "training.evaluate_every": 0,
    "training.select_by": None,
    "training.selection_images": 512,
}
ALONE = {"coordination.method": "source_only"}
REMEMBERED = {"coordination.method": "metaalign", "coordination.direction": "remembered"}
METHODS: dict[str, dict[str, Any]] = {
    "source only": ALONE,
    "joint": {"coordination.method": "joint"},
    "remembered": REMEMBERED,
    "control: noise": REMEMBERED,
    "oracle": {**ALONE, "data.source": "scenes_photo", "data.target": "scenes_plain"},
}
ALIGNED = ("joint", "remembered", "control: noise")


class Runs:
    """Runs that are pinned in `results/detection/*.jsonl` and never repeated; new ones go into `part`.jsonl."""

    def __init__(self, part: str) -> None:
        self.rows = PinnedRows(FOLDER, part)

    def source(self, seed: int) -> dict[str, float]:
        """Figures of the model that a seed starts from."""
        return self.rows(("source", seed), lambda: train_source(seed))

    def __call__(self, method: str, seed: int) -> dict[str, float]:
        """Figures of a run."""
        self.source(seed)
        return self.rows((method, seed), lambda: one(method, seed, self.source(seed)["checksum"]))

    def scores(self, method: str, figure: str = "target") -> list[float]:
        """A figure by seed, in points."""
        return [100 * self(method, seed)[figure] for seed in SEEDS]


def train_source(seed: int) -> dict[str, float]:
    """Train the plain detector that a seed starts from, and keep it."""
    with tempfile.TemporaryDirectory() as folder:
        overrides = {**BASE, **ALONE, "training.max_steps": SOURCE_STEPS, "training.seed": seed}
        summary = adapt(load_config(CONFIG, {**overrides, "training.output_dir": f"{folder}/run"}))
        native = MetaAlignForObjectDetection.from_pretrained(f"{folder}/run").export_native()
    native.save_pretrained(KEPT / str(seed))
    return {**figures(summary), "checksum": checksum(seed)}


def checksum(seed: int) -> float:
    """The first 48 bits of the SHA-256 of a source model's weights, as a number that JSON keeps exactly."""
    weights = (KEPT / str(seed) / "model.safetensors").read_bytes()
    return float(int(hashlib.sha256(weights).hexdigest()[:12], 16))


def one(method: str, seed: int, known: float) -> dict[str, float]:
    """Adapt the source model of a seed, in a folder that is thrown away."""
    if not (KEPT / str(seed)).is_dir():
        train_source(seed)
    if checksum(seed) != known:
        raise SystemExit(f"{KEPT / str(seed)} is not the model that the pinned runs of seed {seed} started from")
    with tempfile.TemporaryDirectory() as folder:
        given = load_config(CONFIG, BASE).optimizer.lr
        overrides = {**BASE, **METHODS[method], "training.max_steps": STEPS, "training.seed": seed}
        overrides["optimizer.lr"] = given / 2
        places = {"training.output_dir": f"{folder}/run", "model.pretrained": str(KEPT / str(seed))}
        form = Noise if method == "control: noise" else training_steps.RememberedMetaAlign
        with patch.object(training_steps, "RememberedMetaAlign", form):
            found = figures(adapt(load_config(CONFIG, {**overrides, **places})))
    if method == "oracle":  # its source is the target
        found["target"], found["source"] = found["source"], found["target"]
    return found


def figures(summary: Any) -> dict[str, float]:
    """What is pinned of a run."""
    found = summary.to_dict()
    return {
        "target": found["target_map50_after"],
        "source": found["source_map50_after"],
        "seconds_per_step": found["seconds_per_step"],
        "seconds": found["seconds"],
        "seconds_in_evaluation": found["seconds_in_evaluation"],
    }


def table(runs: Runs) -> Table:
    """Scores and paired differences."""
    found = Table(box=box.MARKDOWN, title=f"Target test mAP@50 (points), {len(SEEDS)} seeds")
    for column in ("method", "target", "source", "to source only", "to joint", "worst run", "step"):
        found.add_column(column)
    alone, joint = runs.scores("source only"), runs.scores("joint")
    pace = runs.scores("source only", "seconds_per_step")
    begin = [runs.source(seed) for seed in SEEDS]
    found.add_row(
        "the models they start from",
        with_interval([100 * model["target"] for model in begin]),
        f"{sum(100 * model['source'] for model in begin) / len(begin):.1f}",
        *[""] * 4,
    )
    for method in METHODS:
        own = runs.scores(method)
        against = ["" if own == other else with_interval(minus(own, other), "+") for other in (alone, joint)]
        found.add_row(
            method,
            with_interval(own),
            f"{sum(runs.scores(method, 'source')) / len(SEEDS):.1f}",
            against[0],
            against[1] if method in ALIGNED else "",
            f"{min(own):.0f}",
            f"x{median(a / b for a, b in zip(runs.scores(method, 'seconds_per_step'), pace, strict=True)):.1f}",
        )
    return found


def minus(own: list[float], other: list[float]) -> list[float]:
    """Differences by seed."""
    return [a - b for a, b in zip(own, other, strict=True)]


def tables() -> dict[str, Table]:
    """The table of the README, from pinned runs."""
    return {"detection": table(Runs("1"))}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs=2, metavar=("FIRST", "LAST"), help="only these seeds, and no table")
    options = parser.parse_args()
    first, last = options.seeds or (SEEDS[0], SEEDS[-1])
    runs = Runs(f"{first}-{last}")
    for seed in range(first, last + 1):
        for method in METHODS:
            runs(method, seed)
    if options.seeds is None:
        publish(tables())
        (FOLDER / "machine.json").write_text(json.dumps(machine(), indent=1) + "\n")


if __name__ == "__main__":
    main()
