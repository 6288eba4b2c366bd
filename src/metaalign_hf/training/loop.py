"""The Accelerate loop: a source phase, then adaptation."""

from __future__ import annotations

import json
import logging
import os
import statistics
import time
from collections.abc import Callable
from copy import deepcopy
from dataclasses import asdict, replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator, DistributedType
from accelerate.state import AcceleratorState, PartialState
from accelerate.tracking import get_available_trackers
from accelerate.utils import DistributedDataParallelKwargs, broadcast_object_list, set_seed
from rich.console import Console
from torch import Tensor, nn
from transformers import PreTrainedModel

from ..batch_norm import check_batch_norm, recalibrate_batch_norm, require_batch_norm
from ..citations import citations_of
from ..configuration import Config
from ..configuration.hub import license_notes
from ..coordination import MetaAlign
from ..disk import told_disk_errors
from ..errors import UserError
from ..evaluation import get_validator
from ..hub import BackgroundPusher, HubError, write_card
from ..progress import display, no_model_progress_bars, stage
from ..reports import RunRecord
from ..reports.citations import methods_of
from ..run_folder import CONFIG_FILE, METRICS_FILE, SELECTED_FOLDER, SUMMARY_FILE
from ..target_losses import TargetStep, with_target_losses
from ..tasks.base import Kept, Pair, Scores, Task
from ..tasks.building import build_task
from .baseline import baseline_config, baseline_figures, read_summary
from .checkpoints import load_checkpoint, read_state, save_checkpoint
from .given import recorded_config, with_domains_of
from .longer import refuse_inexact, why_not_longer
from .optimizers import build_optimizer, parameter_groups, set_learning_rate
from .run_folder import check_output_dir, truncate_metrics, write_config
from .schedules import evaluation_interval, learning_rate_factor, progress
from .selection import Evaluation, Selection
from .steps import adaptation_step, build_coordinator, micro_batches, source_step
from .summary import RunFacts, Summary, print_summary, write_summary
from .validator_change import validator_changes
from .weight_average import WeightAverage

__all__ = ["adapt"]

logger = logging.getLogger(__name__)


def adapt(
    config: Config,
    *,
    pair: Pair | None = None,
    model: PreTrainedModel | None = None,
) -> Summary:
    """Adapt a model, such as a classifier or a detector, from a labelled source to an unlabelled target.

    Writes the adapted model (the last one; safetensors), its image processor, `training_config.yaml`, `metrics.jsonl`,
    `summary.json`, a model card and, if asked, resumable checkpoints to `training.output_dir`; where
    `training.select_by` selects an earlier model, that one to `selected/` in it. For a detector also
    `detections.png`, target images with the boxes found before and after, and for a classifier `target_images.png`,
    those it is most and least sure of and those that changed their class; neither is pushed. Pushes to the Hub as `hub`
    says.

    Args:
        config: The whole configuration.
        pair: The domain pair, such as a `DomainPair` or a `DetectionPair`; by default the one that `config.data`
            describes. The run's record names the domains that it was loaded from; of a pair made by hand it says that
            they are not known.
        model: The model to adapt, which also says what the task is; by default the one that `config.model` describes.
            The run's record names the weights that it says it started from.

    Returns:
        The summary of the run.

    Raises:
        UserError: If the configuration, the data or the output folder do not allow the run, or the loss diverges, or
            the disk is full or cannot be written to.
        HubError: If the Hub refuses before the run, or the push at its end fails; the run's folder is then complete.
    """
    config = with_domains_of(config, pair)
    _check(config)
    folder = Path(config.training.output_dir)

    def advice() -> str:
        goes_on = (folder / CONFIG_FILE).exists() and not (folder / SUMMARY_FILE).exists()
        return "; once that is put right, go on with --training.resume true" if goes_on else ""

    with told_disk_errors(folder, advice):
        # The model that was given is trained in place; the baseline starts from it as it was.
        untrained = deepcopy(model) if config.training.baseline else None
        run = _Run(config, lambda: build_task(config, pair, model), recorded_config(config, pair, model))

        def baseline() -> dict[str, Any] | None:
            if not config.training.baseline:
                return None
            alone = baseline_config(config)
            compared = read_summary(alone, run.task.kind)
            if compared is None:
                run.console.print("The same steps on the source alone, for comparison:")
                recorded = recorded_config(alone, pair, untrained)
                compared = _Run(alone, lambda: build_task(alone, pair, untrained), recorded).run()
            return baseline_figures(compared, alone)

        return run.run(baseline)


class _Run:
    """One run of a task, which is built once everything that is known without it has been checked.

    `step` counts optimiser steps over both phases.
    """

    def __init__(self, config: Config, build_task: Callable[[], Task], recorded: dict[str, Any]) -> None:
        training = config.training
        self.config = config
        self.output_dir = Path(training.output_dir)
        self.accelerator = _accelerator(config)
        self.console = Console(stderr=False, quiet=not self.accelerator.is_main_process)
        self.pusher: BackgroundPusher | None = None
        if config.hub.repo_id is not None:
            pusher = BackgroundPusher(config.hub, self.output_dir, self._report)
            self.pusher = pusher if self.accelerator.is_main_process else None
        checkpoint = check_output_dir(config, recorded)
        set_seed(training.seed)
        self.task = build_task()
        bare = self.task.model
        refuse_inexact(config, bare, checkpoint)
        if config.coordination.method != "source_only" and not bare.config.alignment:
            raise UserError(
                f"model.alignment: {config.coordination.method} needs an alignment objective; name one, or use "
                "coordination.method: source_only"
            )
        if training.gradient_checkpointing:
            bare.gradient_checkpointing_enable()
        if training.recalibrate_bn == "target":
            require_batch_norm(bare)
        optimizer = build_optimizer(parameter_groups(bare.parameter_roles(), config.optimizer), config.optimizer)
        self.model, self.optimizer = self.accelerator.prepare(bare, optimizer)
        self.coordinator = build_coordinator(config.coordination, self.optimizer, self.model, self.accelerator)
        self.inner_lr = 0.0 if self.coordinator.inner is None else self.coordinator.inner.inner_lr
        self.average = self._weight_average()
        self.step = 0
        self.evaluations: dict[str, dict[str, Scores]] = {}
        self.evaluation_count = 0
        self.evaluation_seconds = 0.0
        self.interval = evaluation_interval(
            training.source_steps, training.max_steps, self._batch_images, self.task.evaluated_images
        )
        self.cosine_sum, self.cosine_count = torch.zeros((), device=self.accelerator.device), 0
        self.penalty_cosine_sum = torch.zeros((), device=self.accelerator.device)
        self.step_seconds: list[float] = []
        self.selection: Selection | None = None
        select_by = self.task.validator if training.select_by == "auto" else training.select_by
        if select_by is not None:
            self.selection = Selection(
                self.output_dir, select_by, training.select_tolerance, self.accelerator.is_main_process
            )
        if checkpoint is not None:
            self._restore(checkpoint)
        k = training.gradient_accumulation_steps
        self.source, self.target = self.task.streams(
            k * self.step,
            k * max(0, self.step - training.source_steps),
            self.accelerator.process_index,
            self.accelerator.num_processes,
        )
        self._probe()
        self._prepare_hub()
        # Only now, when nothing about the run can be refused any more, is the folder touched.
        self.accelerator.wait_for_everyone()
        if self.accelerator.is_main_process:
            write_config(self.output_dir, recorded)
            truncate_metrics(self.output_dir, self.step, training.source_steps + training.max_steps)
        for note in [*self.task.notes, *license_notes(config.hub.license)]:
            self._report(f"Note: {note}")
        if training.trackers:
            self.accelerator.init_trackers("metaalign", config=_flat_scalars(config))

    @property
    def bare(self) -> PreTrainedModel:
        return self.accelerator.unwrap_model(self.model, keep_torch_compile=False)

    @property
    def evaluated(self) -> nn.Module:
        """The model that is evaluated: the average of the weights where there is one."""
        return self.model if self.average is None else self.average.module

    @property
    def _kept(self) -> PreTrainedModel:
        """The bare form of the evaluated model, which is saved."""
        if self.average is None:
            return self.bare
        module: PreTrainedModel = self.average.module
        return module

    def _weight_average(self) -> WeightAverage | None:
        decay = self.config.training.ema_decay
        if decay is None:
            return None
        if self.accelerator.distributed_type == DistributedType.FSDP:
            raise UserError("training.ema_decay: an average of the weights cannot be kept under FSDP2; use null")
        return WeightAverage(self.bare, decay)

    def _probe(self) -> None:
        """Find out before the first step whether the model can do what the coordination asks of it."""
        if not isinstance(self.coordinator, MetaAlign) or self.coordinator.order == 1:
            return
        source, target = self.task.streams(0, 0, self.accelerator.process_index, self.accelerator.num_processes)
        device = self.accelerator.device
        batches = micro_batches(source, 1, device), micro_batches(target, 1, device)
        self.task.statistics.train_mode(self.model)
        closures = self.task.closures(self.model, *batches, 0.5)
        try:
            self.coordinator.probe(closures.task, closures.alignment)
        except RuntimeError as error:
            raise UserError(f"coordination.order: {error} (in a configuration: model.attention: eager)") from error

    def run(self, baseline: Callable[[], dict[str, Any] | None] = lambda: None) -> Summary:
        """The whole run.

        Args:
            baseline: Makes the run to compare with, once this one is trained, and returns its figures.
        """
        training = self.config.training
        started = time.perf_counter()
        total = training.source_steps + training.max_steps
        source, target = self.task.names
        self._report(
            f"{source} -> {target}: {training.source_steps} steps on the source, then {training.max_steps} of "
            f"adaptation, on {self.accelerator.device}; each evaluation takes {self.task.evaluated_images} images"
        )
        with display(self.console):
            if self.step == 0 and training.source_steps == 0:
                self._evaluate("before", adapting=False)
            for end in (training.source_steps, total):
                if self.step < end:
                    self._run_phase(end)
        self._save()
        summary = replace(self._summary(time.perf_counter() - started), baseline=baseline())
        if self.accelerator.is_main_process:
            # A run that began with an older release kept no examples.
            old, new = (self.evaluations[name].get("examples") for name in ("before", "after"))
            files = self.task.write_files(self.output_dir, old, new) if old and new else []
            write_summary(summary)
            write_card(self.output_dir, self.config.hub.repo_id, self.config.hub.license)
            print_summary(summary, self.console, files)
        if self.selection is not None:
            self.selection.finish(may_become_longer=why_not_longer(self.config, self.bare) is None)
        if training.trackers:
            self.accelerator.end_training()
        if self.pusher is not None:
            self._report(f"Pushed: {self.pusher.finish()}")
        return summary

    def _run_phase(self, end: int) -> None:
        """The steps up to `end`, the last one of a phase."""
        training = self.config.training
        adapting = self.step >= training.source_steps
        first = training.source_steps if adapting else 0
        domains = 2 if adapting and self.config.coordination.method != "source_only" else 1
        title = "adaptation" if adapting else "source phase"
        with stage(title, end - first, "steps", self.step - first) as shown:
            while self.step < end:
                losses = self._take_step(adapting)
                shown.figures = partial(_numbers, losses)
                shown.advance(1, domains * self._batch_images)
                self._after_step(self.step == end, adapting)

    @property
    def _batch_images(self) -> int:
        """Images of one domain in a step, on all processes."""
        training = self.config.training
        return training.batch_size * training.gradient_accumulation_steps * self.accelerator.num_processes

    def _take_step(self, adapting: bool) -> dict[str, Tensor | None]:
        """One step; returns its losses."""
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
        aligning = adapting and self.config.coordination.method != "source_only"
        unlabelled = micro_batches(self.target, k, device) if aligning else []
        started = time.perf_counter()
        torch.manual_seed(_step_seed(training.seed, self.step, self.accelerator.process_index))
        if unlabelled and local == 0:
            self.task.statistics.begin_adaptation()
        self.task.statistics.train_mode(self.model)
        done = progress(local, total)
        closures = self.task.closures(self.model, batches, unlabelled, done)
        figures: dict[str, float] = {}
        if unlabelled and self.task.target_losses:
            task_pass = partial(self.task.target_pass, self.model)
            seen = TargetStep(self.model, self.evaluated, batches, unlabelled, done, task_pass)
            closures, figures = with_target_losses(closures, self.task.target_losses, seen)
        try:
            if unlabelled:
                self._warm_up(done)
                report = adaptation_step(self.coordinator, closures, local)
            else:
                report = source_step(self.optimizer, self.model, self.accelerator, closures.task)
        except FloatingPointError as error:
            raise UserError(
                f"training diverged: {error} in step {self.step + 1}; lower optimizer.lr or coordination.inner_lr, or "
                "set training.max_grad_norm"
            ) from error
        clipped = {}
        if training.max_grad_norm is not None:
            norm = self.accelerator.clip_grad_norm_(self.model.parameters(), training.max_grad_norm)
            clipped["gradient_norm"] = norm
        self.optimizer.step()
        self.step += 1
        if self.average is not None:
            self.average.update(self.bare, self.step)
        if report.cosine is not None and not report.skipped:
            self.cosine_sum += report.cosine
            self.cosine_count += 1
            if report.penalty_cosine is not None:
                self.penalty_cosine_sum += report.penalty_cosine
        if self.step % training.log_every == 0 or local + 1 == total or report.penalty_cosine is not None:
            numbers = {name: float(value) for name, value in {**figures, **clipped}.items()}
            phase = "adaptation" if adapting else "source"
            self._log({"phase": phase, "lr": settings.lr * factor, **report.to_dict(), **numbers})
        if adapting:
            self.step_seconds.append(time.perf_counter() - started)
        return {"task_loss": report.task_loss, "alignment_loss": report.alignment_loss}

    def _warm_up(self, done: float) -> None:
        warmup = self.config.coordination.inner_warmup
        if self.coordinator.inner is not None and warmup > 0:
            self.coordinator.inner.inner_lr = self.inner_lr * min(1.0, done / warmup)

    def _after_step(self, end_of_phase: bool, adapting: bool) -> None:
        training = self.config.training
        if end_of_phase:
            self._evaluate("after" if adapting else "before", adapting)
        elif self._evaluation_is_due(adapting):
            self._evaluate(f"step {self.step}", adapting)
        if training.checkpoint_every and self.step % training.checkpoint_every == 0:
            self._checkpoint()

    def _evaluation_is_due(self, adapting: bool) -> bool:
        training = self.config.training
        if training.evaluate_every is not None:
            return training.evaluate_every > 0 and self.step % training.evaluate_every == 0
        return adapting and (self.step - training.source_steps) % self.interval == 0

    def _evaluate(self, name: str, adapting: bool) -> None:
        self.task.statistics.synchronise(self._kept)
        put_back = None
        if adapting and self.config.training.recalibrate_bn == "target":
            put_back = recalibrate_batch_norm(self._kept, self.task.target_images())
        rank, world_size = self.accelerator.process_index, self.accelerator.num_processes
        started = time.perf_counter()
        kept: Kept = {}
        found = self.task.evaluate(self.evaluated, rank, world_size, kept)
        if name in ("before", "after"):
            self.evaluations[name] = {**found, "examples": self.task.examples(self.evaluated)}
        metric = self.task.metric
        values = self._offer(found, kept) if adapting or name == "before" else {}
        measures = [measure.name for measure in self.task.kind.measures]
        figures = {f"{domain}_{name}": scores[name] for domain, scores in found.items() for name in measures}
        self._log({"evaluation": name, **figures, **values})
        words = ", ".join(f"{domain} {100 * scores[metric]:.1f} %" for domain, scores in found.items())
        self.console.print(f"{name:>12}: {self.task.title} {words}", highlight=False)
        self.evaluation_seconds += time.perf_counter() - started
        if name != "after":
            self._push_in_background()
            if put_back is not None:
                put_back()

    def _offer(self, found: dict[str, Scores], kept: Kept) -> dict[str, float]:
        """Offer the model as it is for selection; returns the values of all validators for the log."""
        if self.selection is None:
            return {}
        rank, world_size = self.accelerator.process_index, self.accelerator.num_processes
        values = self.task.validate(self.evaluated, rank, world_size, kept)
        if not values:
            self.selection = None
            return {}
        validator = get_validator(self.selection.validator)
        metric = self.task.metric
        target = found["target"][metric] if "target" in found else None
        score = validator.score(values[validator.name])
        self.selection.offer(Evaluation(self.step, found["source"][metric], score, target), self._kept)
        return {f"validator_{name}": value for name, value in values.items()}

    def _log(self, values: dict[str, Any]) -> None:
        if self.accelerator.is_main_process:
            with (self.output_dir / METRICS_FILE).open("a") as file:
                file.write(json.dumps({"step": self.step, **values}) + "\n")
        if self.config.training.trackers:
            self.accelerator.log({k: v for k, v in values.items() if isinstance(v, int | float)}, step=self.step)

    def _checkpoint(self) -> None:
        training = self.config.training
        scaler = self.accelerator.scaler
        state = {
            "evaluations": self.evaluations,
            "cosine_sum": float(self.cosine_sum),
            "cosine_count": self.cosine_count,
            "penalty_cosine_sum": float(self.penalty_cosine_sum),
            "target_losses": {loss.name: loss.state_dict() for loss in self.task.target_losses},
            "evaluation_count": self.evaluation_count,
            "scaler": scaler.state_dict() if scaler is not None else None,
            "coordinator": self.coordinator.state_dict(),
            "selection": self.selection.state() if self.selection is not None else [],
        }
        save_checkpoint(
            self.output_dir,
            self.step,
            self._modules(),
            self.optimizer,
            state,
            training.keep_checkpoints,
            write=self.accelerator.is_main_process,
        )
        if self.selection is not None:
            self.selection.prune()
        self.accelerator.wait_for_everyone()

    def _modules(self) -> dict[str, nn.Module]:
        """The modules whose tensors a checkpoint holds."""
        modules: dict[str, nn.Module] = {"model": self.bare, **self.task.statistics.modules()}
        if self.average is not None:
            modules["average"] = self.average.module
        if self.coordinator.memory is not None:
            modules["coordination"] = self.coordinator.memory
        return modules

    def _restore(self, folder: Path) -> None:
        state = read_state(folder)
        self.step = state["step"]
        if self.step > self.config.training.source_steps and self.config.coordination.method != "source_only":
            self.task.statistics.begin_adaptation()
        load_checkpoint(folder, self._modules(), self.optimizer)
        self.cosine_sum += state["cosine_sum"]
        self.cosine_count = state["cosine_count"]
        self.penalty_cosine_sum += state.get("penalty_cosine_sum", 0.0)
        # Older releases had one such loss.
        kept = state.get("target_losses") or {"mean_teacher": {"pseudo_boxes": state.get("pseudo_boxes", 0.0)}}
        for loss in self.task.target_losses:
            loss.load_state_dict(kept[loss.name])
        self.evaluation_count = state["evaluation_count"]
        self.evaluations = state["evaluations"]
        if self.selection is not None:
            self.selection.restore(state["selection"])
        if self.accelerator.scaler is not None and state["scaler"]:
            self.accelerator.scaler.load_state_dict(state["scaler"])
        self.coordinator.load_state_dict(state["coordinator"])
        self._report(f"Resuming {self.output_dir} after step {self.step}.")

    def _save(self) -> None:
        """The last model into the run's folder and, where it is another one, the selected model into `selected/`."""
        state = self._gathered()
        if self.accelerator.is_main_process:
            self._write_model(self.output_dir, state)
            if self.selection is not None and self.selection.selected().step != self.step:
                self._write_model(self.output_dir / SELECTED_FOLDER, self.selection.selected_tensors())
        self.accelerator.wait_for_everyone()

    def _gathered(self) -> dict[str, Tensor] | None:
        """The sharded parameters as a whole, for which every process is needed; None where they are not sharded."""
        if self.average is None and self.accelerator.distributed_type == DistributedType.FSDP:
            state: dict[str, Tensor] = self.accelerator.get_state_dict(self.model)
            return state
        return None

    def _write_model(self, folder: Path, state: dict[str, Tensor] | None) -> None:
        with no_model_progress_bars():
            self._kept.save_pretrained(folder, state_dict=state)
        self.task.processor.save_pretrained(folder)

    def _prepare_hub(self) -> None:
        """The main process asks the Hub; all stop where it refuses."""
        refusal: list[str | None] = [None]
        if self.pusher is not None:
            try:
                self.pusher.prepare()
            except HubError as error:
                refusal = [str(error)]
        if self.config.hub.repo_id is not None:
            broadcast_object_list(refusal)
        if refusal[0] is not None:
            raise HubError(refusal[0])

    def _push_in_background(self) -> None:
        """Push the model as it was just evaluated, at every `hub.push_every`-th evaluation before the last one."""
        hub = self.config.hub
        self.evaluation_count += 1
        if hub.repo_id is None or not hub.push_every or self.evaluation_count % hub.push_every:
            return
        state = self._gathered()
        if self.pusher is not None:
            self.pusher.push_state(self.step, lambda folder: self._write_model(folder, state))

    def _report(self, line: str) -> None:
        self.console.print(line, soft_wrap=True, highlight=False, markup=False)

    def _summary(self, seconds: float) -> Summary:
        training = self.config.training
        validators = validator_changes(self.output_dir, self.selection.validator) if self.selection else {}
        facts = RunFacts(
            output_dir=str(self.output_dir),
            source=self.task.names[0],
            target=self.task.names[1],
            method=self.config.coordination.method,
            alignment=[entry["name"] for entry in self.bare.config.alignment],
            backbone=self.task.model_name,
            seed=training.seed,
            source_steps=training.source_steps,
            adaptation_steps=training.max_steps,
            gradient_cosine=float(self.cosine_sum) / self.cosine_count if self.cosine_count else None,
            penalty=self.task.penalty,
            penalty_cosine=(
                float(self.penalty_cosine_sum) / self.cosine_count if self.task.penalty and self.cosine_count else None
            ),
            checkpoint="last",
            batch_norm=self.task.statistics.name,
            seconds=round(seconds, 1),
            seconds_in_evaluation=round(self.evaluation_seconds, 1),
            seconds_per_step=round(statistics.median(self.step_seconds), 4) if self.step_seconds else None,
            notes=[*self.task.notes, *self._notes()],
            checkpoints=self.selection.rows() if self.selection is not None else [],
            validators=validators,
            citations=self._citations(list(validators)),
            versions={name: version(name) for name in ("metaalign-hf", "torch", "transformers", "timm", "accelerate")},
        )
        return self.task.summary(facts, self.evaluations["before"], self.evaluations["after"])

    def _citations(self, validators: list[str]) -> list[str]:
        known = {"batch_norm": self.task.statistics.name, "validators": dict.fromkeys(validators)}
        model = {**self.bare.config.to_dict(), "architectures": [type(self.bare).__name__]}
        return citations_of(methods_of(RunRecord(model, asdict(self.config), known)))

    def _notes(self) -> list[str]:
        notes = self.task.statistics.notes()
        told = (loss.note(self.config.training.max_steps) for loss in self.task.target_losses)
        notes += [note for note in told if note is not None]
        if self.config.training.select_by is not None and self.selection is None:
            notes.append(
                "No checkpoint was selected: there are no validators for this task, or too few images for them."
            )
        return notes


def _check(config: Config) -> None:
    """Refuse what the configuration asks for and this machine does not have, before anything is built."""
    training = config.training
    config.check()
    check_batch_norm(training)
    if training.select_by not in (None, "auto"):
        try:
            get_validator(training.select_by)
        except UserError as error:
            raise UserError(f"training.select_by: {error}; or null") from error
    usable = {str(getattr(tracker, "value", tracker)) for tracker in get_available_trackers()}
    for tracker in training.trackers:
        if tracker not in usable:
            raise UserError(
                f"training.trackers: {tracker} is unknown or not installed; usable here: "
                f"{', '.join(sorted(usable)) or 'none'}"
            )
    if training.mixed_precision == "fp16" and (training.device == "cpu" or not torch.cuda.is_available()):
        raise UserError("training.mixed_precision: fp16 needs a GPU; use bf16 or no")
    if training.device == "cuda" and not torch.cuda.is_available():
        raise UserError("training.device: cuda was asked for, but torch sees no GPU here; use auto or cpu")


def _accelerator(config: Config) -> Accelerator:
    training = config.training
    torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = True, False
    # Without this, accelerate would run the processes of a launch on a machine without GPUs each for itself.
    cpu = training.device == "cpu" or not torch.accelerator.is_available()
    # A second run in one Python process may want another precision or device than the first.
    AcceleratorState._reset_state(reset_partial_state=PartialState._shared_state.get("_cpu") != cpu)
    accelerator = Accelerator(
        mixed_precision=training.mixed_precision,
        dynamo_backend="inductor" if training.compile else None,
        cpu=cpu,
        log_with=training.trackers or None,
        project_dir=training.output_dir,
        # The discriminator gets no gradient in the task pass.
        kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=True)],
    )
    launched = int(os.environ.get("WORLD_SIZE", "1"))
    if launched != accelerator.num_processes:
        raise UserError(
            f"training.device: {launched} processes were launched, and accelerate runs them as "
            f"{accelerator.num_processes}; launch with accelerate launch --multi_gpu --num_processes N, also on a "
            "machine without GPUs"
        )
    if os.environ.get("ACCELERATE_USE_FSDP", "").lower() == "true" and (
        accelerator.distributed_type != DistributedType.FSDP
    ):
        raise UserError("FSDP was asked for at launch, and accelerate shards on GPUs only; launch without --use_fsdp")
    return accelerator


def _step_seed(seed: int, step: int, rank: int) -> int:
    """A different seed for each step and process, so that dropout needs no saved random state."""
    return (seed * 1_000_003 + step) * 1_009 + rank


def _flat_scalars(config: Config) -> dict[str, int | float | str | bool]:
    flat: dict[str, int | float | str | bool] = {}
    for section, values in asdict(config).items():
        for key, value in values.items():
            flat[f"{section}.{key}"] = value if isinstance(value, int | float | str | bool) else json.dumps(value)
    return flat


def _numbers(losses: dict[str, Tensor | None]) -> dict[str, float]:
    return {name: float(value) for name, value in losses.items() if value is not None}
