"""The summary of a run: its facts, and the figures of its task."""

from __future__ import annotations

import shlex
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from .kinds import TaskKind, task_named

__all__ = ["CheckpointRow", "Row", "RunFacts", "Summary", "figure_names"]

Row = tuple[str, float | None, float | None, int]
"""Name of a row, figure before and after, images."""


@dataclass(frozen=True)
class CheckpointRow:
    """Figures of one checkpoint in the summary.

    Attributes:
        checkpoint: `last`, `selected (label-free, NAME)` or `oracle (target labels)`.
        step: Steps taken, over both phases.
        source: The task's figure on the source test images; None without a source.
        target: The same on the target; None without labels.
    """

    checkpoint: str
    step: int
    source: float | None
    target: float | None


@dataclass(frozen=True, kw_only=True)
class RunFacts:
    """What is known of any finished run, whatever its task.

    Attributes:
        output_dir: The run's folder.
        source: Name of the source domain; without a source that of the model.
        target: Name of the target domain.
        method: How task and alignment shared a step.
        alignment: Names of the alignment objectives.
        target_losses: Names of the target losses.
        backbone: The backbone's or detector's name.
        seed: Seed of the run.
        source_steps: Steps of the source phase.
        adaptation_steps: Steps of the adaptation phase.
        gradient_cosine: Mean cosine of the task and alignment gradients over the adaptation; None where the method does
            not separate them. The alignment gradient is then without `penalty`.
        penalty: Name of a penalty that stands in both losses; None without one.
        penalty_cosine: Mean cosine of the task gradient and the penalty's, in the same steps.
        checkpoint: Which checkpoint the numbers come from.
        batch_norm: What batch normalisation did.
        seconds: Wall time of the run's last start, without set-up.
        seconds_in_evaluation: How much of it was spent in evaluations.
        baseline: Figures of the same steps on the source alone: `source`, `target` (None without labels), `steps`,
            `output_dir`; None where no such run was asked for.
        seconds_per_step: Median time of an adaptation step, once it has its images.
        waiting_share: Share of the adaptation steps' time that was spent waiting for images, 0..1.
        notes: Plain statements about the data.
        checkpoints: Figures of the last checkpoint, the selected one and the best by target labels; empty without
            selection.
        validators: Value of each validator before and after, the selecting one first; empty without selection.
        citations: BibTeX of the methods that the run used.
        versions: Versions of the libraries.
    """

    output_dir: str
    source: str
    target: str
    method: str
    alignment: list[str]
    backbone: str
    seed: int
    source_steps: int
    adaptation_steps: int
    gradient_cosine: float | None
    checkpoint: str
    batch_norm: str
    seconds: float
    seconds_per_step: float | None
    seconds_in_evaluation: float | None = None
    waiting_share: float | None = None
    baseline: dict[str, Any] | None = None
    notes: list[str] = field(default_factory=list)
    target_losses: list[str] = field(default_factory=list)
    penalty: str | None = None
    penalty_cosine: float | None = None
    checkpoints: list[CheckpointRow] = field(default_factory=list)
    validators: dict[str, tuple[float, float]] = field(default_factory=dict)
    citations: list[str] = field(default_factory=list)
    versions: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Summary(RunFacts):
    """What a run achieved, on the test images. All figures are of the checkpoint that `checkpoint` names.

    For each measure of the task, such as `accuracy`, there are `source_accuracy_before`, `source_accuracy_after`,
    `target_accuracy_before` and `target_accuracy_after`, shares of 0..1: at the end of the source phase and at the end.
    They are entries of `summary.json` and attributes here. Those of the target are None where it has no labels.

    Attributes:
        task: The task's pipeline tag.
        metric: The measure that heads the summary.
        figures: The figures by name, and what else the task reports.
        source_test_images: Number of source test images.
        target_test_images: Number of labelled target test images.
        evaluate_command: Command that evaluates the checkpoint on the target; None where it has no labels, or
            came in a pair made by hand.
    """

    task: str
    metric: str
    figures: dict[str, Any]
    source_test_images: int
    target_test_images: int
    evaluate_command: str | None

    def __getattr__(self, name: str) -> Any:
        try:
            return self.__dict__["figures"][name]
        except KeyError:
            raise AttributeError(f"a summary has no {name!r}") from None

    @property
    def kind(self) -> TaskKind:
        """The task."""
        return task_named(self.task)

    @property
    def title(self) -> str:
        """What the figures in the rows are called."""
        return f"test {self.kind.measure(self.metric).heading}"

    def rows(self) -> list[Row]:
        """Rows of the table, source (where one was used) and target: name, figure before and after (0..1), images."""
        domains = ("target",) if self.method == "target_only" else ("source", "target")
        return [self._row(domain, self.metric, f"{domain} {getattr(self, domain)}") for domain in domains]

    def further_rows(self) -> list[Row]:
        """Rows below them: the other figures on the target, where they are known."""
        _, *others = self.kind.measures_from(self.metric)
        found = [self._row("target", measure.name, f"target {measure.heading}") for measure in others]
        return [row for row in found if row[2] is not None]

    def _row(self, domain: str, measure: str, name: str) -> Row:
        before, after = figure_names(domain, measure)
        return name, self.figures.get(before), self.figures.get(after), getattr(self, f"{domain}_test_images")

    def next_commands(self) -> list[str]:
        """Commands to try next: evaluate, predict, export, push."""
        folder = self.output_dir
        return [
            *([self.evaluate_command] if self.evaluate_command is not None else []),
            f"{shlex.join(['metaalign', 'predict', folder])} IMAGE_OR_FOLDER{self.kind.try_also}",
            shlex.join(["metaalign", "export", folder, f"{folder}-native"]),
            f"{shlex.join(['metaalign', 'push', folder])} ORGANISATION/NAME",
        ]

    def to_dict(self) -> dict[str, Any]:
        """The entries of `summary.json`."""
        values = asdict(self)
        figures = values.pop("figures")
        return {**values, **figures}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Summary:
        """The summary with these entries of `summary.json`."""
        known = {entry.name for entry in fields(cls)} & values.keys()
        rows = [CheckpointRow(**row) for row in values["checkpoints"]]
        figures = {key: value for key, value in values.items() if key not in known}
        return cls(**{**{key: values[key] for key in known}, "checkpoints": rows, "figures": figures})


def figure_names(domain: str, measure: str) -> tuple[str, str]:
    """Names of a figure before and after, on `source` or `target`."""
    name = f"{domain}_{measure}"
    return f"{name}_before", f"{name}_after"
