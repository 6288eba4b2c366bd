"""The Accelerate loop: a source phase, then adaptation."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from copy import deepcopy
from dataclasses import asdict, replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

from accelerate.utils import set_seed
from rich.console import Console
from transformers import PreTrainedModel

from ..batch_norm import check_batch_norm, require_batch_norm
from ..configuration import Config
from ..configuration.durations import seconds_of
from ..configuration.hub import license_notes
from ..coordination import StepReport
from ..data import DomainPair
from ..data.streams import told_dead_worker
from ..disk import told_disk_errors
from ..hub import write_card
from ..interruption import Interruption, told_interruption
from ..models.adapter_files import adapter_base
from ..progress import display, stage
from ..reports.citations import citations_of_run
from ..run_folder import BAD_IMAGES_FILE, CONFIG_FILE, SELECTED_FOLDER, SUMMARY_FILE
from ..tasks.base import Task
from ..tasks.building import build_task
from .bad_steps import BadStep
from .baseline import baseline_config, baseline_figures, read_summary
from .checkpoints import drop_after
from .cosines import MeanCosines
from .evaluating import Evaluator, check_validator
from .given import recorded_config, with_domains_of
from .journal import Journal
from .keeping import Keeper
from .longer import refuse_inexact, why_not_longer
from .machine import build_accelerator, check_machine, precision, told_lost_process
from .publishing import Publisher
from .run_folder import skipped_checkpoints, take_folder, truncate_metrics, write_config
from .schedules import evaluation_interval
from .sessions import record_session
from .stepper import build_stepper
from .summary import RunFacts, Summary, print_summary, waiting_share, write_summary
from .validator_change import validator_changes

__all__ = ["adapt"]


def adapt(
    config: Config,
    *,
    pair: DomainPair[Any] | None = None,
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
        pair: The domain pair; by default the one that `config.data` describes. The run's record names the domains that
            it was loaded from; of a pair made by hand it says that they are not known.
        model: The model to adapt, which also says what the task is; by default the one that `config.model` describes.
            The run's record names the weights that it says it started from.

    Returns:
        The summary of the run.

    Raises:
        UserError: If the configuration, the data or the output folder do not allow the run, or the loss diverges, or
            the disk is full or cannot be written to, or an image cannot be read.
        RunInterrupted: After a signal or `training.max_time`, when the run has been saved: a `SystemExit`.
        HubError: If the Hub refuses before the run, or the push at its end fails; the run's folder is then complete.
    """
    config = with_domains_of(config, pair)
    config.check()
    check_batch_norm(config.training)
    check_validator(config.training.select_by)
    check_machine(config.training)
    # What is recorded is what is used, so that the run is resumed in the same precision or not at all.
    config = replace(config, training=replace(config.training, mixed_precision=precision(config.training)))
    folder = Path(config.training.output_dir)

    def advice() -> str:
        goes_on = (folder / CONFIG_FILE).exists() and not (folder / SUMMARY_FILE).exists()
        return "; once that is put right, go on with --training.resume auto" if goes_on else ""

    limit = config.training.max_time
    stop = Interruption(None if limit is None else seconds_of(limit, "training.max_time"))
    with (
        told_interruption(),
        stop.heard(),
        told_disk_errors(folder, advice),
        told_dead_worker(),
        told_lost_process(),
        ExitStack() as cleanup,
    ):
        # The model that was given is trained in place; the baseline starts from it as it was.
        untrained = deepcopy(model) if config.training.baseline else None
        recorded = recorded_config(config, pair, model)
        run = _Run(config, lambda: build_task(config, pair, model), recorded, stop, cleanup)

        def baseline() -> dict[str, Any] | None:
            if not config.training.baseline:
                return None
            alone = baseline_config(config, run.task.cached)
            compared = read_summary(alone)
            if compared is None:
                run.console.print("The same steps on the source alone, for comparison:")
                recorded = recorded_config(alone, pair, untrained)
                other = _Run(alone, lambda: build_task(alone, pair, untrained), recorded, stop, cleanup, run.said)
                compared = other.run()
            return baseline_figures(compared, alone)

        return run.run(baseline)


class _Run:
    """One run of a task, which is built once everything that is known without it has been checked.

    `step` counts optimiser steps over both phases. `said` are the notes that were printed already.
    """

    def __init__(
        self,
        config: Config,
        build_task: Callable[[], Task],
        recorded: dict[str, Any],
        stop: Interruption,
        cleanup: ExitStack,
        said: Sequence[str] = (),
    ) -> None:
        training = config.training
        self.config = config
        self.output_dir = Path(training.output_dir)
        self.accelerator = build_accelerator(training)
        main, device = self.accelerator.is_main_process, self.accelerator.device
        self.console = Console(stderr=False, quiet=not main)
        self.journal = Journal(config, self.accelerator, self.console)
        self.publisher = Publisher(config.hub, self.output_dir, self.journal, main)
        self.stop = stop
        checkpoint = take_folder(config, recorded, self.accelerator, cleanup)
        set_seed(training.seed)
        self.task = build_task()
        bare = self.task.model
        refuse_inexact(config, bare, checkpoint)
        if training.recalibrate_bn == "target":
            require_batch_norm(bare)
        if config.hub.adapter:
            adapter_base(bare.config, "hub.adapter")
        self.stepper = build_stepper(config, self.task, self.accelerator)
        self.weights = self.stepper.weights
        self.evaluator = Evaluator(self.task, self.weights, training, self.journal)
        self.step, self.cosines = 0, MeanCosines(device)
        self.keeper = Keeper(self.stepper, self.evaluator, self.publisher, self.cosines, stop, self.journal)
        self.step_seconds: list[float] = []
        self.waiting_seconds: list[float] = []
        if checkpoint is not None:
            self.step = self.keeper.restore(checkpoint)
        self.stepper.probe()
        self.stepper.open_streams(self.step)
        self.publisher.prepare()
        # Only now, when nothing about the run can be refused any more, is the folder touched.
        self.accelerator.wait_for_everyone()
        if main:
            for line in skipped_checkpoints(self.output_dir, checkpoint):
                self.journal.say(line)
            drop_after(self.output_dir, self.step)
            write_config(self.output_dir, recorded)
            truncate_metrics(self.output_dir, self.step, training.source_steps + training.max_steps)
            record_session(self.output_dir, config, self.accelerator, self.step)
            self.journal.open_log()
        with self.accelerator.main_process_first():
            self.task.bad_images.open(self.output_dir / BAD_IMAGES_FILE)
        notes = [*self.task.notes, *license_notes(config.hub.license)]
        for note in notes:
            if note not in said:
                self.journal.say(f"Note: {note}")
        self.said = [*said, *notes]
        self.journal.start_trackers()

    def run(self, baseline: Callable[[], dict[str, Any] | None] | None = None) -> Summary:
        """The whole run.

        Args:
            baseline: Makes the run to compare with, once this one is trained, and returns its figures; None where this
                is that run.
        """
        training, found = self.config.training, self.evaluator.found
        started = time.perf_counter()
        total = training.source_steps + training.max_steps
        source, target = self.task.names
        steps = f"{training.source_steps} steps on the source, then {training.max_steps} of adaptation"
        if not self.task.pair.has_source:
            steps = f"{training.max_steps} steps on the target alone"
        elif not self.stepper.aligns:
            steps = f"{total} steps on the source alone"
        self.journal.say(
            f"{source} -> {target}: {steps}, on {self.accelerator.device}; each evaluation takes "
            f"{self.task.evaluated_images} images"
        )
        with self.stop.patient(), display(self.console):
            if self.task.prepare(self.accelerator, self.stop):
                self.stepper.open_streams(self.step)
            if self.step == 0 and training.source_steps == 0:
                self._evaluate("before", adapting=False)
            for end in (training.source_steps, total):
                if self.step < end:
                    self._run_phase(end)
            self._save()
            if training.baseline and training.checkpoint_every != 0:
                self.keeper.save(self.step)  # that other run may take hours
        summary = replace(self._summary(time.perf_counter() - started), baseline=baseline() if baseline else None)
        if self.accelerator.is_main_process:
            old, new = (found[name]["examples"] for name in ("before", "after"))
            files = self.task.write_files(self.output_dir, old, new) if old and new else []
            write_summary(summary)
            write_card(self.output_dir, self.config.hub.repo_id, self.config.hub.license)
            print_summary(summary, self.console, files, self.said, compared_with=baseline is None)
        if self.evaluator.selection is not None:
            longer = why_not_longer(self.config, self.weights.bare) is None
            self.evaluator.selection.finish(may_become_longer=longer)
        self.journal.end_trackers()
        self.publisher.finish()
        return summary

    def _run_phase(self, end: int) -> None:
        """The steps up to `end`, the last one of a phase."""
        training = self.config.training
        adapting = self.step >= training.source_steps
        first = training.source_steps if adapting else 0
        domains = 2 if adapting and self.stepper.aligns and self.task.pair.has_source else 1
        batch_images = training.batch_size * training.gradient_accumulation_steps * self.accelerator.num_processes
        interval = evaluation_interval(
            training.source_steps, training.max_steps, batch_images, self.task.evaluated_images
        )
        name = ("adaptation" if self.stepper.aligns else "source alone") if adapting else "source phase"
        with stage(name, end - first, "steps", self.step - first) as shown:
            while self.step < end:
                report = self._take_step(adapting)
                if report is not None:
                    shown.figures = partial(self._shown, report)
                shown.advance(1, domains * batch_images)
                if self.step == end:
                    self._evaluate("after" if adapting else "before", adapting)
                elif self._evaluation_is_due(interval if adapting else 0, self.step - first):
                    self._evaluate(f"step {self.step}", adapting)
                self.keeper.pause(self.step)

    def _shown(self, report: StepReport) -> dict[str, float]:
        """The figures beside the bar: losses, cosine, and the last value of the validator."""
        found = self.stepper.gradient.measured(report)
        names = ("task_loss", "alignment_loss", "target_loss", "cosine")
        return {name: float(found[name]) for name in names if name in found} | dict(self.evaluator.latest)

    def _evaluation_is_due(self, interval: int, local: int) -> bool:
        """Whether an evaluation was asked for here, or where nobody asked, the interval (0: none) has passed."""
        every = self.config.training.evaluate_every
        if every is not None:
            return every > 0 and self.step % every == 0
        return interval > 0 and local % interval == 0

    def _evaluate(self, name: str, adapting: bool) -> None:
        put_back = self.evaluator.evaluate(name, self.step, adapting)
        if name != "after":
            self.publisher.evaluated(self.step, self.weights)
            if put_back is not None:
                put_back()

    def _take_step(self, adapting: bool) -> StepReport | None:
        """A step; None where its numbers were not finite, so that it was undone."""
        with self.keeper.guarded(self.step):
            taken = self.stepper.take(self.step, adapting)
        self.step += 1
        if isinstance(taken, BadStep):
            self.keeper.skip(taken, self.step)
            return None
        self.keeper.took()
        training, (report, figures) = self.config.training, taken
        self.cosines.add(report)
        ends_phase = self.step in (training.source_steps, training.source_steps + training.max_steps)
        if self.step % training.log_every == 0 or ends_phase or report.penalty_cosine is not None:
            phase = {"phase": "adaptation" if adapting else "source", "lr": figures.pop("lr")}
            numbers = {name: float(value) for name, value in figures.items()}
            self.journal.log(self.step, {**phase, **self.stepper.gradient.measured(report), **numbers})
        if adapting:
            self.step_seconds.append(time.perf_counter() - self.stepper.started)
            self.waiting_seconds.append(self.stepper.waited)
        return report

    def _save(self) -> None:
        """The last model into the run's folder and, where it is another one, the selected model into `selected/`."""
        state, selection = self.weights.gathered(), self.evaluator.selection
        if self.accelerator.is_main_process:
            self.weights.write(self.output_dir, state)
            if selection is not None and selection.selected().step != self.step:
                self.weights.write(self.output_dir / SELECTED_FOLDER, selection.selected_tensors())
        self.accelerator.wait_for_everyone()

    def _summary(self, seconds: float) -> Summary:
        training, selection = self.config.training, self.evaluator.selection
        validators = validator_changes(self.output_dir, selection.validator) if selection else {}
        bare = self.weights.bare
        facts = RunFacts(
            output_dir=str(self.output_dir),
            source=self.task.names[0],
            target=self.task.names[1],
            method=self.config.coordination.method,
            alignment=[entry["name"] for entry in bare.config.alignment] if self.task.pair.has_source else [],
            target_losses=[loss.name for loss in self.task.target_losses],
            backbone=self.task.model_name,
            seed=training.seed,
            source_steps=training.source_steps,
            adaptation_steps=training.max_steps,
            gradient_cosine=self.cosines.mean,
            penalty=self.task.penalty,
            penalty_cosine=self.cosines.penalty_mean if self.task.penalty else None,
            checkpoint="last",
            batch_norm=self.task.statistics.name,
            seconds=round(seconds, 1),
            seconds_in_evaluation=round(self.evaluator.seconds, 1),
            seconds_per_step=round(statistics.median(self.step_seconds), 4) if self.step_seconds else None,
            waiting_share=waiting_share(self.waiting_seconds, self.step_seconds),
            notes=[*self.task.notes, *self._notes()],
            checkpoints=selection.rows() if selection is not None else [],
            validators=validators,
            citations=citations_of_run(bare, asdict(self.config), self.task.statistics.name, validators),
            versions={name: version(name) for name in ("metaalign-hf", "torch", "transformers", "timm", "accelerate")},
        )
        return self.task.summary(facts, self.evaluator.found["before"], self.evaluator.found["after"])

    def _notes(self) -> list[str]:
        notes, selection = self.task.notes_of_run(), self.evaluator.selection
        if self.keeper.skipped:
            notes.append(
                f"Steps whose losses or gradients were not finite, and which were skipped: {self.keeper.skipped}."
            )
        if selection is not None:
            notes += filter(None, [selection.why_not_the_last()])
        elif self.config.training.select_by is not None:
            notes.append(
                "No checkpoint was selected: there are no validators for this task, or too few images for them."
            )
        return notes
