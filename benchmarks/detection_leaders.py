"""What leaders of adaptive detection do, beside what statistics of the target alone gain.

    python benchmarks/detection_leaders.py                     # every run of the table that is not pinned yet
    python benchmarks/detection_leaders.py --seeds 1 2         # the runs of these seeds, and no table
    python benchmarks/detection_leaders.py --rows "by counts"  # of these rows alone

Test bed, source models, steps, learning rate and score are those of `detection.py`: 100 steps from the source model of
a seed, then running statistics re-estimated on 256 target images for every method alike, target test mAP@50 in points.
Differences are to `source only, statistics of the target` from the same source model and seed, with 95 % intervals
(Student's t). The checksum of the source model is pinned with each run.

Everything below was set before a target score of it was seen, from the papers or from the sizes of images and objects;
one run of seed 10, and one of four steps, were made before, only to see that nothing is broken. `by counts, remembered`
and `fixed threshold` were run last, when the other rows were known. No target label has a part in a run.

- `by counts`: the package's mean teacher with `threshold: counts`. Weight 1 after a burn-in of a tenth of the steps and
  a ramp of two tenths, strong view in colour and sharpness, the average of the weights that every run here keeps. The
  teacher normalises by the batch of target images that it labels, so its labels are those of a model with statistics of
  the target from the first step on. A threshold for each class such that over the last 256 target images the teacher
  finds as many objects of the class per image as the source has (LabelMatch, Chen et al., CVPR 2022).
- `by counts, remembered`: the same by MetaAlign's step from memory, which plays the loss on pseudo-labels against the
  one on the source; the others take the joint step.
- `fixed threshold`: `by counts` with the threshold 0.3 for all classes (DATR) in its place.
- `by score`: the same, but a box is kept with a probability of its score (after non-maximum suppression, scores of at
  least 0.05), so that it counts by its score in the mean: soft labels in the place of a threshold.
- `levels`: alignment of the finest map with positions weighted by the objectness of the boxes that cover them (as in
  RT-DATR, 2025) and of the mean query of each class (as in DATR, 2024; 1 - cosine, source to target, by predicted
  probability), joint, `alignment_share: 0.25`, statistics by domain.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any
from unittest.mock import patch

import torch
import torch.nn.functional as F
from rich import box
from rich.table import Table
from torch import Tensor, nn
from torchvision.ops import box_convert

import detection
from detection import ALIGNED, BASE, CONFIG, KEPT, SEEDS, STEPS, checksum, figures, on_all_gaps, score
from metaalign_hf import MetaAlignForObjectDetection, adapt, load_config
from metaalign_hf.alignment import AlignmentOutput
from metaalign_hf.alignment.detection import AlignmentLevel, BackbonePixel, DetectionAlignmentBatch, register_level
from metaalign_hf.alignment.detection.base import domain_mean
from metaalign_hf.alignment.reversal import reversal_strength, reverse_gradient
from metaalign_hf.configuration import SCENES
from metaalign_hf.intervals import with_interval
from metaalign_hf.target_losses import TargetContext, TargetStep, register_target_loss
from metaalign_hf.target_losses.counts import normalised_by_batch
from metaalign_hf.target_losses.pseudo_labels import MeanTeacher
from readme import publish
from runs import RESULTS, PinnedRows

FOLDER = RESULTS / "detection_leaders"
FOG, GROUND = "scenes_fog", "scenes_ground"
ALONE = "source only + statistics"
LEAST = 0.05


@register_target_loss("leaders_fixed", task="object-detection")
class Fixed(MeanTeacher):
    """The package's mean teacher, whose teacher normalises by the batch that it labels."""

    def __init__(self, context: TargetContext, *, threshold: float = 0.3) -> None:
        super().__init__(context, threshold=threshold)

    def passes(self, step: TargetStep) -> Any:
        """As its parent."""
        with normalised_by_batch(step.teacher, step.model):
            return super().passes(step)


@register_target_loss("leaders_score", task="object-detection")
class ByScore(Fixed):
    """A box is kept with a probability of its score."""

    def __init__(self, context: TargetContext) -> None:
        super().__init__(context, threshold=0.0)

    def _found(self, teacher: nn.Module, batch: dict[str, Any]) -> list[dict[str, Tensor] | None]:
        found: list[dict[str, Tensor] | None] = []
        for boxes, scores, classes in self.candidates(teacher, batch):
            keep = (scores >= LEAST) & (torch.rand_like(scores) < scores)
            found.append({"class_labels": classes[keep], "boxes": boxes[keep]} if bool(keep.any()) else None)
        return found


class Seen:
    """What a pass for alignment predicted last, which levels are not given: probabilities and boxes of the queries."""

    probabilities: Tensor
    boxes: Tensor

    @staticmethod
    def align(of: Any) -> Any:
        """`MetaAlignForObjectDetection._align`, after keeping what was predicted."""

        def align(model: Any, features: Any, domain_labels: Tensor, progress: float) -> Any:
            Seen.probabilities = model.adapter.probabilities(features.logits.detach())
            Seen.boxes = box_convert(features.pred_boxes.detach(), "cxcywh", "xyxy")
            return of(model, features, domain_labels, progress)

        return align


@register_level("leaders_pixel")
class PixelsOfObjects(BackbonePixel):
    """`backbone_pixel`, each position weighted by the highest objectness of the boxes that cover its centre."""

    maps_suffice = False

    def forward(self, batch: DetectionAlignmentBatch) -> AlignmentOutput:
        """The weighted least-squares loss of the finest map."""
        level = batch.maps[0]
        strength = reversal_strength(batch.progress, self.ceiling)
        share = self.discriminator(reverse_gradient(level.values, strength)).sigmoid().squeeze(1)
        is_target = (batch.domain_labels != 0).to(share.dtype)[:, None, None]
        rows, columns = ((torch.arange(side) + 0.5) / side for side in share.shape[1:])
        x0, y0, x1, y1 = (part[:, :, None] for part in Seen.boxes.unbind(-1))
        down, along = (y0 <= rows) & (rows <= y1), (x0 <= columns) & (columns <= x1)
        covered = (down[:, :, :, None] & along[:, :, None]).to(share.dtype)
        weights = (covered * batch.objectness[:, :, None, None]).amax(1)
        source, target = domain_mean(
            (share - is_target).square(), level.mask, batch.domain_labels, "leaders_pixel", weights
        )
        return AlignmentOutput((source + target) / 2, {})


@register_level("leaders_prototypes")
class Prototypes(AlignmentLevel):
    """1 - cosine of the two domains' mean queries of a class, each query weighted by its probability of the class."""

    uses_progress = False

    def forward(self, batch: DetectionAlignmentBatch) -> AlignmentOutput:
        """The mean over classes."""
        means = []
        for rows in (batch.domain_labels == 0, batch.domain_labels != 0):
            weights = Seen.probabilities[rows].flatten(0, 1)
            means.append(weights.T @ batch.queries[rows].flatten(0, 1) / weights.sum(0)[:, None])
        loss = (1 - F.cosine_similarity(*means, dim=1)).mean()
        return AlignmentOutput(loss, {"domain_loss": loss.detach()})


def taught(name: str, **options: Any) -> dict[str, Any]:
    """The settings of a run with a target loss."""
    loss = {"name": name, "weight": 1.0, "burn_in": 0.1, "ramp_up": 0.2, **options}
    return {"coordination.method": "joint", "model.alignment": None, "training.target_losses": [loss]}


METHODS: dict[str, dict[str, Any]] = {
    "by counts": taught("mean_teacher", threshold="counts"),
    "by counts, remembered": {
        **taught("mean_teacher", threshold="counts"),
        "coordination.method": "metaalign",
        "coordination.direction": "remembered",
    },
    "fixed threshold": taught("leaders_fixed"),
    "by score": taught("leaders_score"),
    "levels": {
        **ALIGNED,
        "model.alignment": ["leaders_pixel", "leaders_prototypes"],
        "coordination.method": "joint",
        "coordination.alignment_share": 0.25,
    },
}
ROWS: dict[tuple[str, str], Sequence[int]] = {
    (ALONE, FOG): SEEDS,
    ("by counts", FOG): SEEDS,
    ("by counts, remembered", FOG): SEEDS,
    ("fixed threshold", FOG): SEEDS,
    ("by score", FOG): SEEDS,
    ("levels", FOG): SEEDS,
    (ALONE, GROUND): SEEDS,
    ("by counts", GROUND): SEEDS,
}
"""Rows of the table, with their seeds."""
TITLES = {
    "by counts": "mean teacher, thresholds by counts",
    "by counts, remembered": "the same, by the step from memory",
    "fixed threshold": "mean teacher, threshold 0.3",
    "by score": "mean teacher, boxes by score",
    "levels": "pixels of objects and class prototypes",
}


class Runs:
    """Runs that are pinned in `results/detection_leaders/*.jsonl` and never repeated; new ones go into `part`.jsonl."""

    def __init__(self, part: str) -> None:
        self.rows, self.beside = PinnedRows(FOLDER, part), detection.Runs(part)

    def __call__(self, method: str, gap: str, seed: int) -> dict[str, float]:
        """Figures of a run, `target` under statistics of the target; and the checksum of its source model."""
        known = self.beside.source(seed)["checksum"]
        if method == ALONE:
            target = score(self.beside, ALONE, gap, seed) / 100
            return self.rows((method, gap, seed), lambda: {"target": target, "checksum": known})
        return self.rows((method, gap, seed), lambda: {**one(method, gap, seed, known), "checksum": known})

    def gains(self, method: str, gap: str, seeds: Sequence[int]) -> list[float]:
        """Differences to statistics of the target alone, by seed."""
        found = []
        for seed in seeds:
            run, alone = self.rows.found[method, gap, seed], self.rows.found[ALONE, gap, seed]
            if run["checksum"] != alone["checksum"]:
                raise SystemExit(f"{method}, {gap}, seed {seed}: it and {ALONE} are not from one source model")
            found.append(100 * (run["target"] - alone["target"]))
        return found


def one(method: str, gap: str, seed: int, known: float) -> dict[str, float]:
    """Adapt the source model of a seed, in a folder that is thrown away."""
    if checksum(seed) != known:
        raise SystemExit(f"{KEPT / str(seed)} is not the model that the pinned runs of seed {seed} started from")
    with tempfile.TemporaryDirectory() as folder:
        rate = load_config(CONFIG, BASE).optimizer.lr
        overrides = {**BASE, **METHODS[method], "training.max_steps": STEPS, "training.seed": seed}
        overrides |= {"optimizer.lr": rate / 2, "data.source": SCENES[0], "data.target": gap}
        places = {"training.output_dir": f"{folder}/run", "model.pretrained": str(KEPT / str(seed))}
        aligned = Seen.align(MetaAlignForObjectDetection._align)
        with patch.object(MetaAlignForObjectDetection, "_align", aligned):
            found = figures(adapt(load_config(CONFIG, {**overrides, **places})))
        lines = map(json.loads, Path(folder, "run", "metrics.jsonl").read_text().splitlines())
        boxes = [line["pseudo_boxes"] for line in lines if "pseudo_boxes" in line]
        model = MetaAlignForObjectDetection.from_pretrained(f"{folder}/run")
        found["target"] = on_all_gaps(model, [gap])[f"{gap}, statistics"]
    return {**found, **({"boxes": boxes[-1]} if boxes else {})}


def table(runs: Runs) -> Table:
    """What each gains over statistics of the target alone."""
    found = Table(box=box.MARKDOWN)
    for column in ("method", "target", "seeds", "mAP@50", "to statistics alone", "worst to it", "source", "boxes"):
        found.add_column(column)
    for (method, gap), seeds in ROWS.items():
        name = gap.removeprefix("scenes_")
        every = [runs(method, gap, seed) for seed in seeds]
        own = with_interval([100 * run["target"] for run in every])
        if method == ALONE:
            found.add_row("source only, statistics of the target", name, str(len(seeds)), own, "", "", "", "")
            continue
        gains = runs.gains(method, gap, seeds)
        found.add_row(
            TITLES[method],
            name,
            str(len(seeds)),
            own,
            with_interval(gains, "+"),
            f"{min(gains):+.1f}",
            f"{100 * fmean(run['source'] for run in every):.1f}",
            f"{fmean(run['boxes'] for run in every):.1f}" if "boxes" in every[0] else "",
        )
    return found


def tables() -> dict[str, Table]:
    """The table of the README, from pinned runs."""
    return {"detection, what leaders do": table(Runs("1"))}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", help="only these seeds, and no table")
    parser.add_argument("--rows", nargs="+", choices=METHODS, help="only these rows, and no table")
    options = parser.parse_args()
    runs = Runs("-".join(map(str, options.seeds or SEEDS)))
    for (method, gap), seeds in ROWS.items():
        for seed in seeds:
            if seed in (options.seeds or SEEDS) and method in (options.rows or [ALONE, *METHODS]):
                runs(method, gap, seed)
    if options.seeds is None and options.rows is None:
        publish(tables())


if __name__ == "__main__":
    main()
