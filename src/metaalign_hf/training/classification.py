"""Image classification as a task of the loop."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ..coordination import SharedPrefix, frozen_running_statistics
from ..data import (
    DomainConfig,
    DomainPair,
    build_image_processor,
    evaluation_batches,
    load_domain_pair,
    training_stream,
)
from ..errors import UserError
from ..evaluation import evaluate_classifier
from ..hub import fetch
from ..models import IGNORED_LABEL, MetaAlignForImageClassification
from ..models.backbone import use_attention
from .configuration import Config, ModelConfig
from .summary import RunFacts, Summary, quoted
from .task import Batch, Scores, StepClosures

__all__ = ["ClassificationSummary", "ClassificationTask", "build_model", "mix"]


@dataclass(frozen=True, kw_only=True)
class ClassificationSummary(Summary):
    """What a run achieved. Accuracies are shares of 0..1 on the test splits.

    Attributes:
        source_accuracy_before: Source test accuracy at the end of the source phase.
        source_accuracy: Source test accuracy at the end.
        target_accuracy_before: Target test accuracy at the end of the source phase; None without target labels.
        target_accuracy_after: Target test accuracy at the end; None without target labels.
        target_class_mean_before: Mean over classes of the target recall at the end of the source phase.
        target_class_mean_after: The same at the end.
        evaluate_command: Command that evaluates the checkpoint on the target.
    """

    title: ClassVar[str] = "test accuracy"

    source_accuracy_before: float
    source_accuracy: float
    target_accuracy_before: float | None
    target_accuracy_after: float | None
    target_class_mean_before: float | None
    target_class_mean_after: float | None
    evaluate_command: str

    def rows(self) -> list[tuple[str, float | None, float | None, int]]:
        """Source and target accuracy."""
        return [
            (f"source {self.source}", self.source_accuracy_before, self.source_accuracy, self.source_test_images),
            (f"target {self.target}", self.target_accuracy_before, self.target_accuracy_after, self.target_test_images),
        ]

    def next_commands(self) -> list[str]:
        """Evaluate, predict, export."""
        folder = self.output_dir
        return [
            self.evaluate_command,
            quoted("metaalign", "predict", folder) + " IMAGE_OR_FOLDER",
            quoted("metaalign", "export", folder, f"{folder}-native"),
            quoted("metaalign", "push", folder) + " ORGANISATION/NAME",
        ]


class ClassificationTask:
    """A domain pair of labelled images and a classifier; see `training.task.Task`.

    Args:
        config: The whole configuration.
        pair: The domain pair; by default the one that `config.data` describes.
        model: The model; by default the one that `config.model` describes.

    Raises:
        UserError: If the data or the model cannot be loaded, or their labels differ.
    """

    metric = "accuracy"
    title = ClassificationSummary.title

    def __init__(
        self, config: Config, pair: DomainPair | None = None, model: MetaAlignForImageClassification | None = None
    ) -> None:
        data = config.data
        self.config = config
        self.pair = pair or load_domain_pair(data.source, data.target, data.label_policy)
        self.model = model or build_model(config.model, self.pair.labels)
        _check_labels(self.model.config.labels, self.pair.labels)
        self.pair = self.pair.in_order(self.model.config.labels)
        self.processor = build_image_processor(
            data.image_size, data.resize_size, self.model.config.image_mean, self.model.config.image_std
        )

    def streams(
        self, source_batch: int, target_batch: int, rank: int, world_size: int
    ) -> tuple[Iterator[Batch], Iterator[Batch]]:
        """Endless micro-batches of the source and of the target, from the given numbers on."""
        training = self.config.training

        def stream(images: Any, seed: int, start_batch: int) -> Iterator[Batch]:
            return training_stream(
                images,
                self.processor,
                batch_size=training.batch_size,
                seed=seed,
                augmentation=self.config.data.augmentation,
                start_batch=start_batch,
                num_workers=self.config.data.num_workers,
                rank=rank,
                world_size=world_size,
            )

        return (
            stream(self.pair.source_train, 2 * training.seed, source_batch),
            stream(self.pair.target_train, 2 * training.seed + 1, target_batch),
        )

    def closures(
        self, model: nn.Module, source: list[Batch], target: list[Batch], progress: float, mixed_statistics: bool
    ) -> StepClosures:
        """A task pass on the source, an alignment pass on both domains, and one forward of both for a joint step."""
        mixed = [mix(s, t) for s, t in zip(source, target, strict=True)] if target else []
        if mixed and (entry := self._shared_entry()) is not None:
            return self._shared_closures(model, entry, source, mixed, progress, mixed_statistics)

        def task(batch: Batch) -> Callable[[], Tensor]:
            def run() -> Tensor:
                with frozen_running_statistics(model) if mixed_statistics and mixed else nullcontext():
                    return model(**batch, objective="task").task_loss

            return run

        def alignment(batch: Batch) -> Callable[[], Tensor]:
            return lambda: model(**batch, progress=progress, objective="alignment").alignment_loss

        def both(batch: Batch) -> Callable[[], tuple[Tensor, Tensor]]:
            def run() -> tuple[Tensor, Tensor]:
                output = model(**batch, progress=progress)
                return output.task_loss, output.alignment_loss

            return run

        return StepClosures([task(b) for b in source], [alignment(b) for b in mixed], [both(b) for b in mixed])

    def _shared_entry(self) -> nn.Module | None:
        """The submodule before which both passes of a step can share one run, or None for full passes."""
        coordination, training = self.config.coordination, self.config.training
        if coordination.method != "metaalign" or coordination.inner_scope == "all" or coordination.order == 2:
            return None
        if not coordination.share_prefix or training.gradient_checkpointing or training.compile:
            return None
        return self.model.stage_entry(coordination.inner_scope)

    def _shared_closures(
        self,
        model: nn.Module,
        entry: nn.Module,
        source: list[Batch],
        mixed: list[Batch],
        progress: float,
        mixed_statistics: bool,
    ) -> StepClosures:
        """Both passes on the mixed batch; the task's goes on from the entry with the source rows alone."""
        prefixes = [SharedPrefix(self.model, entry) for _ in mixed]

        def task(prefix: SharedPrefix, batch: Batch, labels: Tensor) -> Callable[[], Tensor]:
            def run() -> Tensor:
                with prefix.run(slice(len(labels)), freeze_statistics=mixed_statistics):
                    return model(batch["pixel_values"], labels=labels, objective="task").task_loss

            return run

        def alignment(prefix: SharedPrefix, batch: Batch) -> Callable[[], Tensor]:
            def run() -> Tensor:
                with prefix.run():
                    return model(**batch, progress=progress, objective="alignment").alignment_loss

            return run

        return StepClosures(
            task=[task(p, m, s["labels"]) for p, m, s in zip(prefixes, mixed, source, strict=True)],
            alignment=[alignment(p, m) for p, m in zip(prefixes, mixed, strict=True)],
            shared=prefixes,
        )

    def evaluate(self, model: nn.Module, rank: int, world_size: int) -> dict[str, Scores]:
        """Accuracy on the source test images and, where it has labels, on the target's."""
        size = self.config.training.evaluation_batch_size
        found = {}
        for domain, view in (("source", self.pair.source_test), ("target", self.pair.target_evaluation)):
            if view is not None:
                batches = evaluation_batches(view, self.processor, size, rank=rank, world_size=world_size)
                found[domain] = asdict(evaluate_classifier(model, batches, len(self.pair.labels)))
        return found

    def summary(self, facts: RunFacts, before: dict[str, Scores], after: dict[str, Scores]) -> ClassificationSummary:
        """The summary of a finished run."""
        old, new = before.get("target", {}), after.get("target", {})
        found = ClassificationSummary.of(
            facts,
            source_accuracy_before=before["source"]["accuracy"],
            source_accuracy=after["source"]["accuracy"],
            target_accuracy_before=old.get("accuracy"),
            target_accuracy_after=new.get("accuracy"),
            target_class_mean_before=old.get("class_mean"),
            target_class_mean_after=new.get("class_mean"),
            source_test_images=after["source"]["n"],
            target_test_images=new.get("n", 0),
            evaluate_command=_evaluate_command(facts.output_dir, self.config.data.target),
        )
        assert isinstance(found, ClassificationSummary)
        return found

    @property
    def names(self) -> tuple[str, str]:
        """Names of the source and of the target."""
        return self.pair.source_name, self.pair.target_name

    @property
    def notes(self) -> list[str]:
        """Plain statements about the data."""
        return list(self.pair.notes)


def build_model(config: ModelConfig, labels: list[str]) -> MetaAlignForImageClassification:
    """The model that the configuration describes: from a backbone, or from a metaalign checkpoint.

    Raises:
        UserError: If the backbone or checkpoint cannot be loaded.
    """
    model = _checkpoint(config.checkpoint) if config.checkpoint is not None else _from_backbone(config, labels)
    if config.attention is not None:
        use_attention(model.backbone, config.attention)
    return model


def _from_backbone(config: ModelConfig, labels: list[str]) -> MetaAlignForImageClassification:
    return MetaAlignForImageClassification.from_backbone(
        config.backbone,
        labels,
        config.alignment,
        pretrained=config.pretrained,
        bottleneck_dim=config.bottleneck_dim,
        **config.backbone_options,
    )


def _checkpoint(place: str) -> MetaAlignForImageClassification:
    folder = fetch(place, what="model.checkpoint:")
    _check_kind(place, folder)
    try:
        return MetaAlignForImageClassification.from_pretrained(folder, dtype=torch.float32)
    except UserError as error:
        raise UserError(f"model.{str(error).replace(str(folder), place)}") from error
    except Exception as error:  # damaged files make the libraries raise nearly anything
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UserError(f"model.checkpoint: {place} cannot be loaded: {reason}") from error


def _check_kind(checkpoint: str, folder: Path) -> None:
    """Refuse a checkpoint that is no classifier of ours, and say how to use it all the same."""
    own = MetaAlignForImageClassification.__name__
    try:
        architectures = json.loads((folder / "config.json").read_text()).get("architectures") or ["a model"]
    except (json.JSONDecodeError, AttributeError) as error:
        raise UserError(f"model.checkpoint: {checkpoint} has a damaged config.json") from error
    if architectures[0] != own:
        raise UserError(
            f"model.checkpoint: {checkpoint} holds {architectures[0]}, not {own}; to start from its backbone "
            f"with a new classifier, use model.backbone: {checkpoint}"
        )


def _check_labels(known: list[str], found: list[str]) -> None:
    """The classes of model and data must be the same names; their order may differ."""
    lacking = [name for name in found if name not in known]
    unused = [name for name in known if name not in found]
    if lacking or unused:
        parts = [
            f"only {who} has {', '.join(names[:5])}"
            for who, names in (("the model", unused), ("the data", lacking))
            if names
        ]
        raise UserError(f"model: its classes are not those of the data: {'; '.join(parts)}")


def mix(source: Batch, target: Batch) -> Batch:
    """Source and target in one batch: the target's rows carry label -100 and domain label 1."""
    count_s, count_t = len(source["pixel_values"]), len(target["pixel_values"])
    device = source["pixel_values"].device
    return {
        "pixel_values": torch.cat([source["pixel_values"], target["pixel_values"]]),
        "labels": torch.cat([source["labels"], source["labels"].new_full((count_t,), IGNORED_LABEL)]),
        "domain_labels": torch.cat([torch.zeros(count_s), torch.ones(count_t)]).to(device, torch.long),
    }


def _evaluate_command(folder: str, target: DomainConfig) -> str:
    """The command that evaluates the checkpoint on the run's own target."""
    options = []
    defaults = asdict(DomainConfig.parse(target.short_form()))
    for key, value in asdict(target).items():
        if value != defaults[key] and value is not None:
            options += [f"--data.{key}", str(value)]
    return quoted("metaalign", "evaluate", folder, "--data", target.short_form(), *options)
