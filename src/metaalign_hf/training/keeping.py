"""What keeps a run: its checkpoints, and what a signal, an error or numbers that are not finite leave of it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import nn

from ..data.streams import dead_worker, is_dead_worker
from ..errors import UserError, one_line
from ..interruption import TIME_IS_UP, Interruption, RunInterrupted
from ..run_folder import BAD_STEP_FILE
from .bad_steps import BadStep, write_bad_step
from .checkpoints import checkpoint_folder, load_checkpoint, read_state, save_checkpoint
from .cosines import MeanCosines
from .evaluating import Evaluator
from .journal import Journal
from .publishing import Publisher
from .stepper import Stepper

__all__ = ["Keeper"]

_SECONDS_BETWEEN_CHECKPOINTS = 600.0
"""Where `training.checkpoint_every` does not say it in steps."""


class Keeper:
    """Writes and reads the checkpoints of a run, and decides when one is due.

    Args:
        stepper: Takes the steps.
        evaluator: Evaluates.
        publisher: Pushes.
        cosines: Over the run.
        stop: Hears what is asked of the run from outside.
        journal: Where warnings go.

    Attributes:
        skipped: Steps that were undone because their numbers were not finite.
    """

    def __init__(
        self,
        stepper: Stepper,
        evaluator: Evaluator,
        publisher: Publisher,
        cosines: MeanCosines,
        stop: Interruption,
        journal: Journal,
    ) -> None:
        self.stepper, self.evaluator, self.publisher, self.cosines = stepper, evaluator, publisher, cosines
        self.stop, self.journal = stop, journal
        self.weights, self.accelerator = stepper.weights, stepper.accelerator
        self.training = stepper.config.training
        self.output_dir = Path(self.training.output_dir)
        self.skipped, self._in_a_row = 0, 0
        self._saved_step, self._saved_at = 0, time.monotonic()

    # Checkpoints

    def save(self, step: int) -> None:
        """Write a checkpoint; a collective call. Nothing happens where the last one is of this step."""
        if step == self._saved_step > 0:
            return
        scaler, losses = self.accelerator.scaler, self.stepper.task.target_losses
        state = {
            **self.evaluator.state_dict(),
            **self.cosines.state_dict(),
            "target_losses": {loss.name: loss.state_dict() for loss in losses},
            "evaluation_count": self.publisher.evaluations,
            "skipped_steps": [self.skipped, self._in_a_row],
            "scaler": scaler.state_dict() if scaler is not None else None,
            "coordinator": self.stepper.coordinator.state_dict(),
        }
        keep, main = self.training.keep_checkpoints, self.accelerator.is_main_process
        optimizer = self.stepper.optimizer
        save_checkpoint(self.output_dir, step, self._modules(), optimizer, state, keep, write=main)
        self._saved_step, self._saved_at = step, time.monotonic()
        if self.evaluator.selection is not None:
            self.evaluator.selection.prune()
        self.accelerator.wait_for_everyone()

    def restore(self, folder: Path) -> int:
        """Go on from a checkpoint; returns how many steps had been taken."""
        try:
            step = self._restore(folder, read_state(folder))
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            if isinstance(error, UserError):
                raise
            raise UserError(
                f"checkpoint {folder}: state.json is not of this run ({type(error).__name__}: {one_line(error)}); "
                "delete the folder"
            ) from error
        self._saved_step = step
        self.journal.say(f"Resuming {self.output_dir} after step {step}.")
        return step

    def _restore(self, folder: Path, state: dict[str, Any]) -> int:
        step: int = state["step"]
        self.stepper.resume(step)
        load_checkpoint(folder, self._modules(), self.stepper.optimizer)
        self.cosines.load_state_dict(state)
        self.evaluator.load_state_dict(state)
        self.publisher.evaluations = state["evaluation_count"]
        self.skipped, self._in_a_row = state["skipped_steps"]
        for loss in self.stepper.task.target_losses:
            loss.load_state_dict(state["target_losses"][loss.name])
        if self.accelerator.scaler is not None and state["scaler"]:
            self.accelerator.scaler.load_state_dict(state["scaler"])
        self.stepper.coordinator.load_state_dict(state["coordinator"])
        return step

    def _modules(self) -> dict[str, nn.Module]:
        """The modules whose tensors a checkpoint holds."""
        average = self.weights.average
        modules: dict[str, Any] = {
            "model": self.weights.bare,
            "average": None if average is None else average.module,
            "coordination": self.stepper.coordinator.memory,
            **self.stepper.task.statistics.modules(),
        }
        return {name: module for name, module in modules.items() if module is not None}

    # Between and around steps

    def pause(self, step: int) -> None:
        """Between two steps: write a checkpoint where one is due, and end where that was asked for.

        Raises:
            RunInterrupted: After a signal, or at the time limit.
        """
        every = self.training.checkpoint_every
        long_ago = int(time.monotonic() - self._saved_at >= _SECONDS_BETWEEN_CHECKPOINTS)
        code, long_ago = self.stepper.agreement.highest(self.stop.code, long_ago)
        if code or (long_ago if every is None else every > 0 and step % every == 0):
            self.save(step)
        if code:
            why = "its time is up" if code == TIME_IS_UP else "it was told to"
            raise RunInterrupted(code, f"stopped after step {step}, because {why}; {self._goes_on()}")

    @contextmanager
    def guarded(self, step: int) -> Iterator[None]:
        """Inside a step is taken: where an error ends the run, what there was before the step is saved.

        Of several processes none does, since the others may be in the middle of the step.

        Args:
            step: Steps taken before.

        Raises:
            UserError: That of the step, with what was saved.
        """
        try:
            yield
        except Exception as error:
            if self.accelerator.num_processes > 1 or step == 0:
                raise
            if is_dead_worker(error):
                error = dead_worker(error)
            try:
                self._save_after_error(step)
            except Exception:
                raise error from None  # a full disk, perhaps the same one
            if isinstance(error, UserError):
                raise UserError(f"{error}; {self._goes_on()} once that is put right") from error
            self.journal.say(f"After an error in step {step + 1}: {self._goes_on()}.")
            raise

    def _save_after_error(self, step: int) -> None:
        """Save after an error; torch may tell of a worker that died once more in the middle of it."""
        try:
            self.save(step)
        except RuntimeError as another:
            if not is_dead_worker(another):
                raise
            self.save(step)

    def skip(self, bad: BadStep, step: int) -> None:
        """Count a step that was undone.

        Args:
            bad: The step.
            step: Its number, from 1.

        Raises:
            UserError: If there were too many in a row.
        """
        most = self.training.max_bad_steps
        if self._in_a_row < most:
            self.skipped, self._in_a_row = self.skipped + 1, self._in_a_row + 1
            self.journal.log(step, {"skipped": bad.reason, "lr": max(bad.learning_rates)})
            self.journal.say(f"Warning: step {step} was skipped: {bad.reason}.")
            return
        # Nothing has changed since the first of them, from where they can be taken again.
        good = step - 1 - self._in_a_row
        self.skipped, self._in_a_row = self.skipped - self._in_a_row, 0
        self.save(good)
        checkpoint = checkpoint_folder(self.output_dir, good)
        if self.accelerator.is_main_process:
            write_bad_step(self.output_dir, step, bad, checkpoint, self.accelerator.process_index)
        rates = ", ".join(f"{rate:.3g}" for rate in sorted(set(bad.learning_rates)))
        in_a_row = f", as in the {most} before it" if most else ""
        raise UserError(
            f"training diverged: {bad.reason} in step {step}{in_a_row} (learning rates {rates}); "
            f"{self.output_dir / BAD_STEP_FILE} names the images and a command that takes the steps again; the weights "
            f"after step {good} are in {checkpoint}; lower optimizer.lr or coordination.inner_lr, or set "
            "training.max_grad_norm"
        )

    def took(self) -> None:
        """Called after a step that was taken."""
        self._in_a_row = 0

    def _goes_on(self) -> str:
        return f"{self.output_dir} has everything up to here, go on with --training.resume auto"
