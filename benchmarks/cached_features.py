"""Seconds per step of a frozen ViT with cached features and without, step by step in turn.

    python benchmarks/cached_features.py
    python benchmarks/cached_features.py --large

Both runs are the package's own: the same ViT-S/16 with random weights at 224 pixels, frozen, a bottleneck of 256,
CDAN, the default step, batches of 24 + 24 solar cells, 2 augmented views. They differ in `data.cache_features` alone,
and take the same steps; the losses are compared. Written to results/cached_features.json.

`--large` stands for 5,000 + 5,000 training images, a ViT-B/16 and 4 views, whose features would take hours. Two rates
are measured in CPU seconds of one thread: that of the extraction, on 256 images and views; and that of 2,000 steps of
24 + 24 on a file of as many rows as the whole would have, in which the 256 rows are repeated. What the whole takes is
computed from both, and so is an uncached step, as the extraction of its 48 images alone. Written to
results/cached_features_large.json.
"""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from safetensors.torch import load_file, save_file

from metaalign_hf.configuration import load_config
from metaalign_hf.data import DomainPair, load_domain_pair
from metaalign_hf.data.cache_writing import write_cache
from metaalign_hf.data.cached_features import plan_cache, with_features
from metaalign_hf.interruption import Interruption
from metaalign_hf.progress import display
from metaalign_hf.tasks.building import build_task
from metaalign_hf.training.machine import Agreement, build_accelerator
from metaalign_hf.training.optimizers import build_optimizer, parameter_groups
from metaalign_hf.training.stepper import Stepper
from metaalign_hf.training.weights import Weights
from runs import machine

BACKBONE, TRAIN, TEST, VIEWS, STEPS = "vit_small_patch16_224", 96, 24, 2, 12
LONG = 2000
LARGE, LARGE_BACKBONE, EXTRACTED = 5000, "vit_base_patch16_224", 256
RESULTS = Path(__file__).with_name("results") / "cached_features.json"
LARGE_RESULTS = RESULTS.with_name("cached_features_large.json")


def small_pair() -> DomainPair[Any]:
    """The first images of each set of the solar pair."""
    pair = load_domain_pair("solar_mono", "solar_poly")
    sizes = {"source_train": TRAIN, "target_train": TRAIN, "source_test": TEST, "target_test_images": TEST}
    sizes["target_evaluation"] = TEST
    return replace(pair, **{name: getattr(pair, name).subset(range(size)) for name, size in sizes.items()})


SOLAR = {
    "data.source": "solar_mono",
    "data.target": "solar_poly",
    "data.views": VIEWS,
    "model.backbone": BACKBONE,
    "model.pretrained": False,
    "model.bottleneck_dim": 256,
    "training.max_steps": LONG,
}


def stepper(
    folder: Path, pair: DomainPair[Any], prepare: bool = True, base: dict[str, Any] = SOLAR, **options: Any
) -> tuple[Stepper, float]:
    """A run that is ready for its first step, and the seconds that its cache took; without it, where not prepared."""
    folder.mkdir()
    values = {**base, "training.output_dir": str(folder), **options}
    (folder / "empty.yaml").write_text("{}")
    config = load_config(folder / "empty.yaml", values)
    torch.manual_seed(0)
    task, accelerator = build_task(config, pair), build_accelerator(config.training)
    optimizer = build_optimizer(parameter_groups(task.model.parameter_roles(), config.optimizer), config.optimizer)
    model, optimizer = accelerator.prepare(task.model, optimizer)
    weights = Weights(model, task.processor, accelerator, None)
    made = Stepper(config, task, weights, optimizer, Agreement(accelerator))
    started = time.perf_counter()
    if prepare:
        task.prepare(accelerator, Interruption())
        made.open_streams(0)
    seconds = time.perf_counter() - started
    return made, seconds


def large() -> None:
    """Both rates of the large run, and what follows from them."""
    torch.set_num_threads(1)
    whole = load_domain_pair("solar_mono", "solar_poly")
    sizes = {"source_train": LARGE, "target_train": LARGE, "source_test": TEST, "target_test_images": TEST}
    sizes["target_evaluation"] = TEST
    sets = {name: getattr(whole, name) for name in sizes}
    pair = replace(
        whole, **{name: sets[name].subset([n % len(sets[name]) for n in range(size)]) for name, size in sizes.items()}
    )
    with tempfile.TemporaryDirectory() as place, display(Console(stderr=True)):
        options = {"model.backbone": LARGE_BACKBONE, "model.freeze": "all", "data.views": None}
        run, _ = stepper(Path(place) / "run", pair, prepare=False, **options)
        task = run.task
        plan, few = plan_cache(task.pair, {}), Path(place) / "few.safetensors"
        size = task.config.training.evaluation_batch_size
        chosen = plan.units[:: len(plan.units) // EXTRACTED][:EXTRACTED]
        compute = torch.no_grad()(task.model.frozen_outputs)
        compute(torch.zeros(1, 3, 224, 224))
        started = time.process_time()
        write_cache(few, replace(plan, units=chosen), compute, batch_size=size, gigabytes=1)
        extraction = (time.process_time() - started) / EXTRACTED
        rows = load_file(few)["features"]
        save_file(
            {"features": rows[torch.arange(len(plan.units)) % EXTRACTED].contiguous()}, Path(place) / "all.safetensors"
        )
        task.pair = with_features(plan, load_file(Path(place) / "all.safetensors"))
        run.open_streams(0)
        started = time.process_time()
        for step in range(LONG):
            run.take(step, True)
        cached = (time.process_time() - started) / LONG
    units = len(plan.units)
    found = {
        "backbone": LARGE_BACKBONE,
        "image_size": 224,
        "training_images": 2 * LARGE,
        "views": 4,
        "rows": units,
        "batch": "24 + 24",
        "machine": machine(),
        "extracted": EXTRACTED,
        "cpu_seconds_of_a_row": extraction,
        "cached_steps": LONG,
        "cpu_seconds_of_a_cached_step": cached,
        "computed_from_both_rates": {
            "extraction_hours": units * extraction / 3600,
            "uncached_step_against_cached": 48 * extraction / cached,
            "all_against_extraction": (units * extraction + LONG * cached) / (units * extraction),
        },
    }
    LARGE_RESULTS.write_text(json.dumps(found, indent=2) + "\n")
    print(json.dumps(found, indent=2))


def main() -> None:
    pair, seconds = small_pair(), {"cached": [], "uncached": []}
    with tempfile.TemporaryDirectory() as place, display(Console(stderr=True)):
        runs = {}
        for name, cache in (("cached", "auto"), ("uncached", "never")):
            options = {"model.freeze": "all", "data.cache_features": cache}
            runs[name], took = stepper(Path(place) / name, pair, **options)
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
    if sys.argv[1:] == ["--large"]:
        large()
    else:
        main()
