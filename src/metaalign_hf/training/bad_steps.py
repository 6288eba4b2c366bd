"""Steps whose numbers are not finite: undone, counted, and after too many in a row the end of the run."""

from __future__ import annotations

import json
import math
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..coordination import StepReport
from ..disk import write_whole
from ..run_folder import BAD_STEP_FILE, CONFIG_FILE

__all__ = ["BadStep", "BufferCopies", "not_finite", "write_bad_step"]


@dataclass(frozen=True)
class BadStep:
    """A step that was undone.

    Attributes:
        reason: Which objective, and what of it was not finite.
        learning_rates: Of every group of the optimiser.
        images: By domain, the images of the batch on this process: their files, or their numbers in the domain.
    """

    reason: str
    learning_rates: list[float]
    images: dict[str, list[str]]


def not_finite(report: StepReport, names: Mapping[str, str]) -> str | None:
    """Which loss of a step is not finite, called by the name of its role; None if both are."""
    named = {names["task"]: report.task_loss, names["alignment"]: report.alignment_loss}
    losses = {name: loss for name, loss in named.items() if isinstance(loss, Tensor)}
    if not losses or bool(torch.isfinite(torch.stack([loss.float() for loss in losses.values()])).all()):
        return None
    name, value = next((n, float(v)) for n, v in losses.items() if not math.isfinite(float(v)))
    return f"the {name} loss is {value}"


class BufferCopies:
    """Copies of all buffers of some modules, such as running statistics, which a pass moves whatever comes of it.

    Args:
        modules: The modules.
    """

    def __init__(self, modules: Sequence[nn.Module]) -> None:
        self._buffers = list({id(b): b for module in modules for b in module.buffers()}.values())
        self._copies = [buffer.clone() for buffer in self._buffers]

    @torch.no_grad()
    def take(self) -> None:
        """Copy them as they are now."""
        if self._buffers:
            torch._foreach_copy_(self._copies, self._buffers)

    @torch.no_grad()
    def put_back(self) -> None:
        """Make them as they were."""
        if self._buffers:
            torch._foreach_copy_(self._buffers, self._copies)


def write_bad_step(folder: Path, step: int, bad: BadStep, checkpoint: Path, process: int) -> Path:
    """Say in a file what was in the batch of a bad step, and which command takes the step again.

    Args:
        folder: The run's folder.
        step: Number of the step, from 1.
        bad: The step.
        checkpoint: From where it can be taken again, bit for bit.
        process: Number of the process whose images these are.
    """
    path = folder / BAD_STEP_FILE
    options = ["--config", str(folder / CONFIG_FILE), "--training.resume", str(checkpoint)]
    values: dict[str, Any] = {
        "step": step,
        "reason": bad.reason,
        "learning_rates": bad.learning_rates,
        "process": process,
        "images": bad.images,
        "replay": shlex.join(["metaalign", "train", *options]),
    }
    write_whole(path, json.dumps(values, indent=2) + "\n")
    return path
