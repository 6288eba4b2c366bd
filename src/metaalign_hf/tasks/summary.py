"""The summary of a run: what every task's has, to which each adds its figures."""

from __future__ import annotations

import shlex
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar

__all__ = ["CheckpointRow", "Row", "RunFacts", "Summary", "quoted"]

Row = tuple[str, float | None, float | None, int]
"""Name of a row, figure before and after, images."""


@dataclass(frozen=True)
class CheckpointRow:
    """Figures of one checkpoint in the summary.

    Attributes:
        checkpoint: `last`, `selected (label-free, NAME)` or `oracle (target labels)`.
        step: Steps taken, over both phases.
        source: The task's figure on the source test images.
        target: The same on the target; None without labels.
    """

    checkpoint: str
    step: int
    source: float
    target: float | None


@dataclass(frozen=True, kw_only=True)
class RunFacts:
    """What is known of any finished run, whatever its task.

    Attributes:
        output_dir: The run's folder.
        source: Name of the source domain.
        target: Name of the target domain.
        method: How task and alignment shared a step.
        alignment: Names of the alignment objectives.
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
        seconds_per_step: Median time of an adaptation step.
        notes: Plain statements about the data.
        checkpoints: Figures of the last checkpoint, the selected one and the best by target labels; empty without
            selection.
        validators: Value of each validator before and after, the selecting one first; empty without selection.
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
    baseline: dict[str, Any] | None = None
    notes: list[str] = field(default_factory=list)
    penalty: str | None = None
    penalty_cosine: float | None = None
    checkpoints: list[CheckpointRow] = field(default_factory=list)
    validators: dict[str, tuple[float, float]] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Summary(RunFacts):
    """What a run achieved; each task adds its figures. All are of the checkpoint that `checkpoint` names.

    Attributes:
        source_test_images: Number of source test images.
        target_test_images: Number of labelled target test images.
        evaluate_command: Command that evaluates the checkpoint on the target; None where it has no labels, or
            came in a pair made by hand.
    """

    predict_options: ClassVar[str] = ""

    source_test_images: int
    target_test_images: int
    evaluate_command: str | None

    @property
    def title(self) -> str:
        """What the figures in the rows are called."""
        raise NotImplementedError

    def rows(self) -> list[Row]:
        """Rows of the table, source and target: name, figure before and after (0..1, None without labels), images."""
        raise NotImplementedError

    def further_rows(self) -> list[Row]:
        """Rows below them, with other figures; each name says which."""
        return []

    def next_commands(self) -> list[str]:
        """Commands to try next: evaluate, predict, export, push."""
        folder = self.output_dir
        return [
            *([self.evaluate_command] if self.evaluate_command is not None else []),
            f"{quoted('metaalign', 'predict', folder)} IMAGE_OR_FOLDER{self.predict_options}",
            quoted("metaalign", "export", folder, f"{folder}-native"),
            f"{quoted('metaalign', 'push', folder)} ORGANISATION/NAME",
        ]

    @classmethod
    def of(cls, facts: RunFacts, **figures: Any) -> Summary:
        """The facts of a run with the figures of its task."""
        return cls(**{entry.name: getattr(facts, entry.name) for entry in fields(facts)}, **figures)


def quoted(*words: str) -> str:
    """A command line that a shell reads as these words."""
    return shlex.join(words)
