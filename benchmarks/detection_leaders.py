"""What leaders of adaptive detection do, beside what statistics of the target alone gain.

    python benchmarks/detection_leaders.py                     # every run of the table that is not pinned yet
    python benchmarks/detection_leaders.py --seeds 11 12       # the runs of these seeds, and no table
    python benchmarks/detection_leaders.py --rows "by counts"  # of these rows alone

Test bed, source models, steps, learning rate and score are those of `detection.py`: 100 steps from the source model of
a seed, then running statistics re-estimated on 256 target images for every method alike, target test mAP@50 in points.
Differences are to `source only, statistics of the target` from the same source model and seed, with 95 % intervals
(Student's t). The checksum of the source model is pinned with each run.

Everything below was set before a target score of it was seen, from the papers or from the sizes of images and objects;
runs of four steps, whose scores nobody looked at, said that nothing is broken. The source models are new, and nothing
was picked on them. No target label has a part in a run.

- `by counts`: the package's mean teacher with `threshold: counts`. Weight 1 after a burn-in of a tenth of the steps and
  a ramp of two tenths, strong view in colour and sharpness, the average of the weights that every run here keeps. The
  teacher normalises by the batch of target images that it labels, so its labels are those of a model with statistics of
  the target from the first step on. A threshold for each class such that over the last 256 target images the teacher
  finds as many objects of the class per image as the source has (LabelMatch, Chen et al., CVPR 2022).
- `by counts, remembered`: the same by MetaAlign's step from memory, which plays the loss on pseudo-labels against the
  one on the source; the others take the joint step.
- `masked`: `by counts`, and square patches of the student's strong view are set to the mean colour; the teacher sees
  the whole image (MIC, Hoyer et al., CVPR 2023). Half of the patches, as in its detection configuration; of 8 pixels,
  an eighth of the image's side as in its segmentation (64 of 512), which is a third of a digit.
- `dynamic`: the thresholds of MRT (Zhao et al., ICCV 2023, and its code) in the place of the counts. They start at 0.3,
  and T_k = 0.9 T_k + 0.1 * 0.5 sqrt(p_k) in 0.25..0.45, where p_k is the mean probability of the queries that match an
  object of the source and say class k. MRT renews them after each of 80 epochs, and here every step does; the queries
  are the teacher's, not the student's.
- `frozen`: `by counts` with labels of the source model itself, which never moves, and normalises by the batch that it
  labels as the teacher does. What `by counts` has on it is what the updating of the teacher brings.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from rich import box
from rich.table import Table
from torch import Tensor, nn
from transformers import AutoModelForObjectDetection
from transformers.loss.loss_rt_detr import RTDetrHungarianMatcher

import detection
from detection import BASE, CONFIG, FOG, GAPS, KEPT, SEEDS, STEPS, checksum, figures, on_all_gaps, score
from metaalign_hf import MetaAlignForObjectDetection, adapt, load_config
from metaalign_hf.configuration import SCENES
from metaalign_hf.coordination import frozen_running_statistics
from metaalign_hf.intervals import with_interval
from metaalign_hf.target_losses import TargetContext, TargetStep, register_target_loss
from metaalign_hf.target_losses.counts import normalised_by_batch
from metaalign_hf.target_losses.pseudo_labels import MeanTeacher
from metaalign_hf.target_losses.views import masked_view
from readme import publish
from runs import RESULTS, PinnedRows

FOLDER = RESULTS / "detection_leaders"
ALONE = "source only + statistics"
PATCH, MASKED = 8, 0.5
SOURCE = "the source model"


@register_target_loss("leaders_masked", task="object-detection")
class Masked(MeanTeacher):
    """By counts, with patches of the student's view left out."""

    def __init__(self, context: TargetContext) -> None:
        super().__init__(context, threshold="counts")

    def label(self, teacher: nn.Module, target: Sequence[dict[str, Any]]) -> Any:
        """As its parent, whose teacher has seen the whole image."""
        views, told = super().label(teacher, target)
        return [{**view, "pixel_values": masked_view(view["pixel_values"], PATCH, MASKED)} for view in views], told


@register_target_loss("leaders_dynamic", task="object-detection")
class Dynamic(MeanTeacher):
    """The thresholds of MRT."""

    def __init__(self, context: TargetContext) -> None:
        super().__init__(context, threshold=0.3)

    def passes(self, step: TargetStep) -> Any:
        """As its parent."""
        with normalised_by_batch(step.teacher, step.model):
            scores, classes = map(torch.cat, zip(*(self.positive(step.teacher, b) for b in step.source), strict=True))
            for label in classes.unique().tolist():
                mean = float(scores[classes == label].mean())
                moved = 0.9 * float(self.thresholds[label]) + 0.1 * 0.5 * mean**0.5
                self.thresholds[label] = min(max(moved, 0.25), 0.45)
            passes, told = super().passes(step)
        return passes, {**told, "mean_threshold": float(self.thresholds.mean())}

    @torch.no_grad()
    def positive(self, teacher: nn.Module, batch: dict[str, Any]) -> tuple[Tensor, Tensor]:
        """Highest probability of each query that matches an object of the source, and its class."""
        output = teacher(batch["pixel_values"])
        given = {"logits": output.logits, "pred_boxes": output.pred_boxes}
        matched = RTDetrHungarianMatcher(teacher.detector.config)(given, batch["labels"])
        every = self.probabilities(output.logits.float())
        best = torch.cat([rows[queries] for rows, (queries, _) in zip(every, matched, strict=True)]).max(-1)
        return best.values, best.indices


@register_target_loss("leaders_labeller", task="object-detection")
class Labeller(MeanTeacher):
    """By counts, with labels of a detector that does not move."""

    needs_teacher = False

    def __init__(self, context: TargetContext, *, folder: str) -> None:
        super().__init__(context, threshold="counts")
        self.labeller = AutoModelForObjectDetection.from_pretrained(folder).eval()
        for layer in self.labeller.modules():
            if isinstance(layer, nn.modules.batchnorm._BatchNorm):
                layer.train()

    def label(self, teacher: nn.Module, target: Sequence[dict[str, Any]]) -> Any:
        """As its parent, with the labels of this detector."""
        with frozen_running_statistics(self.labeller):
            return super().label(self.labeller, target)


def settings(method: str, start: Path) -> dict[str, Any]:
    """The settings of a run from this source model, which some take as the labeller too."""
    losses = [{**loss} for loss in METHODS[method]["training.target_losses"]]
    for loss in losses:
        if loss.get("folder") == SOURCE:
            loss["folder"] = str(start)
    return {**METHODS[method], "training.target_losses": losses}


def taught(name: str, **options: Any) -> dict[str, Any]:
    """The settings of a run with a target loss."""
    loss = {"name": name, "weight": 1.0, "burn_in": 0.1, "ramp_up": 0.2, **options}
    return {"coordination.method": "joint", "model.alignment": None, "training.target_losses": [loss]}


METHODS: dict[str, dict[str, Any]] = {
    "by counts": taught("mean_teacher", threshold="counts"),
    "frozen": taught("leaders_labeller", folder=SOURCE),
    "masked": taught("leaders_masked"),
    "dynamic": taught("leaders_dynamic"),
    "by counts, remembered": {
        **taught("mean_teacher", threshold="counts"),
        "coordination.method": "metaalign",
        "coordination.direction": "remembered",
    },
}
ROWS: dict[tuple[str, str], Sequence[int]] = {
    (ALONE, FOG): SEEDS,
    **{(method, FOG): SEEDS for method in METHODS},
    **{(method, gap): SEEDS for gap in GAPS if gap != FOG for method in (ALONE, "by counts")},
}
"""Rows of the table, with their seeds."""
TITLES = {
    "by counts": "mean teacher, thresholds by counts",
    "by counts, remembered": "mean teacher by counts, step from memory",
    "masked": "mean teacher by counts, masked view",
    "dynamic": "mean teacher, thresholds of MRT",
    "frozen": "labels of the source model, by counts",
}


class Runs:
    """Runs that are pinned in `results/detection_leaders/*.jsonl` and never repeated; new ones go into `part`.jsonl."""

    def __init__(self, part: str) -> None:
        self.rows, self.beside = PinnedRows(FOLDER, part), detection.Runs(part)

    def __call__(self, method: str, gap: str, seed: int) -> dict[str, float]:
        """Figures of a run, `target` under statistics of the target; and the checksum of its source model."""

        def made() -> dict[str, float]:
            known = self.beside.source(seed)["checksum"]
            if method == ALONE:
                return {"target": score(self.beside, ALONE, gap, seed) / 100, "checksum": known}
            return {**one(method, gap, seed, known), "checksum": known}

        return self.rows((method, gap, seed), made)

    def gains(self, method: str, other: str, gap: str, seeds: Sequence[int]) -> list[float]:
        """Differences of two methods, by seed."""
        found = []
        for seed in seeds:
            run, beside = self.rows.found[method, gap, seed], self.rows.found[other, gap, seed]
            if run["checksum"] != beside["checksum"]:
                raise SystemExit(f"{method}, {gap}, seed {seed}: it and {other} are not from one source model")
            found.append(100 * (run["target"] - beside["target"]))
        return found


def one(method: str, gap: str, seed: int, known: float) -> dict[str, float]:
    """Adapt the source model of a seed, in a folder that is thrown away."""
    start = KEPT / str(seed)
    if checksum(seed) != known:
        raise SystemExit(f"{start} is not the model that the pinned runs of seed {seed} started from")
    with tempfile.TemporaryDirectory() as folder:
        rate = load_config(CONFIG, BASE).optimizer.lr
        overrides = {**BASE, **settings(method, start), "training.max_steps": STEPS, "training.seed": seed}
        overrides |= {"optimizer.lr": rate / 2, "data.source": SCENES[0], "data.target": gap}
        places = {"training.output_dir": f"{folder}/run", "model.pretrained": str(start)}
        found = figures(adapt(load_config(CONFIG, {**overrides, **places})))
        lines = [json.loads(line) for line in Path(folder, "run", "metrics.jsonl").read_text().splitlines()]
        model = MetaAlignForObjectDetection.from_pretrained(f"{folder}/run")
        found["target"] = on_all_gaps(model, [gap])[f"{gap}, statistics"]
    for name, key in (("boxes", "pseudo_boxes"), ("threshold", "mean_threshold")):
        logged = [line[key] for line in lines if key in line]
        found |= {name: logged[-1]} if logged else {}
    return found


def table(runs: Runs) -> Table:
    """What each gains over statistics of the target alone, and over the mean teacher by counts."""
    found = Table(box=box.MARKDOWN)
    columns = ("method", "target", "seeds", "mAP@50", "to statistics alone", "worst to it", "to by counts", "source")
    for column in (*columns, "boxes"):
        found.add_column(column)
    for (method, gap), seeds in ROWS.items():
        name = gap.removeprefix("scenes_")
        every = [runs(method, gap, seed) for seed in seeds]
        own = with_interval([100 * run["target"] for run in every])
        if method == ALONE:
            found.add_row("source only, statistics of the target", name, str(len(seeds)), own, *5 * [""])
            continue
        gains = runs.gains(method, ALONE, gap, seeds)
        found.add_row(
            TITLES[method],
            name,
            str(len(seeds)),
            own,
            with_interval(gains, "+"),
            f"{min(gains):+.1f}",
            "" if method == "by counts" else with_interval(runs.gains(method, "by counts", gap, seeds), "+"),
            f"{100 * fmean(run['source'] for run in every):.1f}",
            f"{fmean(run['boxes'] for run in every):.1f}",
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
