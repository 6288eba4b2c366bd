"""What the loop must know of a task: the one seam between it and image classification or detection."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from torch import Tensor, nn
from transformers import PreTrainedModel

from ..coordination import SharedPrefix
from .summary import RunFacts, Summary

if TYPE_CHECKING:
    from ..target_losses.pseudo_labels import MeanTeacher
    from ..training.domain_batch_norm import SourceStatistics

__all__ = ["Batch", "Scores", "StepClosures", "Task"]

Batch = dict[str, Any]
Kept = dict[str, Any]
Scores = dict[str, Any]
"""Figures of one evaluation on one domain, as JSON values: at least the task's `metrics` (0..1) and `n`, the images."""


@dataclass
class StepClosures:
    """The forward passes of one step, one closure per micro-batch.

    Attributes:
        task: Each runs a pass on the source and returns the task loss.
        alignment: Each runs a pass on both domains and returns the alignment loss.
        both: Each runs the pass or passes of a joint step and returns both losses.
        shared: The shared prefix of each micro-batch, inside which its passes run; empty for full passes.
        penalty: Each runs a pass as `alignment` does and returns the penalty that stands in both losses; empty where
            there is none.
    """

    task: list[Callable[[], Tensor]] = field(default_factory=list)
    alignment: list[Callable[[], Tensor]] = field(default_factory=list)
    both: list[Callable[[], tuple[Tensor, Tensor]]] = field(default_factory=list)
    shared: list[SharedPrefix] = field(default_factory=list)
    penalty: list[Callable[[], Tensor]] = field(default_factory=list)


class Task(Protocol):
    """A task, with its data and its model.

    Attributes:
        metric: Name of the figure that is reported first, such as `accuracy`; a key of `Scores`.
        metrics: Names of all figures that an evaluation logs, that one among them.
        title: What that figure is called in tables, such as `test accuracy`.
        model: The bare model.
        processor: The image processor that is saved beside it.
        validator: Name of the validator that selects checkpoints by default.
        source_statistics: What the loop sets once batch normalisation is by domain; for classifiers alone.
        mean_teacher: Makes pseudo-labels for the target batches of a step; None without them.
        names: Names of the source and of the target.
        notes: Plain statements about the data.
    """

    metric: str
    metrics: tuple[str, ...]
    title: str
    model: PreTrainedModel
    processor: Any
    validator: str
    source_statistics: SourceStatistics | None
    mean_teacher: MeanTeacher | None

    @property
    def summary_class(self) -> type[Summary]:
        """The class of the task's summaries."""

    @property
    def model_name(self) -> str:
        """Name of the backbone or detector, for the summary and the model card."""

    @property
    def penalty(self) -> str | None:
        """Name of the penalty that stands in the task loss and in the alignment loss; None without one."""

    @property
    def names(self) -> tuple[str, str]:
        """Names of the source and of the target."""

    @property
    def notes(self) -> list[str]:
        """Plain statements about the data."""

    def streams(
        self, source_batch: int, target_batch: int, rank: int, world_size: int
    ) -> tuple[Iterator[Batch], Iterator[Batch]]:
        """Endless micro-batches of the source and of the target, from the given numbers on."""

    def closures(
        self, model: nn.Module, source: list[Batch], target: list[Batch], progress: float, mixed_statistics: bool
    ) -> StepClosures:
        """The passes of one step.

        Args:
            model: The wrapped model.
            source: Micro-batches with labels.
            target: Micro-batches without; empty in the source phase, which uses the task closures alone.
            progress: Progress of the adaptation in 0..1.
            mixed_statistics: Whether only passes on both domains move the running statistics.
        """

    @property
    def evaluated_images(self) -> int:
        """How many images one evaluation with its validators sends through the model, on all processes together."""

    def evaluate(self, model: nn.Module, rank: int, world_size: int, kept: Kept | None = None) -> dict[str, Scores]:
        """Scores on the test images of `source` and, where it has labels, of `target`; a collective call.

        Args:
            model: The wrapped model.
            rank: Number of this process.
            world_size: Number of processes.
            kept: Filled with what `validate` needs of the same images.
        """

    def examples(self, model: nn.Module) -> Scores:
        """What the model says of some target test images, as JSON values, for `write_files`; no label is read.

        Every process calls it and looks at all of them.
        """

    def validate(self, model: nn.Module, rank: int, world_size: int, kept: Kept | None = None) -> dict[str, float]:
        """Values of all validators, by name; empty without validators or enough images; a collective call.

        Args:
            model: The wrapped model.
            rank: Number of this process.
            world_size: Number of processes.
            kept: As `evaluate` filled it, for the same weights: these images do not go through the model again.
        """

    def target_images(self) -> Iterator[Tensor]:
        """Pixel values of unlabelled target training images, preprocessed as for evaluation, in whole batches."""

    def write_files(self, folder: Path, before: dict[str, Scores], after: dict[str, Scores]) -> list[str]:
        """Write what the task adds to a finished run's folder, such as a picture; returns the names of the files.

        Args:
            folder: The run's folder.
            before: Scores by domain, and under `examples` what `examples` gave, at the end of the source phase.
            after: The same at the end of the run.
        """

    def summary(self, facts: RunFacts, before: dict[str, Scores], after: dict[str, Scores]) -> Summary:
        """The summary of a finished run."""
