"""Where the time of a detector's step goes: CPU time by part, of the small D-FINE of `examples/digit_scenes.yaml`.

    python benchmarks/detection_profile.py   # half a minute on a quiet core, then the table

Random weights, 40 steps on the source and 40 joint and remembered steps each with `swda` and statistics by domain,
whose first five are left out, and the evaluations of 200 images of each domain before and after. One thread; CPU time
and not the clock's, so that other work on the machine counts little. The shares are of disjoint parts.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any
from unittest.mock import patch

import torch
from rich import box
from rich.table import Table
from transformers.loss import loss_d_fine, loss_rt_detr
from transformers.models.d_fine import modeling_d_fine

from detection import ALIGNED, ALONE, BASE, CONFIG, FOG, REMEMBERED
from metaalign_hf import adapt, load_config
from metaalign_hf.models import MetaAlignForObjectDetection
from metaalign_hf.models.detectors.rt_detr import RTDetrAdapter
from metaalign_hf.training import stepper
from metaalign_hf.training.evaluating import Evaluator
from readme import publish
from runs import RESULTS, machine, may_run

STEPS, LEFT_OUT = 40, 5
FILE = RESULTS / "detection-profile.json"
FORMS = {"source only": ALONE, "joint": {**ALIGNED, "coordination.method": "joint"}, "remembered": REMEMBERED}
PARTS = ("data", "denoising queries", "matching", "loss", "task forward", "alignment forward", "backward", "rest")


class Clock:
    """CPU seconds by part, those of inner parts not counted in the outer ones."""

    def __init__(self) -> None:
        self.found: dict[str, list[float]] = defaultdict(list)
        self._inner: list[float] = []

    def timed(self, part: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function, whose time counts for a part."""

        def run(*arguments: Any, **keywords: Any) -> Any:
            started = time.process_time()
            self._inner.append(0.0)
            try:
                return function(*arguments, **keywords)
            finally:
                whole = time.process_time() - started
                self.found[part].append(whole - self._inner.pop())
                if self._inner:
                    self._inner[-1] += whole

        return run


def profile(overrides: dict[str, Any]) -> dict[str, float]:
    """CPU milliseconds of a step by part, and seconds of the two evaluations of a run."""
    clock = Clock()
    places = [
        ("data", stepper, "micro_batches"),
        ("denoising queries", modeling_d_fine, "get_contrastive_denoising_training_group"),
        ("matching", loss_rt_detr.RTDetrHungarianMatcher, "forward"),
        ("loss", loss_d_fine.DFineLoss, "forward"),
        ("task forward", MetaAlignForObjectDetection, "_task"),
        ("alignment forward", RTDetrAdapter, "maps"),
        ("alignment forward", MetaAlignForObjectDetection, "_align"),
        ("backward", torch.Tensor, "backward"),
        ("rest", stepper.Stepper, "take"),
        ("evaluation", Evaluator, "evaluate"),
    ]
    given = {**BASE, **overrides, "data.target": FOG, "training.max_steps": STEPS, "training.log_every": STEPS}
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        for part, owner, name in places:
            stack.enter_context(patch.object(owner, name, clock.timed(part, getattr(owner, name))))
        adapt(load_config(CONFIG, {**given, "training.output_dir": f"{folder}/run"}))
    found = {}
    for part in PARTS:
        every = clock.found[part]
        calls = len(every) // STEPS
        found[part] = 1000 * sum(every[LEFT_OUT * calls :]) / (STEPS - LEFT_OUT)
    return {**found, "evaluation": sum(clock.found["evaluation"])}


def table(found: dict[str, dict[str, float]]) -> Table:
    """Shares of a step by part, its CPU time against that of the first form, and an evaluation in steps."""
    shown = Table(box=box.MARKDOWN, title="CPU time of a step by part")
    for column in ("step", *PARTS, "step, to source only", "an evaluation, in steps"):
        shown.add_column(column)
    steps = {form: sum(parts[part] for part in PARTS) for form, parts in found.items()}
    for form, parts in found.items():
        shares = [f"{100 * parts[part] / steps[form]:.0f} %" for part in PARTS]
        evaluation = 1000 * parts["evaluation"] / 2 / steps[form]
        shown.add_row(form, *shares, f"x{steps[form] / steps['source only']:.2f}", f"{evaluation:.0f}")
    return shown


def tables() -> dict[str, Table]:
    """The table of the README, from the pinned profile."""
    if not FILE.exists():
        may_run(FILE.stem)
        main()
    return {"detection, profile": table(json.loads(FILE.read_text())["forms"])}


def main() -> None:
    torch.set_num_threads(1)
    forms = {form: profile(overrides) for form, overrides in FORMS.items()}
    rounded = {form: {part: round(value, 3) for part, value in parts.items()} for form, parts in forms.items()}
    FILE.write_text(json.dumps({"machine": machine(), "forms": rounded}, indent=1) + "\n")
    publish({"detection, profile": table(rounded)})


if __name__ == "__main__":
    main()
