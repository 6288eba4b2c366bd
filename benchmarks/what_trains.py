"""A step's time by what of a ViT trains, step by step in turn, beside its memory by calculation.

    python benchmarks/what_trains.py

The package's own runs: ViT-S/16 with random weights at 224 pixels, a bottleneck of 256, CDAN, the default step, AdamW,
batches of 8 + 8 solar cells, float32, one thread. All are in one process and take their steps in turn; times are CPU
seconds, which other work on the machine touches least. A ratio is of two steps of one round, and the table has the
median, least and most of them. Memory is that of benchmarks/memory.py at 16 images. Written to
results/what_trains.json and into benchmarks/README.md.
"""

from __future__ import annotations

import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from rich import box
from rich.console import Console
from rich.table import Table

from cached_features import small_pair, stepper
from memory import gigabytes
from metaalign_hf.progress import display
from runs import RESULTS, machine

BATCH, ROUNDS = 8, 8
FULL = "all"
# By name: what a run sets, and what benchmarks/memory.py calls it.
WAYS: dict[str, tuple[dict[str, Any], str | None]] = {
    FULL: ({}, "all"),
    "last quarter (`model.freeze: 4`)": (
        {"model.freeze": 4, "data.cache_features": "never"},
        "last quarter (`freeze: 4`)",
    ),
    "adapters (`model.lora: {r: 16}`)": ({"model.lora": {"r": 16}}, "adapters, r 16"),
    "head (`model.freeze: all`), without a cache": (
        {"model.freeze": "all", "data.cache_features": "never"},
        "head (`freeze: all`), without a cache",
    ),
    "head (`model.freeze: all`), features cached": ({"model.freeze": "all"}, None),
}
PATH = RESULTS / "what_trains.json"


def measure() -> dict[str, Any]:
    """CPU seconds of every step of every way, and its memory."""
    torch.set_num_threads(1)
    pair, seconds = small_pair(), {name: [] for name in WAYS}
    common = {"training.batch_size": BATCH, "optimizer.name": "adamw", "optimizer.lr": 1e-4}
    with tempfile.TemporaryDirectory() as place, display(Console(stderr=True)):
        ready = {
            name: stepper(Path(place) / str(number), pair, **common, **options)[0]
            for number, (name, (options, _)) in enumerate(WAYS.items())
        }
        for step in range(1 + ROUNDS):  # the first round warms up
            for name, run in ready.items():
                started = time.process_time()
                run.take(step, True)
                seconds[name].append(time.process_time() - started)
    memory = {
        name: gigabytes("vit_small_patch16_224", way, False, images=2 * BATCH) for name, (_, way) in WAYS.items() if way
    }
    found = {name: {"seconds": times[1:], "gigabytes": memory.get(name)} for name, times in seconds.items()}
    return {"machine": machine(), "batch": f"{BATCH} + {BATCH}", "ways": found}


def tables() -> dict[str, Table]:
    """The table, from the pinned measurement."""
    ways = json.loads(PATH.read_text())["ways"]
    table = Table(
        "what trains", "time of a step", "least to most", "weights and optimiser", "activations", box=box.MARKDOWN
    )
    for name, found in ways.items():
        ratios = sorted(
            own / full for own, full in zip(found["seconds"], ways[FULL]["seconds"], strict=True) if name != FULL
        )
        times = (
            [f"x{_short(statistics.median(ratios))}", f"x{_short(ratios[0])} to x{_short(ratios[-1])}"]
            if ratios
            else ["x1", ""]
        )
        memory = [f"{value:.2f} GB" for value in found["gigabytes"] or []] or ["", ""]
        table.add_row(name, *times, *memory)
    return {"what trains": table}


def _short(ratio: float) -> str:
    return f"{ratio:.2f}" if ratio >= 0.1 else f"{ratio:.3f}"


def main() -> None:
    from readme import publish

    PATH.write_text(json.dumps(measure(), indent=1) + "\n")
    publish(tables())


if __name__ == "__main__":
    main()
