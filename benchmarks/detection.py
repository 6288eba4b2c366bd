"""Digit scenes, one gap at a time: what adapts a small detector, and what it gains over more training on the source.

    python benchmarks/detection.py                 # every run that is not pinned yet, then the tables
    python benchmarks/detection.py --seeds 11 12   # the runs of these seeds, and no table

For each seed the small D-FINE of `examples/digit_scenes.yaml` is trained on plain scenes for 600 steps, and twice for
300 more from half its learning rate down. All methods start from this one model, as from any pretrained detector, and
take 100 steps from half the learning rate down. `source only` goes on as it began, and is one run for all targets;
`statistics` are its running statistics re-estimated on 256 target images (as `training.recalibrate_bn: target`). `a
quarter more` is `source only` with a quarter of the steps that the source model has, and says whether that had
converged: less than one point of source mAP@50. `oracle` trains on the labels of the target. `joint, share` is `joint`
with `coordination.alignment_share: 0.25` in the place of the weight 20 that was set by hand. What `statistics` does was
picked on earlier source models of seeds 1 to 4, with target scores in sight. The models are kept in
`runs/benchmark_detection/`, and used only where their weights have the checksum that is pinned with the runs in
`results/detection/`. Score: target test mAP@50 of the last model in points; differences are paired by seed, with 95 %
intervals (Student's t). For the time of a step see `detection_profile.py`.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
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
SEEDS = (11, 12, 13, 14, 15, 16, 17, 18)
GAPS = SCENES[1:]
ROUNDS = (600, 300, 300)
"""Steps on the source, all rounds but the first from half the learning rate down."""
STEPS, QUARTER = 100, sum(ROUNDS) // 4
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
ALIGNED = {"model.alignment": {"name": "swda", "weight": 20}, "training.batch_norm": "per_domain"}
REMEMBERED = {**ALIGNED, "coordination.method": "metaalign", "coordination.direction": "remembered"}
FOR_ALL_GAPS: dict[str, dict[str, Any]] = {
    "source only": ALONE,
    "a quarter more": {**ALONE, "training.max_steps": QUARTER},
}
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
ON_ALL_GAPS = ("start", "source only", "a quarter more")
ON_FOG = {
    "source only": SEEDS,
    "source only + statistics": SEEDS,
    "a quarter more + statistics": SEEDS,
    "joint": SEEDS,
    "joint, share": SEEDS,
    "remembered": SEEDS,
    "control: noise": SEEDS,
    "oracle": SEEDS,
}
"""Rows of the tables; `+ statistics` re-estimates the running statistics after the run. On fog with their seeds."""
TITLES = {
    "start": "the models they start from",
    "source only + statistics": "source only, statistics of the target",
    "a quarter more": "source only, a quarter more steps",
    "a quarter more + statistics": "the same, a quarter more steps",
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
    """Train the plain detector that a seed starts from, in rounds, and keep it."""
    places: dict[str, str] = {}
    found: dict[str, float] = {}
    for index in range(len(ROUNDS)):
        last = index == len(ROUNDS) - 1
        kept = KEPT / str(seed) if last else KEPT / f"round_{index}" / str(seed)
        if last or not kept.is_dir():
            found = source_round(seed, index, places, kept, last)
        places = {"model.pretrained": str(kept)}
    return {**found, "checksum": checksum(seed)}


def source_round(seed: int, index: int, places: dict[str, Any], kept: Path, last: bool) -> dict[str, float]:
    """Train for a round on the source, each with another order of the images, and keep the model; score the last."""
    rate = load_config(CONFIG, BASE).optimizer.lr / (2 if index else 1)
    overrides = {**BASE, **ALONE, "training.max_steps": ROUNDS[index], "training.seed": seed + 100 * index}
    with tempfile.TemporaryDirectory() as folder:
        places = {**places, "optimizer.lr": rate, "training.output_dir": f"{folder}/run"}
        summary = adapt(load_config(CONFIG, {**overrides, **places}))
        model = MetaAlignForObjectDetection.from_pretrained(f"{folder}/run")
    model.export_native().save_pretrained(kept)
    return {"source": figures(summary)["source"], **(on_all_gaps(model, statistics=False) if last else {})}


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
        overrides = {**BASE, "training.max_steps": STEPS, "training.seed": seed, **(FOR_ALL_GAPS | METHODS)[method]}
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


def on_all_gaps(
    model: MetaAlignForObjectDetection, gaps: Sequence[str] = GAPS, statistics: bool = True
) -> dict[str, float]:
    """Test mAP@50 of a model on these targets, as it is and, unless told otherwise, with statistics of the target."""
    size = load_config(CONFIG, BASE).data.detector_size
    processor = build_detector_processor(model.config.detector_config.model_type, None, size)

    def score(gap: str) -> float:
        view = load_detection_view(gap, list(SCENE_LABELS), "test")
        batches = detection_batches(view, processor, model.boxes_relative_to_image, 64)
        return evaluate_detector(model, model.adapter.probabilities, batches, len(SCENE_LABELS)).map50

    found = {}
    for gap in gaps:
        found[gap] = score(gap)
        if not statistics:
            continue
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
    start = [100 * runs.source(seed)["source"] for seed in SEEDS]
    for method in ON_ALL_GAPS:
        own = start if method == "start" else [100 * runs(method, FOG, seed)["source"] for seed in SEEDS]
        gained = with_interval([b - a for a, b in zip(start, own, strict=True)], "+")
        cells = [f"{fmean(score(runs, method, gap, seed) for seed in SEEDS):.1f}" for gap in GAPS]
        source = f"{fmean(own):.1f}" + ("" if method == "start" else f" ({gained})")
        found.add_row(TITLES.get(method, method), *cells, source)
    method = "source only + statistics"
    cells = [with_interval(gains(runs, method, "source only", gap), "+") for gap in GAPS]
    found.add_row(TITLES[method], *cells, "")
    return found


def fog_table(runs: Runs) -> Table:
    """On the gap that the demo shows: what adapts, MetaAlign's step, noise of its length, and labels of the target."""
    found = Table(box=box.MARKDOWN, title=FOG)
    for column in ("method", "seeds", "target", "source", "to source only", "to joint", "worst run"):
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
        for method in FOR_ALL_GAPS | METHODS:
            if seed in ON_FOG.get(method, SEEDS):
                runs(method, FOG, seed)
    if options.seeds is None:
        publish(tables())
        (FOLDER / "machine.json").write_text(json.dumps(machine(), indent=1) + "\n")


if __name__ == "__main__":
    main()
