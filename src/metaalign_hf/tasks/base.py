"""The interface of a task, which the loop and the commands use for classification and detection alike."""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from PIL import Image
from rich.table import Table
from torch import Tensor, nn
from torchvision.transforms.v2.functional import to_pil_image
from transformers import PreTrainedModel

from ..batch_norm import RECALIBRATION_IMAGES, Rows, batch_statistics
from ..configuration import Config, DomainConfig
from ..coordination import StepClosures
from ..data.bad_images import BadImages, name_of, read_replacing, readable
from ..data.blocks import random_order
from ..disk import refuse_unwritable
from ..errors import UserError
from ..models.origin import is_pretrained
from ..run_folder import BAD_IMAGES_FILE
from ..tables import write_table
from .computed_once import refuse_demanded, why_not_on_processes
from .domain_options import evaluate_command
from .kinds import TaskKind
from .summary import RunFacts, Summary, figure_names

if TYPE_CHECKING:
    from accelerate import Accelerator

    from ..data import DomainPair, ImageSet
    from ..interruption import Interruption
    from ..target_losses import TargetLoss

__all__ = ["Answer", "Batch", "Kept", "Measured", "Scores", "Skip", "StepClosures", "Task", "rows_of"]

Batch = dict[str, Any]
Kept = dict[str, Any]
Scores = dict[str, Any]
"""Figures of one evaluation on one domain, as JSON values: at least the task's measures (0..1) and `n`, the images."""
Skip = Callable[[int, UserError], None]


@dataclass
class Measured:
    """What a checkpoint achieves on a labelled domain.

    Attributes:
        n: Number of images.
        lines: The figures in words.
        table: The figures of each class.
        figures: All of them, as JSON values.
    """

    n: int
    lines: list[str]
    table: Table | None
    figures: dict[str, Any]


@dataclass
class Answer:
    """What a model says of an image.

    Attributes:
        lines: In words.
        rows: As rows of a table, all of them with the same columns.
        details: What else the task writes of it.
    """

    lines: list[str]
    rows: list[dict[str, Any]]
    details: Any = None


class Task:
    """A domain pair and a model, and what training, selection and a report do with them.

    A subclass gives `stream`, `closures` and `scores`; the rest has defaults. Its constructor takes a `Config`, and
    a pair and a model that take the place of those that the configuration describes.

    Args:
        config: The whole configuration.
        pair: The domain pair.
        model: The bare model.
        processor: The image processor that is saved beside it.

    Attributes:
        kind: What is known of the task without torch.
        validator: Name of the validator that selects checkpoints by default; None where there are none.
        annotations: The `AnnotationKind` of its domains; None where they are not read from a configuration.
        statistics: What batch normalisation does in the run.
        target_losses: Further terms of the loss, on target images.
        bad_images: The images that could not be read and were skipped.
        drawn: By domain, the names of the images of the last micro-batches.
    """

    kind: ClassVar[TaskKind]
    validator: str | None = None
    annotations: ClassVar[Any] = None
    model: Any

    def __init__(self, config: Config, pair: DomainPair[Any], model: PreTrainedModel, processor: Any) -> None:
        self.bad_images = BadImages()
        self.drawn: dict[str, list[list[str]]] = {}
        if config.data.on_bad_image == "skip":
            pair = self._readable(pair)
        self.config, self.pair, self.model, self.processor = config, pair, model, processor
        self.statistics = batch_statistics(config.training.batch_norm, model, is_pretrained(model.config))
        self.target_losses: list[TargetLoss] = []
        self._without_cache: str | None = "the task computes nothing once"

    @property
    def cached(self) -> bool:
        """Whether the run's steps are on features that were computed once."""
        return self._without_cache is None

    def _settle_cache(self, reason: str | None) -> None:
        """Say why the run computes features in every pass; None where they are computed once.

        Raises:
            UserError: If there is a reason and a cache is demanded, or its folder cannot be written.
        """
        refuse_demanded(self.config, reason)
        self._without_cache = reason
        if self.cached and (folder := self.config.data.cache_folder) is not None:
            refuse_unwritable(Path(folder), "data.cache_folder")

    def _cached_on(self, accelerator: Accelerator) -> bool:
        """Whether features are computed once on the processes of this run, too."""
        if self.cached and (reason := why_not_on_processes(accelerator)) is not None:
            self._settle_cache(reason)
        return self.cached

    def _readable(self, pair: DomainPair[Any]) -> DomainPair[Any]:
        """The pair without the test images that cannot be read."""
        names = ("source_test", "target_test_images", "target_evaluation")
        views = {name: getattr(pair, name) for name in names}
        found = {name: readable(view, self.bad_images) for name, view in views.items() if view is not None}
        return replace(pair, **found)

    def read(self, images: Any, indices: Sequence[int]) -> list[Tensor]:
        """Unlabelled training images; one that cannot be read stops the run, or is replaced where it may be skipped."""
        if self.config.data.on_bad_image == "error":
            return [images[index] for index in indices]
        _, read, unreadable = read_replacing(images, indices)
        for index, reason in unreadable:
            self.bad_images.add(images.name, name_of(images, index), reason)
        return read

    # Training

    def stream(self, images: Any, **options: Any) -> Iterator[Batch]:
        """Endless micro-batches of training images, as `data.streams.endless` takes the options."""
        raise NotImplementedError

    def prepare(self, accelerator: Accelerator, stop: Interruption) -> bool:
        """Compute what can be computed once, before the first step, when the run's folder is its own.

        Args:
            accelerator: Wrapped the model.
            stop: Hears what is asked of the run from outside.

        Returns:
            Whether images are loaded otherwise from now on, so that streams must be opened again.
        """
        return False

    @property
    def heads_alone(self) -> bool:
        """Whether a step runs nothing but heads, on features that were computed once."""
        return False

    @property
    def target_augmentation(self) -> str:
        """The augmentation of target images."""
        return self.config.data.augmentation

    def with_target_labels(self, source: Batch, few: Batch) -> Batch:
        """Source rows and then labelled target rows, which the task loss alone uses."""
        raise UserError("data.target_labeled: this task takes no labelled target images")

    def streams(
        self, source_batch: int, target_batch: int, rank: int, world_size: int
    ) -> tuple[Iterator[Batch], Iterator[Batch]]:
        """Endless micro-batches of the source and of the target, from the given numbers on; empty without a source."""
        training, data = self.config.training, self.config.data

        def stream(
            images: Any,
            seed: int,
            start_batch: int,
            name: str,
            batch_size: int = training.batch_size,
            augmentation: str = data.augmentation,
        ) -> Iterator[Batch]:
            def heard(drawn: list[str], unreadable: list[tuple[str, str, str]]) -> None:
                # A step takes so many batches of each domain.
                self.drawn[name] = [*self.drawn.get(name, []), drawn][-training.gradient_accumulation_steps :]
                for image in unreadable:
                    self.bad_images.add(*image)

            return self.stream(
                images,
                batch_size=batch_size,
                seed=seed,
                augmentation=augmentation,
                start_batch=start_batch,
                num_workers=0 if self.cached else data.num_workers,  # rows of a file need none
                rank=rank,
                world_size=world_size,
                even=data.source_sampling == "even",
                heard=heard,
                **({"replace": True} if data.on_bad_image == "skip" else {}),
            )

        weak, seed = self.target_augmentation, 2 * training.seed + 1
        target = stream(self.pair.target_train, seed, target_batch, "target", augmentation=weak)
        if not self.pair.has_source:
            return itertools.repeat({}), target
        source = stream(self.pair.source_train, 2 * training.seed, source_batch, "source")
        if (few := self.pair.target_labeled) is not None:
            size = min(training.batch_size, max(1, len(few) // world_size))
            labelled = stream(few, 2 * training.seed + 1_000_000, source_batch, "labelled target", size)
            source = map(self.with_target_labels, source, labelled)
        return source, target

    def closures(self, model: nn.Module, source: list[Batch], target: list[Batch], progress: float) -> StepClosures:
        """The passes of one step.

        Args:
            model: The wrapped model.
            source: Micro-batches with labels.
            target: Micro-batches without; empty in the source phase, which uses the task closures alone.
            progress: Progress of the adaptation in 0..1.
        """
        raise NotImplementedError

    def target_pass(self, model: nn.Module, source: Batch, view: Batch) -> Callable[[], Tensor]:
        """A pass that returns the task loss on target images, for a target loss.

        Args:
            model: The wrapped model.
            source: The source's micro-batch of the step.
            view: A view of the target's micro-batch, with labels that something else than a human gave.
        """
        raise NotImplementedError

    def logits_pass(
        self, model: nn.Module, source: Batch, view: Batch, loss: Callable[[Tensor], Tensor]
    ) -> Callable[[], Tensor]:
        """As `target_pass`, for a loss of the class logits `(B, K)` of the view.

        Args:
            model: The wrapped model.
            source: The source's micro-batch of the step.
            view: A view of the target's micro-batch.
            loss: Makes a scalar of the logits.
        """
        raise NotImplementedError

    # Evaluation and selection

    @property
    def metric(self) -> str:
        """The measure that is reported first."""
        return self.kind.measures[0].name

    @property
    def title(self) -> str:
        """What it is called in tables."""
        return f"test {self.kind.measure(self.metric).heading}"

    @property
    def validation_views(self) -> int:
        """How many views of each target image an evaluation with validators sends through the model."""
        return 0

    @property
    def evaluated_images(self) -> int:
        """How many images one evaluation with its validators sends through the model, on all processes together."""
        training, target = self.config.training, self.pair.target_evaluation
        chosen = 0 if training.select_by is None else min(training.selection_images, len(self.pair.target_train))
        return len(self.pair.source_test) + (0 if target is None else len(target)) + self.validation_views * chosen

    def evaluate(self, model: nn.Module, rank: int, world_size: int, kept: Kept | None = None) -> dict[str, Scores]:
        """Scores on the test images of `source` and, where it has labels, of `target`; a collective call.

        Args:
            model: The wrapped model.
            rank: Number of this process.
            world_size: Number of processes.
            kept: Filled with what `validate` needs of the same images.
        """
        views = {"source": self.pair.source_test, "target": self.pair.target_evaluation}
        return {
            domain: self.scores(model, domain, view, rank, world_size, kept)
            for domain, view in views.items()
            if view is not None and len(view) > 0
        }

    def scores(self, model: nn.Module, domain: str, view: Any, rank: int, world_size: int, kept: Kept | None) -> Scores:
        """As `evaluate`, on the test images of one domain."""
        raise NotImplementedError

    def predictions(
        self, model: nn.Module, view: Any, rank: int, world_size: int
    ) -> tuple[np.ndarray[Any, Any], Scores | None]:
        """What the model says of images, for `MetaAlignTrainer.predict`; a collective call.

        Args:
            model: The wrapped model.
            view: The images.
            rank: Number of this process.
            world_size: Number of processes.

        Returns:
            A row for each image, and its figures where the images have labels.

        Raises:
            UserError: If the task has no rows for images.
        """
        raise UserError(
            f"predict: there is no table of what a {self.kind.noun} says; save the model, and use `metaalign predict`"
        )

    def validate(self, model: nn.Module, rank: int, world_size: int, kept: Kept | None = None) -> dict[str, float]:
        """Values of all validators, by name; empty without validators or enough images; a collective call.

        Args:
            model: The wrapped model.
            rank: Number of this process.
            world_size: Number of processes.
            kept: As `evaluate` filled it, for the same weights: these images do not go through the model again.
        """
        return {}

    def pixel_values(self, images: Sequence[Tensor]) -> Tensor:
        """Images `(3, H, W)`, uint8, as the model sees them in evaluation, `(B, 3, H, W)`."""
        raise NotImplementedError

    def features(self, pixel_values: Tensor) -> Tensor:
        """Features `(B, D)` of images as `pixel_values` makes them, by the model as it is."""
        raise NotImplementedError

    @property
    def plain_target(self) -> Any:
        """The target's training images, for `target_images`."""
        return self.pair.target_train

    def target_images(self) -> Iterator[Tensor]:
        """Pixel values of unlabelled target training images, preprocessed as for evaluation, in whole batches."""
        training, view = self.config.training, self.plain_target
        order = random_order(view, [training.seed, 3]).tolist()
        size = min(training.evaluation_batch_size, len(view))
        for start in range(0, min(RECALIBRATION_IMAGES, len(view)) - size + 1, size):
            yield self.pixel_values(self.read(view, order[start : start + size]))

    # Reports

    @property
    def names(self) -> tuple[str, str]:
        """Names of the source and of the target."""
        return self.pair.source_name, self.pair.target_name

    @property
    def model_name(self) -> str:
        """Name of the backbone or detector, for the summary and the model card."""
        return str(self.model.config.model_type)

    @property
    def penalty(self) -> str | None:
        """Name of the penalty that stands in the task loss and in the alignment loss; None without one."""
        return None

    @property
    def notes(self) -> list[str]:
        """Plain statements about the data."""
        few = self.pair.target_labeled
        used = [] if few is None else [f"The task loss also used {len(few)} labelled target images, in both phases."]
        without = [] if self.pair.has_source else ["No image and no label of the model's source was used."]
        return [*without, *self.pair.notes, *used]

    def notes_of_run(self) -> list[str]:
        """Plain statements about what a finished run did."""
        told = (loss.note(self.config.training.max_steps) for loss in self.target_losses)
        notes = [*self.statistics.notes(), *(note for note in told if note is not None)]
        if bad := len(self.bad_images.found):
            notes.append(f"Images that could not be read, and were skipped: {bad}; {BAD_IMAGES_FILE} lists them.")
        return notes

    def examples(self, model: nn.Module) -> Scores:
        """What the model says of some target test images, as JSON values, for `write_files`; no label is read.

        Every process calls it and looks at all of them.
        """
        return {}

    def outputs(self, model: nn.Module, kept: Kept) -> dict[str, Tensor]:
        """What the model says of test images, as small tensors for `metaalign report`; a collective call.

        Args:
            model: The wrapped model.
            kept: As `evaluate` filled it, for the same weights.
        """
        return {}

    def write_files(self, folder: Path, before: Scores, after: Scores) -> list[str]:
        """Write what the task adds to a finished run's folder, such as a picture; returns the names of the files.

        Args:
            folder: The run's folder.
            before: What `examples` gave at the end of the source phase.
            after: The same at the end of the run.
        """
        return []

    def further_figures(self, after: dict[str, Scores]) -> dict[str, Any]:
        """What the summary says beyond the measures."""
        return {}

    def summary(self, facts: RunFacts, before: dict[str, Scores], after: dict[str, Scores]) -> Summary:
        """The summary of a finished run, from the scores by domain at the end of the source phase and of the run."""
        figures: dict[str, Any] = {}
        for measure in self.kind.measures:
            for domain in ("source", "target"):
                names = figure_names(domain, measure.name)
                figures |= zip(
                    names, (scores.get(domain, {}).get(measure.name) for scores in (before, after)), strict=True
                )
        measured = "target" in after
        return Summary(
            **vars(facts),
            task=self.kind.pipeline_tag,
            metric=self.metric,
            figures=figures | self.further_figures(after),
            source_test_images=after["source"]["n"] if "source" in after else 0,
            target_test_images=after["target"]["n"] if measured else 0,
            evaluate_command=evaluate_command(facts.output_dir, self.pair.domains) if measured else None,
        )

    # Checkpoints, adapted or native, outside a run

    @staticmethod
    def measure(model: Any, processor: Any, domain: DomainConfig, split: Any, batch_size: int) -> Measured:
        """What a model achieves on a labelled domain.

        Args:
            model: The model.
            processor: Its image processor.
            domain: The domain.
            split: `test`, `train` or `all`.
            batch_size: Images in a batch.

        A task whose options say `evaluates` takes these too, by name.

        Raises:
            UserError: If the domain cannot be read, or the model does not know its classes.
        """
        raise UserError("evaluate: this task cannot be evaluated outside a run")

    @staticmethod
    def answers(
        model: Any, processor: Any, files: ImageSet, options: argparse.Namespace, skip: Skip
    ) -> Iterator[Answer]:
        """What a model says of image files, in their order.

        Args:
            model: The model.
            processor: Its image processor.
            files: The images, with their paths.
            options: Those of `metaalign predict`, with a `batch_size`.
            skip: Called with the number of an image that cannot be read, and why; it is then left out.
        """
        raise UserError("predict: this task has no predictions outside a run")

    @staticmethod
    def confidences(answer: Answer) -> list[tuple[str, float]]:
        """What an answer says as names with confidences in 0..1, the first one first; empty for words alone."""
        return []

    @staticmethod
    def picture(image: Tensor, answer: Answer) -> Image.Image:
        """An image `(3, H, W)`, uint8, with what can be drawn of an answer in it."""
        return to_pil_image(image)

    @classmethod
    def finish(cls, answers: list[Answer], options: argparse.Namespace) -> list[str]:
        """Write the answers where the options say so.

        Args:
            answers: All of them, at least one.
            options: Those of `metaalign predict`.

        Returns:
            What to say of it.
        """
        if options.output is None:
            return []
        rows = [row for answer in answers for row in answer.rows]
        write_table(options.output, rows, list(rows[0]) if rows else ["file"])
        return [f"{len(answers)} images {cls.kind.done}: {options.output}"]


def rows_of(source: Batch, mixed: Batch) -> Rows:
    """Rows of a batch on both domains. Labelled target rows follow the source's, and are the target's.

    Args:
        source: The source's batch, in which labelled target rows have domain label -100.
        mixed: The batch on both domains.
    """
    domains = source.get("domain_labels")
    count = len(source["labels"]) if domains is None else int((domains == 0).sum())
    return Rows(count, len(mixed["labels"]))
