"""Model selection without target labels: which of the evaluated checkpoints is kept.

Among the checkpoints whose source figure is within a tolerance of the best one's (the guard), the one with the best
value of a label-free validator is selected. Target figures, where there are any, are reported beside it and never read.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ..disk import flush_to_disk
from ..errors import UserError
from ..run_folder import CANDIDATES_FOLDER, SELECTED_FOLDER
from ..tasks.summary import CheckpointRow
from .checkpoints import checkpoints, read_state, whole_tensors

__all__ = ["Evaluation", "Selection", "choose", "still_selectable"]


@dataclass(frozen=True)
class Evaluation:
    """One evaluated checkpoint.

    Attributes:
        step: Steps taken, over both phases.
        source: The task's figure on the source test images, 0..1; None without a source.
        score: The validator's value, turned so that higher is better; minus infinity where it is not a number.
        target: The task's figure on the labelled target test images; None without labels. For the report alone.
    """

    step: int
    source: float | None
    score: float
    target: float | None = None

    @property
    def guard(self) -> float:
        """The source figure; the same for all where there is no source."""
        return 0.0 if self.source is None else self.source


def _guarded(evaluations: Sequence[Evaluation], tolerance: float) -> list[Evaluation]:
    """Those whose source figure is within `tolerance` of the best one."""
    best = max((e.guard for e in evaluations), default=0.0)
    return [e for e in evaluations if e.guard >= best - tolerance]


def choose(evaluations: Sequence[Evaluation], tolerance: float) -> Evaluation:
    """The best score among those within `tolerance` of the best source figure; ties go to the source, then the last."""
    return max(_guarded(evaluations, tolerance), key=lambda e: (e.score, e.guard, e.step))


def still_selectable(evaluations: Sequence[Evaluation], tolerance: float) -> list[Evaluation]:
    """Those that `choose` may yet return, whatever is evaluated later; the weights of the others need not be kept.

    The best source figure only rises, so what has fallen behind it never returns; and what another one equals or beats
    in score and source is never preferred to it.
    """

    def beaten(e: Evaluation) -> bool:
        return any(
            o.score >= e.score and o.guard >= e.guard and (o.score, o.guard, o.step) > (e.score, e.guard, e.step)
            for o in evaluations
        )

    return [e for e in _guarded(evaluations, tolerance) if not beaten(e)]


class Selection:
    """The evaluations of a run, and on disk the weights of those that may yet be selected.

    A run may be killed at any time: weights that one of its resumable checkpoints refers to stay until that checkpoint
    is gone.

    Args:
        output_dir: The run's folder.
        validator: Name of the validator.
        tolerance: How far the source figure may lie below the best one, 0..1.
        writes: Whether this process writes files.
    """

    def __init__(self, output_dir: Path, validator: str, tolerance: float, writes: bool) -> None:
        self.folder = output_dir / CANDIDATES_FOLDER
        self.validator = validator
        self.tolerance = tolerance
        self.writes = writes
        self.evaluations: list[Evaluation] = []

    def offer(self, evaluation: Evaluation, model: nn.Module) -> None:
        """Take note of an evaluation, and of the model's weights where they may be selected; collective under FSDP2."""
        self.evaluations.append(evaluation)
        if evaluation in still_selectable(self.evaluations, self.tolerance):
            tensors = whole_tensors(model.state_dict())
            if self.writes:
                self.folder.mkdir(parents=True, exist_ok=True)
                partial = self._file(evaluation.step).with_suffix(".partial")
                save_file(tensors, partial)
                flush_to_disk(partial)
                partial.rename(self._file(evaluation.step))
        self.prune()

    def prune(self) -> None:
        """Delete weights that neither this run nor one of its resumable checkpoints may select."""
        if not self.writes or not self.folder.exists():
            return
        self._prune({e.step for e in still_selectable(self.evaluations, self.tolerance)})

    def _prune(self, kept: set[int]) -> None:
        """Delete weights but those of the steps `kept` and those that a resumable checkpoint may select."""
        for folder in checkpoints(self.folder.parent):
            try:
                history = [_from_json(values) for values in read_state(folder)["selection"]]
            except (UserError, KeyError, TypeError):
                continue  # a damaged one refers to nothing
            kept |= {e.step for e in still_selectable(history, self.tolerance)}
        for file in self.folder.iterdir():
            if file not in {self._file(step) for step in kept}:
                file.unlink()

    def selected(self) -> Evaluation:
        """The evaluation of the selected checkpoint."""
        return choose(self.evaluations, self.tolerance)

    def selected_tensors(self) -> dict[str, Tensor]:
        """The weights of the selected checkpoint."""
        return load_file(self._file(self.selected().step))

    def finish(self, may_become_longer: bool) -> None:
        """Delete the weights of the candidates.

        Args:
            may_become_longer: Whether those stay that a longer run may select: resumable checkpoints refer to them.
        """
        if not self.writes:
            return
        if self.selected().step == self.evaluations[-1].step:
            # What was selected before the run became longer.
            shutil.rmtree(self.folder.with_name(SELECTED_FOLDER), ignore_errors=True)
        if may_become_longer and self.folder.exists():
            self._prune(set())
        if not may_become_longer or not checkpoints(self.folder.parent):
            shutil.rmtree(self.folder, ignore_errors=True)

    def why_not_the_last(self) -> str | None:
        """A sentence where the guard keeps the last model from being selected, whatever its score; None otherwise."""
        last = self.evaluations[-1]
        if last in _guarded(self.evaluations, self.tolerance):
            return None
        best = max(e.guard for e in self.evaluations)
        return (
            f"The last checkpoint could not be selected: its source figure, {100 * last.guard:.1f} %, is more than "
            f"{100 * self.tolerance:g} points (training.select_tolerance) below the best one, {100 * best:.1f} %."
        )

    def rows(self) -> list[CheckpointRow]:
        """The last, the selected and, with target labels, the best evaluation by target labels."""
        chosen = {"last": self.evaluations[-1], f"selected (label-free, {self.validator})": self.selected()}
        labelled = [e for e in self.evaluations if e.target is not None]
        if labelled:
            chosen["oracle (target labels)"] = max(labelled, key=lambda e: (e.target, e.step))
        return [CheckpointRow(name, e.step, e.source, e.target) for name, e in chosen.items()]

    def state(self) -> list[dict[str, float | int | None]]:
        """All evaluations as JSON values."""
        return [{**vars(e), "score": e.score if math.isfinite(e.score) else None} for e in self.evaluations]

    def restore(self, state: list[dict[str, float | int | None]]) -> None:
        """Go on from what `state` gave."""
        self.evaluations = [_from_json(values) for values in state]
        for evaluation in still_selectable(self.evaluations, self.tolerance):
            if not self._file(evaluation.step).exists():
                raise UserError(
                    f"training.resume: {self._file(evaluation.step)}, which the run may select, is missing; put it "
                    "back, or start a new run"
                )

    def _file(self, step: int) -> Path:
        return self.folder / f"step-{step:06d}.safetensors"


def _from_json(values: dict) -> Evaluation:
    return Evaluation(**{**values, "score": -math.inf if values["score"] is None else values["score"]})
