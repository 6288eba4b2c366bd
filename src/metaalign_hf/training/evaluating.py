"""The evaluations of a run: figures with labels, validators without, and the model offered for selection."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ..batch_norm import recalibrate_batch_norm
from ..configuration import TrainingConfig
from ..errors import UserError
from ..evaluation import get_validator
from ..reports.figures import draw_curves
from ..reports.outputs import add_outputs
from ..reports.record import RunRecord, read_metrics
from ..tasks.base import Kept, Scores, Task
from .journal import Journal
from .selection import Evaluation, Selection
from .weights import Weights

__all__ = ["Evaluator", "check_validator"]


class Evaluator:
    """Evaluates the model of a run now and then.

    Args:
        task: The task.
        weights: The model.
        training: The course of the run.
        journal: Where the figures go.

    Attributes:
        found: Scores by domain, and `examples`, by the name of the evaluation: `before` and `after`.
        selection: The selection; None where nothing is selected.
        latest: Value of the selecting validator at the last evaluation, by its name; empty before one.
        seconds: Time that evaluations took.
    """

    def __init__(self, task: Task, weights: Weights, training: TrainingConfig, journal: Journal) -> None:
        self.task, self.weights, self.training, self.journal = task, weights, training, journal
        accelerator = weights.accelerator
        self.place = accelerator.process_index, accelerator.num_processes
        self.found: dict[str, dict[str, Scores]] = {}
        self.latest: dict[str, float] = {}
        self.seconds = 0.0
        select_by = task.validator if training.select_by == "auto" else training.select_by
        self.selection: Selection | None = None
        if select_by is not None:
            folder = Path(training.output_dir)
            self.selection = Selection(folder, select_by, training.select_tolerance, accelerator.is_main_process)

    def evaluate(self, name: str, step: int, adapting: bool) -> Callable[[], None] | None:
        """Evaluate the model as it is; a collective call.

        Args:
            name: `before`, `after`, or the step.
            step: Steps taken.
            adapting: Whether in the adaptation phase.

        Returns:
            Puts back the running statistics to go on with; None where the model has them.
        """
        put_back = None
        self.task.statistics.synchronise(self.weights.kept)
        if adapting and self.training.recalibrate_bn == "target":
            put_back = recalibrate_batch_norm(self.weights.kept, self.task.target_images())
        started = time.perf_counter()
        kept: Kept = {}
        with self.weights.evaluating():
            found = self.task.evaluate(self.weights.evaluated, *self.place, kept)
            if name in ("before", "after"):
                self.found[name] = {**found, "examples": self.task.examples(self.weights.evaluated)}
                outputs = self.task.outputs(self.weights.evaluated, kept)
                if self.weights.accelerator.is_main_process:
                    add_outputs(Path(self.training.output_dir), name, outputs)
            values = self._offer(step, found, kept) if adapting or name == "before" else {}
        measures = [measure.name for measure in self.task.kind.measures]
        figures = {f"{domain}_{name}": scores[name] for domain, scores in found.items() for name in measures}
        logged = {
            f"{domain}_{name}": value
            for domain, scores in found.items()
            for name, value in scores.get("logged", {}).items()
        }
        self.journal.log(step, {"evaluation": name, **figures, **logged, **values})
        if self.journal.trackers and self.weights.accelerator.is_main_process:
            self._show_curves(step)
        words = ", ".join(f"{domain} {100 * scores[self.task.metric]:.1f} %" for domain, scores in found.items())
        self.journal.say(f"{name:>12}: {self.task.title} {words}")
        self.seconds += time.perf_counter() - started
        return put_back

    def _show_curves(self, step: int) -> None:
        """Send the curves up to here to the trackers."""
        model = {"architectures": [type(self.weights.bare).__name__]}
        metrics = read_metrics(Path(self.training.output_dir))
        figure = draw_curves(RunRecord(model, {"training": asdict(self.training)}, metrics=metrics))
        if figure is not None:
            self.journal.show(step, "curves", figure)

    def _offer(self, step: int, found: dict[str, Scores], kept: Kept) -> dict[str, float]:
        """Offer the model as it is for selection; returns the values of all validators for the log."""
        if self.selection is None:
            return {}
        values = self.task.validate(self.weights.evaluated, *self.place, kept)
        if not values:
            self.selection = None
            return {}
        validator, metric = get_validator(self.selection.validator), self.task.metric
        source, target = (found.get(domain, {}).get(metric) for domain in ("source", "target"))
        score = validator.score(values[validator.name])
        self.selection.offer(Evaluation(step, source, score, target), self.weights.kept)
        self.latest = {validator.name: values[validator.name]}
        return {f"validator_{name}": value for name, value in values.items()}

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps, as JSON values."""
        selection = [] if self.selection is None else self.selection.state()
        return {"evaluations": self.found, "selection": selection}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what `state_dict` gave."""
        self.found = state["evaluations"]
        if self.selection is not None:
            self.selection.restore(state["selection"])


def check_validator(select_by: str | None) -> None:
    """Refuse a `training.select_by` that does not name a validator.

    Raises:
        UserError: If it is none.
    """
    try:
        if select_by not in (None, "auto"):
            get_validator(select_by)
    except UserError as error:
        raise UserError(f"training.select_by: {error}; or null") from error
