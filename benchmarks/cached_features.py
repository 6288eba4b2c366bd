"""Seconds per step of a frozen ViT with cached features and without, step by step in turn.

    python benchmarks/cached_features.py

Both runs are the package's own: the same ViT-S/16 with random weights at 224 pixels, frozen, a bottleneck of 256,
CDAN, the default step, batches of 24 + 24 solar cells, 2 augmented views. They differ in `data.cache_features` alone,
and take the same steps; the losses are compared. Written to results/cached_features.json.
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
from rich.console import Console

from metaalign_hf.configuration import load_config
from metaalign_hf.data import DomainPair, load_domain_pair
from metaalign_hf.interruption import Interruption
from metaalign_hf.progress import display
from metaalign_hf.tasks.building import build_task
from metaalign_hf.training.machine import Agreement, build_accelerator
from metaalign_hf.training.optimizers import build_optimizer, parameter_groups
from metaalign_hf.training.stepper import Stepper
from metaalign_hf.training.weights import Weights

BACKBONE, TRAIN, TEST, VIEWS, STEPS = "vit_small_patch16_224", 96, 24, 2, 12
LONG = 2000
RESULTS = Path(__file__).with_name("results") / "cached_features.json"


def small_pair() -> DomainPair[Any]:
    """The first images of each set of the solar pair."""
    pair = load_domain_pair("solar_mono", "solar_poly")
    sizes = {"source_train": TRAIN, "target_train": TRAIN, "source_test": TEST, "target_test_images": TEST}
    sizes["target_evaluation"] = TEST
    return replace(pair, **{name: getattr(pair, name).subset(range(size)) for name, size in sizes.items()})


def stepper(folder: Path, pair: DomainPair[Any], cache: str) -> tuple[Stepper, float]:
    """A run that is ready for its first step, and the seconds that its cache took."""
    values = {
        "data.source": "solar_mono",
        "data.target": "solar_poly",
        "data.views": VIEWS,
        "data.cache_features": cache,
        "model.backbone": BACKBONE,
        "model.pretrained": False,
        "model.bottleneck_dim": 256,
        "model.freeze": "all",
        "training.output_dir": str(folder),
        "training.max_steps": LONG,
    }
    (folder / "empty.yaml").write_text("{}")
    config = load_config(folder / "empty.yaml", values)
    torch.manual_seed(0)
    task, accelerator = build_task(config, pair), build_accelerator(config.training)
    optimizer = build_optimizer(parameter_groups(task.model.parameter_roles(), config.optimizer), config.optimizer)
    model, optimizer = accelerator.prepare(task.model, optimizer)
    weights = Weights(model, task.processor, accelerator, None)
    made = Stepper(config, task, weights, optimizer, Agreement(accelerator))
    started = time.perf_counter()
    task.prepare(accelerator, Interruption())
    seconds = time.perf_counter() - started
    made.open_streams(0)
    return made, seconds


def main() -> None:
    pair, seconds = small_pair(), {"cached": [], "uncached": []}
    with tempfile.TemporaryDirectory() as place, display(Console(stderr=True)):
        runs = {}
        for name, cache in (("cached", "auto"), ("uncached", "never")):
            folder = Path(place) / name
            folder.mkdir()
            runs[name], took = stepper(folder, pair, cache)
            seconds[f"{name}_preparation"] = took
        for step in range(STEPS):
            losses = {}
            for name, run in runs.items():
                started = time.perf_counter()
                report, _ = run.take(step, True)
                seconds[name].append(time.perf_counter() - started)
                losses[name] = float(report.task_loss)
            assert abs(losses["cached"] - losses["uncached"]) < 1e-4, losses
        started = time.perf_counter()
        for step in range(STEPS, LONG):
            runs["cached"].take(step, True)
        rest = time.perf_counter() - started
        size = (Path(place) / "cached" / "features.safetensors").stat().st_size
    # The first step warms up.
    ratios = sorted(u / c for u, c in zip(seconds["uncached"][1:], seconds["cached"][1:], strict=True))
    found = {
        "backbone": BACKBONE,
        "image_size": 224,
        "training_images": 2 * TRAIN,
        "test_images": 2 * TEST,
        "views": VIEWS,
        "batch": "24 + 24",
        "threads": torch.get_num_threads(),
        "interleaved_steps": STEPS - 1,
        "ratio_median": statistics.median(ratios),
        "ratio_least": ratios[0],
        "ratio_most": ratios[-1],
        "cached_steps": LONG,
        "cached_steps_against_extraction": (sum(seconds["cached"]) + rest) / seconds["cached_preparation"],
        "file_bytes": size,
    }
    RESULTS.write_text(json.dumps(found, indent=2) + "\n")
    print(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
