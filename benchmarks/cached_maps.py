"""CPU seconds per step of a detector with a frozen backbone, its maps computed once and in every pass, in turn.

    python benchmarks/cached_maps.py

Two RT-DETRs built from their published shapes with random weights, of which `model.freeze: all` freezes a ResNet-18 or
a ResNet-50; embedded scenes as squares of 256 pixels, batches of 4 + 4, 2 augmented views, the joint step with the
`detr` levels, one thread. Both runs of a pair differ in `data.cache_features` alone and take the same steps; the losses
are compared. Written to results/cached_maps.json.
"""

from __future__ import annotations

import json
import statistics
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from rich import box
from rich.console import Console
from rich.table import Table
from safetensors import safe_open

from cached_features import stepper
from metaalign_hf.data import DetectionPair, load_detection_pair
from metaalign_hf.progress import display
from runs import machine

SIZE, BATCH, VIEWS, TRAIN, TEST, STEPS = 256, 4, 2, 12, 2, 6
PATH = Path(__file__).with_name("results") / "cached_maps.json"
SHAPES = {
    "RT-DETR, ResNet-18": {
        "backbone_config": {
            "model_type": "rt_detr_resnet",
            "layer_type": "basic",
            "depths": [2, 2, 2, 2],
            "hidden_sizes": [64, 128, 256, 512],
            "out_features": ["stage2", "stage3", "stage4"],
        },
        "encoder_in_channels": [128, 256, 512],
        "hidden_expansion": 0.5,
        "decoder_layers": 3,
    },
    "RT-DETR, ResNet-50": {},
}


def small_pair() -> DetectionPair:
    """The first images of each set of a pair of scenes."""
    pair = load_detection_pair("scenes_plain", "scenes_fog")
    sizes = {"source_train": TRAIN, "target_train": TRAIN, "source_test": TEST, "target_test_images": TEST}
    sizes["target_evaluation"] = TEST
    return replace(pair, **{name: getattr(pair, name).subset(range(size)) for name, size in sizes.items()})


def measure(options: dict[str, Any], pair: DetectionPair) -> dict[str, Any]:
    """The CPU seconds of steps in turn, and the size of a view's maps."""
    seconds: dict[str, list[float]] = {"cached": [], "uncached": []}
    values = {
        "data.source": "scenes_plain",
        "data.target": "scenes_fog",
        "data.detector_size": SIZE,
        "data.views": VIEWS,
        "model.detector": "rt_detr",
        "model.detector_options": options,
        "model.pretrained": False,
        "model.freeze": "all",
        "coordination.method": "joint",
        "optimizer.name": "adamw",
        "training.batch_size": BATCH,
        "training.evaluation_batch_size": BATCH,
        "training.max_steps": STEPS,
    }
    with tempfile.TemporaryDirectory() as place, display(Console(stderr=True)):
        runs = {}
        for name, cache in (("cached", "always"), ("uncached", "never")):
            runs[name], _ = stepper(Path(place) / name, pair, base=values, **{"data.cache_features": cache})
        for step in range(STEPS):
            losses = {}
            for name, run in runs.items():
                torch.manual_seed(step)  # denoising queries
                started = time.process_time()
                report, _ = run.take(step, True)
                seconds[name].append(time.process_time() - started)
                losses[name] = float(report.task_loss), float(report.alignment_loss)
            assert losses["cached"] == losses["uncached"], losses
        with safe_open(Path(place) / "cached" / "features.safetensors", framework="pt") as file:
            width = file.get_slice("features").get_shape()[1]
    # The first step warms up.
    return {"seconds": {name: found[1:] for name, found in seconds.items()}, "view_bytes": 4 * width}


def tables() -> dict[str, Table]:
    """The table, from the pinned measurement."""
    table = Table("detector", "cached step", "least to most", "maps of a view", box=box.MARKDOWN)
    for name, found in json.loads(PATH.read_text())["detectors"].items():
        pairs = zip(found["seconds"]["cached"], found["seconds"]["uncached"], strict=True)
        ratios = sorted(cached / uncached for cached, uncached in pairs)
        times = f"x{statistics.median(ratios):.2f}", f"x{ratios[0]:.2f} to x{ratios[-1]:.2f}"
        table.add_row(name, *times, f"{found['view_bytes'] / 1e6:.1f} MB")
    return {"cached maps": table}


def main() -> None:
    from readme import publish

    torch.set_num_threads(1)
    pair = small_pair()
    setting = {"image_size": SIZE, "batch": f"{BATCH} + {BATCH}", "views": VIEWS, "machine": machine()}
    found = {name: measure(options, pair) for name, options in SHAPES.items()}
    PATH.write_text(json.dumps({**setting, "detectors": found}, indent=1) + "\n")
    publish(tables())


if __name__ == "__main__":
    main()
