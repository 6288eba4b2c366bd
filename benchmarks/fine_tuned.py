"""ImageNet weights fine-tuned: joint and remembered step on the solar pairs, EfficientNet-Lite0's last stage, DANN.

    python benchmarks/fine_tuned.py

The outputs of all stages but the last, of the cells at 128 pixels and their flips, are computed once and kept in the
temporary folder. The last stage, the final convolution, a bottleneck of 128 and the heads train on them: 300 steps of
AdamW at 3e-4 with frozen batch statistics. Three seeds; score: mean over classes of the recall on the test split of the
last network, in points; differences are paired by pair and seed, with 95 % intervals (Student's t).
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import timm
import torch
from rich import box
from rich.console import Console
from rich.table import Table
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torchvision.transforms.v2 import functional as F

import frozen
from frozen import OPTIONS, WIDTH, Domain
from frozen_features import BACKBONE, FLIPS, SOLAR
from imagenet_weights import write_imagenet_weights
from metaalign_hf.alignment import build_alignment
from metaalign_hf.data.solar import load_solar_cells, split_solar_cells
from runs import RESULTS, machine, mean_and_interval

PAIRS = ((SOLAR[0], SOLAR[1]), (SOLAR[1], SOLAR[0]))
SEEDS = tuple(range(3))
STEPS, RATE = 300, 3e-4
FORMS = ("joint", "remembered")
LAST = 6
"""Number of the last of the seven stages."""
CACHE = Path(tempfile.gettempdir()) / "solar_stages.safetensors"
FOLDER = RESULTS / "fine_tuned"


def backbone() -> nn.Module:
    """EfficientNet-Lite0 with its ImageNet weights."""
    model = timm.create_model(BACKBONE).eval()
    with tempfile.TemporaryDirectory() as folder:
        model.load_state_dict(load_file(write_imagenet_weights(BACKBONE, Path(folder) / "weights.safetensors")))
    return model


class Network(frozen.Network):
    """The last stage and the heads."""

    def __init__(self, width: int, classes: int, objective: str) -> None:
        nn.Module.__init__(self)
        model = backbone()
        pooled = (nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(1280, WIDTH))
        self.backbone = nn.Sequential(*model.blocks[LAST:], model.conv_head, model.bn2, *pooled)
        self.classifier = nn.Linear(WIDTH, classes)
        spec = None if objective == "none" else {"name": objective, **OPTIONS[objective]}
        self.alignment = build_alignment(spec, WIDTH, classes)

    def train(self, mode: bool = True) -> Network:
        """Batch statistics stay those of ImageNet."""
        super().train(mode)
        for module in self.backbone.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eval()
        return self

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Features and logits of the outputs of the stage before, which are kept in half precision."""
        return super().forward(images.float())


@torch.no_grad()
def domains() -> dict[str, Domain]:
    """Outputs of the stage before the last, `(n, 4, C, H, W)`, of both domains."""
    if not CACHE.exists():
        model = backbone().to(memory_format=torch.channels_last)
        found = {}
        for name in SOLAR:
            cells = load_solar_cells(name)
            found[name] = torch.cat([stage(model, [cells[j] for j in rows]) for rows in batches(len(cells))])
        save_file(found, CACHE)
    kept = load_file(CACHE)
    result = {}
    for name in SOLAR:
        is_test = torch.zeros(len(kept[name]), dtype=torch.bool)
        is_test[list(split_solar_cells(name)[1])] = True
        labels = load_solar_cells(name).labels
        assert labels is not None
        result[name] = Domain(kept[name], torch.tensor(labels), is_test)
    return result


def batches(count: int) -> list[range]:
    return [range(start, min(start + 32, count)) for start in range(0, count, 32)]


def stage(model: Any, cells: list[Tensor]) -> Tensor:
    """Outputs of all stages but the last, of the cells and their flips."""
    images = torch.stack([F.resize(cell, [128, 128]) for cell in cells]).float()
    images = ((images / 255 - 0.5) / 0.5).contiguous(memory_format=torch.channels_last)
    views = []
    for flip in FLIPS:
        maps = model.bn1(model.conv_stem(images.flip(flip) if flip else images))
        for block in model.blocks[:LAST]:
            maps = block(maps)
        views.append(maps.half())
    return torch.stack(views, 1).contiguous()


def main() -> None:
    torch.set_num_threads(1)
    frozen.Network = Network  # type: ignore[misc]
    found: dict[tuple[str, str, int], dict[str, Any]] = {}
    path = FOLDER / "runs.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    for line in path.read_text().splitlines() if path.exists() else ():
        row = json.loads(line)
        found[tuple(row.pop("run"))] = row
    features = None
    for form, pair, seed in ((form, pair, seed) for seed in SEEDS for pair in PAIRS for form in FORMS):
        key = (form, " -> ".join(pair), seed)
        if key in found:
            continue
        features = features or domains()
        source, target = (features[name] for name in pair)
        coordinate = frozen.FORMS[form]
        figures = frozen.run(source, target, "dann", coordinate, lr=RATE, steps=STEPS, seed=seed, optimizer="adamw")
        found[key] = {name: round(value, 5) for name, value in figures.items()}
        with path.open("a") as file:
            file.write(json.dumps({"run": key, **found[key]}) + "\n")
    table = Table(box=box.MARKDOWN, title=f"Last stage fine-tuned, {STEPS} steps, {len(SEEDS)} seeds (points)")
    for column in ("step", *(f"{' -> '.join(pair)}: {end}" for pair in PAIRS for end in ("target", "source"))):
        table.add_column(column.replace("solar_", ""))
    table.add_column("target, difference to joint")
    scores = {
        (form, end): [100 * found[form, " -> ".join(p), s][f"{end}_class_mean"] for p in PAIRS for s in SEEDS]
        for form in FORMS
        for end in ("target", "source")
    }

    def written(values: list[float], sign: str = "") -> str:
        mean, half = mean_and_interval(values)
        return f"{mean:{sign}.1f} ± {half:.1f}"

    for form in FORMS:
        half = len(SEEDS)
        cells = [
            written(scores[form, end][start : start + half]) for start in (0, half) for end in ("target", "source")
        ]
        gain = [a - b for a, b in zip(scores[form, "target"], scores["joint", "target"], strict=True)]
        table.add_row(form, *cells, "" if form == "joint" else written(gain, "+"))
    Console(width=200).print(table)
    (FOLDER / "machine.json").write_text(json.dumps(machine(), indent=1) + "\n")


if __name__ == "__main__":
    main()
