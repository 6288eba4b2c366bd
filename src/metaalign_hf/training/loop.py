"""The Accelerate loop: a source phase, then adaptation."""

from __future__ import annotations

import json
import logging
import math
import statistics
import time
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, PartialState
from accelerate.tracking import get_available_trackers
from accelerate.utils import DistributedDataParallelKwargs, set_seed
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from ..data import (
    DomainPair,
    build_image_processor,
    evaluation_batches,
    load_domain_pair,
    training_stream,
)
from ..errors import UserError
from ..evaluation import Accuracy, evaluate_classifier
from ..models import MetaAlignForImageClassification
from .batch_norm import freeze_batch_norm, resolve_batch_norm
from .checkpoints import load_checkpoint, read_state, save_checkpoint
from .configuration import Config, ModelConfig
from .optimizers import build_optimizer, parameter_groups, set_learning_rate
from .run_folder import METRICS_FILE, check_output_dir, truncate_metrics, write_config
from .schedules import learning_rate_factor, progress
from .steps import Batch, adaptation_step, build_coordinator, micro_batches, source_step
from .summary import Summary, print_summary, write_summary

__all__ = ["adapt", "build_model"]

logger = logging.getLogger(__name__)


def adapt(
    config: Config,
    *,
    pair: DomainPair | None = None,
    model: MetaAlignForImageClassification | None = None,
) -> Summary:
    """Adapt a classifier from a labelled source to an unlabelled target.

    Writes the adapted model (safetensors), its image processor, `training_config.yaml`, `metrics.jsonl`, `summary.json`
    and, if asked, resumable checkpoints to `training.output_dir`.

    Args:
        config: The whole configuration.
        pair: The domain pair; by default the one that `config.data` describes.
        model: The model to adapt; by default the one that `config.model` describes.

    Returns:
        The summary of the run.

    Raises:
        UserError: If the configuration, the data or the output folder do not allow the run, or the loss diverges.
    """
    return _Run(config, pair, model).run()


def build_model(config: ModelConfig, labels: list[str]) -> MetaAlignForImageClassification:
    """The model that the configuration describes: from a backbone, or from a metaalign checkpoint.

    Raises:
        UserError: If the backbone or checkpoint cannot be loaded, or the checkpoint has other labels.
    """
    if config.checkpoint is None:
        return MetaAlignForImageClassification.from_backbone(
            config.backbone,
            labels,
            config.alignment,
            pretrained=config.pretrained,
            bottleneck_dim=config.bottleneck_dim,
            **config.backbone_options,
        )
    try:
        model = MetaAlignForImageClassification.from_pretrained(config.checkpoint, dtype=torch.float32)
    except OSError as error:
        raise UserError(
            f"model.checkpoint: {config.checkpoint} cannot be loaded: {str(error).splitlines()[0]}"
        ) from error
    if model.config.labels != labels:
        raise UserError(
            f"model.checkpoint: {config.checkpoint} knows other labels ({model.config.labels[:5]} ...) than the data"
        )
    return model


class _Run:
    """One run; `step` counts optimiser steps over both phases."""

    def __init__(self, config: Config, pair: DomainPair | None, model: MetaAlignForImageClassification | None) -> None:
        training = config.training
        self.config = config
        self.output_dir = Path(training.output_dir)
        _check(config)
        self.accelerator = _accelerator(config)
        self.console = Console(stderr=False, quiet=not self.accelerator.is_main_process)
        checkpoint = check_output_dir(config)
        self.pair = pair or load_domain_pair(config.data.source, config.data.target, config.data.label_policy)
        set_seed(training.seed)
        bare = model or build_model(config.model, self.pair.labels)
        if bare.config.labels != self.pair.labels:
            raise UserError(f"model: its labels {bare.config.labels[:5]} ... are not those of the pair")
        if config.coordination.method != "source_only" and not bare.config.alignment:
            raise UserError(
                f"model.alignment: {config.coordination.method} needs an alignment objective; name one, or use "
                "coordination.method: source_only"
            )
        if training.gradient_checkpointing:
            bare.gradient_checkpointing_enable()
        self.batch_norm = resolve_batch_norm(training.batch_norm, bool(config.model.pretrained))
        self.processor = build_image_processor(
            config.data.image_size, config.data.resize_size, bare.config.image_mean, bare.config.image_std
        )
        optimizer = build_optimizer(parameter_groups(bare.parameter_roles(), config.optimizer), config.optimizer)
        self.model, self.optimizer = self.accelerator.prepare(bare, optimizer)
        self.coordinator = build_coordinator(config.coordination, self.optimizer, self.model, self.accelerator)
        self.step = 0
        self.evaluations: dict[str, dict[str, Accuracy]] = {}
        self.cosine_sum, self.cosine_count = torch.zeros((), device=self.accelerator.device), 0
        self.step_seconds: list[float] = []
        if checkpoint is not None:
            self._restore(checkpoint)
        self.source, self.target = self._streams()
        # Only now, when nothing about the run can be refused any more, is the folder touched.
        self.accelerator.wait_for_everyone()
        if self.accelerator.is_main_process:
            write_config(config)
            truncate_metrics(self.output_dir, self.step)
        if training.trackers:
            self.accelerator.init_trackers("metaalign", config=_flat_scalars(config))

    @property
    def bare(self) -> MetaAlignForImageClassification:
        return self.accelerator.unwrap_model(self.model)

    def run(self) -> Summary:
        training = self.config.training
        started = time.perf_counter()
        total = training.source_steps + training.max_steps
        with _progress_bar(self.console) as bar:
            task = bar.add_task("source phase" if self.step < training.source_steps else "adaptation", total=total)
            bar.update(task, completed=self.step)
            if self.step == 0 and training.source_steps == 0:
                self._evaluate("before")
            while self.step < total:
                adapting = self.step >= training.source_steps
                bar.update(task, description="adaptation" if adapting else "source phase")
                self._take_step(adapting)
                bar.advance(task)
        self._save()
        summary = self._summary(time.perf_counter() - started)
        if self.accelerator.is_main_process:
            write_summary(summary)
            print_summary(summary, self.console)
        if training.trackers:
            self.accelerator.end_training()
        return summary

    def _streams(self) -> tuple[Iterator[Batch], Iterator[Batch]]:
        config, training = self.config, self.config.training
        k = training.gradient_accumulation_steps

        def stream(images: Any, seed: int, start_step: int) -> Iterator[Batch]:
            return training_stream(
                images,
                self.processor,
                batch_size=training.batch_size,
                seed=seed,
                augmentation=config.data.augmentation,
                start_batch=start_step * k,
                num_workers=config.data.num_workers,
                rank=self.accelerator.process_index,
                world_size=self.accelerator.num_processes,
            )

        return (
            stream(self.pair.source_train, 2 * training.seed, self.step),
            stream(self.pair.target_train, 2 * training.seed + 1, max(0, self.step - training.source_steps)),
        )

    def _take_step(self, adapting: bool) -> None:
        training, settings = self.config.training, self.config.optimizer
        k, device = training.gradient_accumulation_steps, self.accelerator.device
        first, total = (training.source_steps, training.max_steps) if adapting else (0, training.source_steps)
        local = self.step - first
        if local == 0:
            # Each phase starts with a fresh optimiser: the source phase's momentum knows nothing of alignment.
            self.optimizer.state.clear()
        factor = learning_rate_factor(settings.schedule, local, total, settings.warmup_steps)
        set_learning_rate(self.optimizer, factor)
        batches = micro_batches(self.source, k, device)
        unlabelled = micro_batches(self.target, k, device) if adapting else []
        started = time.perf_counter()
        torch.manual_seed(_step_seed(training.seed, self.step, self.accelerator.process_index))
        self.model.train()
        if self.batch_norm == "frozen":
            freeze_batch_norm(self.bare.backbone)
        if adapting and self.config.coordination.method != "source_only":
            report = adaptation_step(
                self.coordinator,
                self.model,
                batches,
                unlabelled,
                progress(local, total),
                local,
                self.batch_norm == "mixed",
            )
        else:
            report = source_step(self.optimizer, self.model, self.accelerator, batches)
        if training.max_grad_norm is not None:
            report["gradient_norm"] = self.accelerator.clip_grad_norm_(self.model.parameters(), training.max_grad_norm)
        self.optimizer.step()
        self.step += 1
        if "cosine" in report:
            self.cosine_sum += report["cosine"]
            self.cosine_count += 1
        if self.step % training.log_every == 0 or local + 1 == total:
            self._log({"phase": "adaptation" if adapting else "source", "lr": settings.lr * factor, **_numbers(report)})
        if adapting:
            self.step_seconds.append(time.perf_counter() - started)
        self._after_step(local + 1 == total, adapting)

    def _after_step(self, end_of_phase: bool, adapting: bool) -> None:
        training = self.config.training
        if end_of_phase:
            self._evaluate("after" if adapting else "before")
        elif training.evaluate_every and self.step % training.evaluate_every == 0:
            self._evaluate(f"step {self.step}")
        if training.checkpoint_every and self.step % training.checkpoint_every == 0:
            self._checkpoint()

    def _evaluate(self, name: str) -> None:
        views = {"source": self.pair.source_test, "target": self.pair.target_evaluation}
        rank, world = self.accelerator.process_index, self.accelerator.num_processes
        found = {}
        for domain, view in views.items():
            if view is None:
                continue
            batches = evaluation_batches(
                view, self.processor, self.config.training.evaluation_batch_size, rank=rank, world_size=world
            )
            found[domain] = evaluate_classifier(self.model, batches, len(self.pair.labels))
        if name in ("before", "after"):
            self.evaluations[name] = found
        self._log({"evaluation": name, **{f"{domain}_accuracy": value.accuracy for domain, value in found.items()}})
        words = ", ".join(f"{domain} {100 * value.accuracy:.1f} %" for domain, value in found.items())
        self.console.print(f"{name:>12}: test accuracy {words}", highlight=False)

    def _log(self, values: dict[str, Any]) -> None:
        for name, value in values.items():
            if isinstance(value, float) and not math.isfinite(value):
                raise UserError(
                    f"training diverged: {name} is {value} at step {self.step}; lower optimizer.lr or "
                    "coordination.inner_lr, or set training.max_grad_norm"
                )
        if self.accelerator.is_main_process:
            with (self.output_dir / METRICS_FILE).open("a") as file:
                file.write(json.dumps({"step": self.step, **values}) + "\n")
        if self.config.training.trackers:
            self.accelerator.log({k: v for k, v in values.items() if isinstance(v, int | float)}, step=self.step)

    def _checkpoint(self) -> None:
        training = self.config.training
        if self.accelerator.is_main_process:
            scaler = self.accelerator.scaler
            state = {
                "evaluations": {n: {d: vars(a) for d, a in found.items()} for n, found in self.evaluations.items()},
                "cosine_sum": float(self.cosine_sum),
                "cosine_count": self.cosine_count,
                "scaler": scaler.state_dict() if scaler is not None else None,
            }
            save_checkpoint(self.output_dir, self.step, self.bare, self.optimizer, state, training.keep_checkpoints)
        self.accelerator.wait_for_everyone()

    def _restore(self, folder: Path) -> None:
        load_checkpoint(folder, self.bare, self.optimizer)
        state = read_state(folder)
        self.step = state["step"]
        self.cosine_sum += state["cosine_sum"]
        self.cosine_count = state["cosine_count"]
        self.evaluations = {
            name: {domain: Accuracy(**values) for domain, values in found.items()}
            for name, found in state["evaluations"].items()
        }
        if self.accelerator.scaler is not None and state["scaler"]:
            self.accelerator.scaler.load_state_dict(state["scaler"])
        self.console.print(f"Resuming {self.output_dir} after step {self.step}.")

    def _save(self) -> None:
        if self.accelerator.is_main_process:
            self.bare.save_pretrained(self.output_dir)
            self.processor.save_pretrained(self.output_dir)
        self.accelerator.wait_for_everyone()

    def _summary(self, seconds: float) -> Summary:
        config, before, after = self.config, self.evaluations["before"], self.evaluations["after"]
        target_before, target_after = before.get("target"), after.get("target")
        separated = self.cosine_count > 0
        return Summary(
            output_dir=str(self.output_dir),
            source=self.pair.source_name,
            target=self.pair.target_name,
            method=config.coordination.method,
            alignment=[entry["name"] for entry in self.bare.config.alignment],
            backbone=self.bare.config.backbone_name or "",
            seed=config.training.seed,
            source_steps=config.training.source_steps,
            adaptation_steps=config.training.max_steps,
            source_accuracy_before=before["source"].accuracy,
            source_accuracy=after["source"].accuracy,
            target_accuracy_before=target_before.accuracy if target_before else None,
            target_accuracy_after=target_after.accuracy if target_after else None,
            target_class_mean_before=target_before.class_mean if target_before else None,
            target_class_mean_after=target_after.class_mean if target_after else None,
            gradient_cosine=float(self.cosine_sum) / self.cosine_count if separated else None,
            source_test_images=after["source"].n,
            target_test_images=target_after.n if target_after else 0,
            checkpoint="last",
            batch_norm=self.batch_norm,
            seconds=round(seconds, 1),
            seconds_per_step=round(statistics.median(self.step_seconds), 4) if self.step_seconds else None,
            notes=list(self.pair.notes),
            versions={name: version(name) for name in ("metaalign-hf", "torch", "transformers", "timm", "accelerate")},
        )


def _check(config: Config) -> None:
    """Refuse settings out of range, before anything is built."""
    training, optimizer = config.training, config.optimizer
    at_least_one = ("max_steps", "batch_size", "gradient_accumulation_steps", "log_every", "keep_checkpoints")
    for name in (*at_least_one, "evaluation_batch_size"):
        if getattr(training, name) < 1:
            raise UserError(f"training.{name} is {getattr(training, name)}: it must be 1 or more")
    for name in ("source_steps", "evaluate_every", "checkpoint_every"):
        if getattr(training, name) < 0:
            raise UserError(f"training.{name} is {getattr(training, name)}: it must be 0 or more")
    for name in ("lr", "weight_decay", "head_multiplier", "discriminator_multiplier", "discriminator_inner_multiplier"):
        value = getattr(optimizer, name)
        if not math.isfinite(value) or value < 0:
            raise UserError(f"optimizer.{name} is {value}: it must be a finite number, 0 or more")
    inner = config.coordination.inner_lr
    if not math.isfinite(inner) or inner < 0:
        raise UserError(f"coordination.inner_lr is {inner}: it must be a finite number, 0 or more")
    usable = {str(getattr(tracker, "value", tracker)) for tracker in get_available_trackers()}
    for tracker in training.trackers:
        if tracker not in usable:
            raise UserError(
                f"training.trackers: {tracker} is unknown or not installed; usable here: "
                f"{', '.join(sorted(usable)) or 'none'}"
            )
    if training.device == "cuda" and not torch.cuda.is_available():
        raise UserError("training.device: cuda was asked for, but torch sees no GPU here; use auto or cpu")


def _accelerator(config: Config) -> Accelerator:
    training = config.training
    torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = True, False
    # A second run in one Python process may want another precision or device than the first.
    AcceleratorState._reset_state(
        reset_partial_state=PartialState._shared_state.get("_cpu") != (training.device == "cpu")
    )
    return Accelerator(
        mixed_precision=training.mixed_precision,
        cpu=training.device == "cpu",
        log_with=training.trackers or None,
        project_dir=training.output_dir,
        # The discriminator gets no gradient in the task pass.
        kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=True)],
    )


def _step_seed(seed: int, step: int, rank: int) -> int:
    """A different seed for each step and process, so that dropout needs no saved random state."""
    return (seed * 1_000_003 + step) * 1_009 + rank


def _numbers(report: dict[str, Any]) -> dict[str, float | str]:
    return {name: float(v) if isinstance(v, torch.Tensor) else v for name, v in report.items()}


def _flat_scalars(config: Config) -> dict[str, int | float | str | bool]:
    from dataclasses import asdict

    flat: dict[str, int | float | str | bool] = {}
    for section, values in asdict(config).items():
        for key, value in values.items():
            flat[f"{section}.{key}"] = value if isinstance(value, int | float | str | bool) else json.dumps(value)
    return flat


def _progress_bar(console: Console) -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    return Progress(*columns, console=console, transient=True, disable=not console.is_terminal)
