"""Digit scenes, one gap at a time: what adapts a small detector, and what it gains over more training on the source.

    python benchmarks/detection.py               # every run that is not pinned yet, then the tables
    python benchmarks/detection.py --seeds 1 2   # the runs of these seeds, and no table

For each seed the small D-FINE of `examples/digit_scenes.yaml` is trained on plain scenes for 600 steps. All methods
start from this one model, as from any pretrained detector, and take 100 steps at half its learning rate. `source
only` goes on as it began, and is one run for all targets; `strong` is the same with `data.augmentation: strong`;
`statistics` are these two with their running statistics re-estimated on 256 target images (as
`training.recalibrate_bn: target`). `oracle` trains on the labels of the target. What `statistics` does was picked on
seeds 1 to 4, with target scores in sight; seeds 5 to 8 were run once, after that, and have a row and a column of
their own. `joint, share` is `joint` with `coordination.alignment_share: 0.25` in the place of the weight 20 that was
set by hand. The models are kept in `runs/benchmark_detection/`, and used only where their weights have the checksum
that is pinned with the runs in `results/detection/`. Score: target test mAP@50 of the last model in points;
differences are paired by seed, with 95 % intervals (Student's t). For the time of a step see `detection_profile.py`.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import tempfile
from collections.abc import Iterable, Sequence
from statistics import fmean
from typing import Any
from unittest.mock import patch

from rich import box
from rich.table import Table

from frozen import Noise
from metaalign_hf import MetaAlignForObjectDetection, adapt, load_config
from metaalign_hf.batch_norm import recalibrate_batch_norm
from metaalign_hf.configuration import SCENES
from metaalign_hf.data import detection_batches, load_detection_view
from metaalign_hf.data.digit_scenes import SCENE_LABELS
from metaalign_hf.evaluation import evaluate_detector
from metaalign_hf.intervals import with_interval
from metaalign_hf.models.detectors.processors import build_detector_processor
from metaalign_hf.training import steps as training_steps
from readme import publish
from runs import RESULTS, ROOT, PinnedRows, machine

CONFIG = ROOT / "examples" / "digit_scenes.yaml"
FOLDER = RESULTS / "detection"
KEPT = ROOT / "runs" / "benchmark_detection"
SEEDS = (1, 2, 3, 4, 5, 6, 7, 8)
FRESH = (5, 6, 7, 8)
"""Seeds on which nothing was picked."""
GAPS = SCENES[1:]
SOURCE_STEPS, STEPS = 600, 100
STATISTICS_IMAGES = 256
BASE: dict[str, Any] = {
    "training.source_steps": 0,
    "training.baseline": False,
    "training.recalibrate_bn": "none",
    "training.evaluate_every": 0,
    "training.select_by": None,
    "training.selection_images": 512,
}
ALONE = {"coordination.method": "source_only"}
STRONG = {"data.augmentation": "strong"}
ALIGNED = {"model.alignment": {"name": "swda", "weight": 20}, "training.batch_norm": "per_domain"}
REMEMBERED = {**ALIGNED, "coordination.method": "metaalign", "coordination.direction": "remembered"}
FOR_ALL_GAPS: dict[str, dict[str, Any]] = {"source only": ALONE, "strong": {**ALONE, **STRONG}}
METHODS: dict[str, dict[str, Any]] = {
    "joint": {**ALIGNED, "coordination.method": "joint"},
    "joint, share": {
        **ALIGNED,
        "coordination.method": "joint",
        "model.alignment": "swda",
        "coordination.alignment_share": 0.25,
    },
    "remembered": REMEMBERED,
    "control: noise": REMEMBERED,
    "oracle": ALONE,
}
FOG = "scenes_fog"
ON_ALL_GAPS = ("start", "source only", "source only + statistics")
ON_FOG = {
    "source only": SEEDS,
    "source only + statistics": SEEDS,
    "joint": (1, 2, 3, 4),
    "joint, share": (1, 2, 3, 4),
    "remembered": (1, 2, 3, 4),
    "control: noise": (1, 2, 3, 4),
    "oracle": SEEDS,
}
"""Rows of the tables; `+ statistics` re-estimates the running statistics after the run. On fog with their seeds."""
TITLES = {
    "start": "the models they start from",
    "strong": "source only, strong augmentation",
    "source only + statistics": "source only, statistics of the target",
    "strong + statistics": "strong augmentation, statistics of the target",
}


class Runs:
    """Runs that are pinned in `results/detection/*.jsonl` and never repeated; new ones go into `part`.jsonl."""

    def __init__(self, part: str) -> None:
        self.rows = PinnedRows(FOLDER, part)

    def source(self, seed: int) -> dict[str, float]:
        """Figures of the model that a seed starts from."""
        return self.rows(("source", seed), lambda: train_source(seed))

    def __call__(self, method: str, gap: str, seed: int) -> dict[str, float]:
        """Figures of a run."""
        known = self.source(seed)["checksum"]
        if method in FOR_ALL_GAPS:
            return self.rows((method, seed), lambda: one(method, None, seed, known))
        return self.rows((method, gap, seed), lambda: one(method, gap, seed, known))


def train_source(seed: int) -> dict[str, float]:
    """Train the plain detector that a seed starts from, and keep it."""
    with tempfile.TemporaryDirectory() as folder:
        overrides = {**BASE, **ALONE, "training.max_steps": SOURCE_STEPS, "training.seed": seed}
        summary = adapt(load_config(CONFIG, {**overrides, "training.output_dir": f"{folder}/run"}))
        model = MetaAlignForObjectDetection.from_pretrained(f"{folder}/run")
    model.export_native().save_pretrained(KEPT / str(seed))
    return {"source": figures(summary)["source"], **on_all_gaps(model), "checksum": checksum(seed)}


def checksum(seed: int) -> float:
    """The first 48 bits of the SHA-256 of a source model's weights, as a number that JSON keeps exactly."""
    weights = (KEPT / str(seed) / "model.safetensors").read_bytes()
    return float(int(hashlib.sha256(weights).hexdigest()[:12], 16))


def one(method: str, gap: str | None, seed: int, known: float) -> dict[str, float]:
    """Adapt the source model of a seed, in a folder that is thrown away."""
    if not (KEPT / str(seed)).is_dir():
        train_source(seed)
    if checksum(seed) != known:
        raise SystemExit(f"{KEPT / str(seed)} is not the model that the pinned runs of seed {seed} started from")
    with tempfile.TemporaryDirectory() as folder:
        given = load_config(CONFIG, BASE).optimizer.lr
        overrides = {**BASE, **(FOR_ALL_GAPS | METHODS)[method], "training.max_steps": STEPS, "training.seed": seed}
        overrides["optimizer.lr"] = given / 2
        overrides["data.source"], overrides["data.target"] = SCENES[0], gap or GAPS[0]
        if method == "oracle":
            overrides["data.source"], overrides["data.target"] = overrides["data.target"], overrides["data.source"]
        places = {"training.output_dir": f"{folder}/run", "model.pretrained": str(KEPT / str(seed))}
        form = Noise if method == "control: noise" else training_steps.RememberedMetaAlign
        with patch.object(training_steps, "RememberedMetaAlign", form):
            found = figures(adapt(load_config(CONFIG, {**overrides, **places})))
        if gap is None:
            found.pop("target")
            found.update(on_all_gaps(MetaAlignForObjectDetection.from_pretrained(f"{folder}/run")))
    if method == "oracle":
        found["target"], found["source"] = found["source"], found["target"]
    return found


def on_all_gaps(model: MetaAlignForObjectDetection, gaps: Sequence[str] = GAPS) -> dict[str, float]:
    """Test mAP@50 of a model on these targets, as it is and with statistics of the target."""
    size = load_config(CONFIG, BASE).data.detector_size
    processor = build_detector_processor(model.config.detector_config.model_type, None, size)

    def score(gap: str) -> float:
        view = load_detection_view(gap, list(SCENE_LABELS), "test")
        batches = detection_batches(view, processor, model.boxes_relative_to_image, 64)
        return evaluate_detector(model, model.adapter.probabilities, batches, len(SCENE_LABELS)).map50

    found = {}
    for gap in gaps:
        found[gap] = score(gap)
        seen = load_detection_view(gap, list(SCENE_LABELS), "train").subset(range(STATISTICS_IMAGES))
        batches = detection_batches(seen, processor, model.boxes_relative_to_image, 64)
        put_back = recalibrate_batch_norm(model, (batch["pixel_values"] for batch in batches))
        found[f"{gap}, statistics"] = score(gap)
        put_back()
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


def score(runs: Runs, method: str, gap: str, seed: int) -> float:
    """Target test mAP@50 in points of a row of the table."""
    run, _, how = method.partition(" + ")
    if run == "start":
        return 100 * runs.source(seed)[gap]
    figure = f"{gap}, statistics" if how == "statistics" else gap if run in FOR_ALL_GAPS else "target"
    return 100 * runs(run, gap, seed)[figure]


def gains(runs: Runs, method: str, other: str, gap: str, seeds: Iterable[int] = SEEDS) -> list[float]:
    """Differences of two rows by seed."""
    return [score(runs, method, gap, seed) - score(runs, other, gap, seed) for seed in seeds]


def table(runs: Runs) -> Table:
    """Source only, and what is gained on it without another run for each target, by gap."""
    found = Table(box=box.MARKDOWN, title=f"Target test mAP@50 (points), {len(SEEDS)} seeds")
    for column in ("method", *(gap.removeprefix("scenes_") for gap in GAPS), "source"):
        found.add_column(column)
    source = [
        [100 * run["source"] for run in every]
        for every in zip(*((runs.source(seed), runs("source only", FOG, seed)) for seed in SEEDS), strict=True)
    ]
    longer = with_interval([b - a for a, b in zip(*source, strict=True)], "+")
    for method, own, more in zip(("start", "source only"), source, ("", f" ({longer})"), strict=True):
        means = (fmean(score(runs, method, gap, seed) for seed in SEEDS) for gap in GAPS)
        found.add_row(TITLES.get(method, method), *(f"{mean:.1f}" for mean in means), f"{fmean(own):.1f}{more}")
    for method in ON_ALL_GAPS[2:]:
        for seeds, which in ((FRESH, ", fresh seeds"), (SEEDS, "")):
            cells = [with_interval(gains(runs, method, "source only", gap, seeds), "+") for gap in GAPS]
            found.add_row(TITLES.get(method, method) + which, *cells, "")
    return found


def fog_table(runs: Runs) -> Table:
    """On the gap that the demo shows: what adapts, MetaAlign's step, noise of its length, and labels of the target."""
    found = Table(box=box.MARKDOWN, title=FOG)
    for column in ("method", "seeds", "target", "source", "to source only", "fresh seeds", "to joint", "worst run"):
        found.add_column(column)
    for method, seeds in ON_FOG.items():
        own = [score(runs, method, FOG, seed) for seed in seeds]
        every = [runs(method.partition(" + ")[0], FOG, seed) for seed in seeds]
        beside = method in ("joint, share", "remembered", "control: noise")
        found.add_row(
            TITLES.get(method, method),
            str(len(seeds)),
            with_interval(own),
            "" if "statistics" in method else f"{fmean(100 * figures['source'] for figures in every):.1f}",
            "" if method == "source only" else with_interval(gains(runs, method, "source only", FOG, seeds), "+"),
            ""
            if method == "source only" or not set(FRESH) <= set(seeds)
            else with_interval(gains(runs, method, "source only", FOG, FRESH), "+"),
            with_interval(gains(runs, method, "joint", FOG, seeds), "+") if beside else "",
            f"{min(own):.0f}",
        )
    return found


def tables() -> dict[str, Table]:
    """The tables of the README, from pinned runs."""
    runs = Runs("1")
    return {"detection": table(runs), "detection, fog": fog_table(runs)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", help="only these seeds, and no table")
    options = parser.parse_args()
    runs = Runs("-".join(map(str, options.seeds or SEEDS)))
    for seed in options.seeds or SEEDS:
        for method in dict.fromkeys(row.partition(" + ")[0] for row, seeds in ON_FOG.items() if seed in seeds):
            runs(method, FOG, seed)
    if options.seeds is None:
        publish(tables())
        (FOLDER / "machine.json").write_text(json.dumps(machine(), indent=1) + "\n")


if __name__ == "__main__":
    main()
