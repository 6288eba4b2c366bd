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
from functools import cache, partial
from pathlib import Path

import torch
from rich import box
from rich.console import Console
from rich.table import Table
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import frozen
from frozen import OPTIONS, WIDTH, Domain
from frozen_features import SOLAR, chosen, imagenet_backbone, outputs, solar_cells
from metaalign_hf.alignment import build_alignment
from runs import RESULTS, PinnedRows, machine, with_interval

PAIRS = ((SOLAR[0], SOLAR[1]), (SOLAR[1], SOLAR[0]))
SEEDS = tuple(range(3))
STEPS, RATE = 300, 3e-4
FORMS = ("joint", "remembered")
LAST = 6
"""Number of the last of the seven stages."""
CACHE = Path(tempfile.gettempdir()) / "solar_stages.safetensors"
FOLDER = RESULTS / "fine_tuned"


class Network(frozen.Network):
    """The last stage and the heads."""

    def __init__(self, width: int, classes: int, objective: str) -> None:
        nn.Module.__init__(self)
        model = imagenet_backbone()
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


def domains() -> dict[str, Domain]:
    """Outputs of the stage before the last, `(n, 4, C, H, W)`, of both domains."""
    cells = {name: solar_cells(name) for name in SOLAR}
    if not CACHE.exists():
        model = imagenet_backbone().to(memory_format=torch.channels_last)
        before = nn.Sequential(model.conv_stem, model.bn1, *model.blocks[:LAST])
        save_file({name: outputs(before, images, 128).half() for name, (images, _, _) in cells.items()}, CACHE)
    kept = load_file(CACHE)
    return {
        name: Domain(kept[name], torch.tensor(labels), chosen(test, len(labels)))
        for name, (_, labels, test) in cells.items()
    }


def main() -> None:
    torch.set_num_threads(1)
    rows, features = PinnedRows(FOLDER, "runs"), cache(domains)

    def make(form: str, pair: tuple[str, str], seed: int) -> dict[str, float]:
        ends = [features()[name] for name in pair]
        options = {"lr": RATE, "steps": STEPS, "seed": seed, "optimizer": "adamw"}
        return frozen.run(*ends, "dann", frozen.FORMS[form], network_of=Network, **options)

    for seed in SEEDS:
        for pair in PAIRS:
            for form in FORMS:
                rows((form, " -> ".join(pair), seed), partial(make, form, pair, seed))
    table = Table(box=box.MARKDOWN, title=f"Last stage fine-tuned, {STEPS} steps, {len(SEEDS)} seeds (points)")
    for column in ("step", *(f"{' -> '.join(pair)}: {end}" for pair in PAIRS for end in ("target", "source"))):
        table.add_column(column.replace("solar_", ""))
    table.add_column("target, difference to joint")
    scores = {
        (form, end): [100 * rows.found[form, " -> ".join(p), s][f"{end}_class_mean"] for p in PAIRS for s in SEEDS]
        for form in FORMS
        for end in ("target", "source")
    }
    for form in FORMS:
        half = len(SEEDS)
        halves = [(start, end) for start in (0, half) for end in ("target", "source")]
        cells = [with_interval(scores[form, end][start : start + half]) for start, end in halves]
        gain = [a - b for a, b in zip(scores[form, "target"], scores["joint", "target"], strict=True)]
        table.add_row(form, *cells, "" if form == "joint" else with_interval(gain, "+"))
    Console(width=200).print(table)
    (FOLDER / "machine.json").write_text(json.dumps(machine(), indent=1) + "\n")


if __name__ == "__main__":
    main()
