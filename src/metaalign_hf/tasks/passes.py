"""The full passes of a step, which every task with a task loss and an alignment loss runs alike."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ..batch_norm import BatchStatistics, Rows
from ..coordination import has_live_statistics
from .base import Batch, StepClosures, rows_of

__all__ = ["TaskPass", "full_passes"]

TaskPass = Callable[[nn.Module, Batch, Callable[[], AbstractContextManager[None]]], Callable[[], Tensor]]
"""Makes a closure that returns the task loss of a batch, from the model, the batch and a context of the pass."""


def full_passes(
    model: nn.Module,
    statistics: BatchStatistics,
    source: Sequence[Batch],
    mixed: Sequence[Batch],
    progress: float,
    task_pass: TaskPass,
    *,
    left_out: Sequence[str] = (),
    around_both: Callable[[], AbstractContextManager[Any]] = nullcontext,
    penalty: bool = False,
    aligns: bool = True,
) -> StepClosures:
    """A task pass with the source's loss, an alignment pass on both domains, and one forward for a joint step.

    Where batch statistics need it the task pass runs on both domains too, and its loss takes the source's rows.

    Args:
        model: The wrapped model.
        statistics: What batch normalisation does.
        source: Micro-batches of the source.
        mixed: The same with the target's rows behind them; empty in the source phase.
        progress: Progress of the adaptation in 0..1.
        task_pass: Makes the task's closures.
        left_out: Entries of a batch that the alignment pass does not see.
        around_both: A context of the joint forward.
        penalty: Whether a penalty stands in both losses.
        aligns: Whether the model has an alignment objective; without one there is no alignment pass, and the task's
            pass moves the running statistics in its place.
    """
    rows = [rows_of(s, m) for s, m in zip(source, mixed, strict=True)] if mixed else []
    passes = list(zip(mixed, rows, strict=True))

    def alignment(batch: Batch, rows: Rows, objective: str = "alignment") -> Callable[[], Tensor]:
        given = {key: value for key, value in batch.items() if key not in left_out}

        def run() -> Tensor:
            with statistics.on_both(model, rows):
                loss: Tensor = model(**given, progress=progress, objective=objective).alignment_loss
            return loss

        return run

    def both(batch: Batch, rows: Rows) -> Callable[[], tuple[Tensor, Tensor]]:
        def run() -> tuple[Tensor, Tensor]:
            with statistics.on_both(model, rows), around_both():
                output = model(**batch, progress=progress)
            return output.task_loss, output.alignment_loss

        return run

    def task(batch: Batch, rows: Rows | None = None) -> Callable[[], Tensor]:
        return task_pass(model, batch, partial(statistics.task_pass, model, rows) if mixed else nullcontext)

    if mixed and not aligns:
        return _task_alone(model, statistics, source, passes, task_pass)
    together = bool(mixed) and statistics.task_needs_target(model, "domain_labels" in source[0])
    return StepClosures(
        [task(*pass_) for pass_ in passes] if together else [task(batch) for batch in source],
        [alignment(*pass_) for pass_ in passes],
        [both(*pass_) for pass_ in passes],
        penalty=[alignment(*pass_, "penalty") for pass_ in passes] if penalty else [],
    )


def _task_alone(
    model: nn.Module,
    statistics: BatchStatistics,
    source: Sequence[Batch],
    passes: Sequence[tuple[Batch, Rows]],
    task_pass: TaskPass,
) -> StepClosures:
    """The passes of a step without an alignment objective: the task's, on both domains for live statistics."""
    if statistics.one_pass_moves and has_live_statistics(model):
        task = [task_pass(model, batch, partial(statistics.on_both, model, rows)) for batch, rows in passes]
    else:
        task = [task_pass(model, batch, nullcontext) for batch in source]

    def both(run: Callable[[], Tensor]) -> Callable[[], tuple[Tensor, Tensor]]:
        def pair() -> tuple[Tensor, Tensor]:
            loss = run()
            return loss, torch.zeros_like(loss)

        return pair

    return StepClosures(task, [], [both(run) for run in task])
