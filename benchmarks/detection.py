"""Digit scenes: source-only, joint and MetaAlign with both presets, over several seeds; target mAP@50 and step time.

python benchmarks/detection.py [--seeds 3]

All methods start from the same source phase of the same seed and take the same number of steps. Runs are pinned as JSON
below `results/detection/` and never repeated; the table is printed and written to `results/detection/table.json`.
"""

from __future__ import annotations

import argparse
import json
from statistics import fmean
from typing import Any

from rich.console import Console
from rich.table import Table

from runs import RESULTS, ROOT, machine, mean_and_interval, pinned_run

CONFIG = ROOT / "examples" / "digit_scenes.yaml"
# Weights that make the alignment gradient of this small D-FINE, whose loss is large, comparable with the task's.
SWDA = {"name": "swda", "weight": 20.0}
DETR = {"name": "detr", "weight": 50.0}
METHODS: dict[str, dict[str, Any]] = {
    "source_only": {"coordination.method": "source_only"},
    "joint, swda": {"coordination.method": "joint", "model.alignment": SWDA},
    "metaalign, swda": {"coordination.method": "metaalign", "model.alignment": SWDA},
    "joint, detr": {"coordination.method": "joint", "model.alignment": DETR},
    "metaalign, detr": {"coordination.method": "metaalign", "model.alignment": DETR},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=3)
    seeds = range(parser.parse_args().seeds)
    rows = {}
    for method, overrides in METHODS.items():
        found = [
            pinned_run(
                f"detection/{method.replace(', ', '-')}-{seed}",
                CONFIG,
                {**overrides, "training.seed": seed, "training.evaluate_every": 0, "training.select_by": None},
            )
            for seed in seeds
        ]
        after = [run["target_map50_after"] for run in found]
        mean, half = mean_and_interval(after)
        rows[method] = {
            "target_map50_before": fmean(run["target_map50_before"] for run in found),
            "target_map50_after": mean,
            "interval95": half,
            "source_map50": fmean(run["source_map50"] for run in found),
            "seconds_per_step": fmean(run["seconds_per_step"] for run in found),
            "gradient_cosine": [run["gradient_cosine"] for run in found],
        }
    table = Table("method", "target before", "target after", "source after", "s / step")
    for method, row in rows.items():
        table.add_row(
            method,
            f"{100 * row['target_map50_before']:.1f}",
            f"{100 * row['target_map50_after']:.1f} +- {100 * row['interval95']:.1f}",
            f"{100 * row['source_map50']:.1f}",
            f"{row['seconds_per_step']:.3f}",
        )
    Console().print(table)
    path = RESULTS / "detection" / "table.json"
    path.write_text(
        json.dumps({"command": "benchmarks/detection.py", "machine": machine(), "rows": rows}, indent=1) + "\n"
    )


if __name__ == "__main__":
    main()
