"""The full passes of a step, which every task with a task loss and an alignment loss runs alike."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ..batch_norm import BatchStatistics, Rows
from ..coordination import has_live_statistics
from .base import Batch, StepClosures, rows_of

__all__ = ["full_passes", "task_as_both", "task_pass"]

MakesContext = Callable[[], AbstractContextManager[None]]


def task_pass(model: nn.Module, batch: Batch, around: MakesContext = nullcontext) -> Callable[[], Tensor]:
    """A pass that returns the task loss of a batch, in a context."""
    given = {key: batch[key] for key in ("pixel_values", "pixel_mask", "labels") if key in batch}

    def run() -> Tensor:
        with around():
            loss: Tensor = model(**given, objective="task").task_loss
        return loss

    return run


def full_passes(
    model: nn.Module,
    statistics: BatchStatistics,
    source: Sequence[Batch],
    mixed: Sequence[Batch],
    progress: float,
    *,
    left_out: Sequence[str] = (),
    penalty: bool = False,
    aligns: bool = True,
    two_passes: bool = False,
) -> StepClosures:
    """A task pass with the source's loss, an alignment pass on both domains, and one forward for a joint step.

    Where batch statistics need it the task pass runs on both domains too, and its loss takes the source's rows.

    Args:
        model: The wrapped model.
        statistics: What batch normalisation does.
        source: Micro-batches of the source.
        mixed: The same with the target's rows behind them; empty in the source phase.
        progress: Progress of the adaptation in 0..1.
        left_out: Entries of a batch that the alignment pass does not see.
        penalty: Whether a penalty stands in both losses.
        aligns: Whether the model has an alignment objective; without one there is no alignment pass, and the task's
            pass moves the running statistics in its place.
        two_passes: Whether the model makes two passes for both losses. Where the task's does not need the target, a
            joint step then makes it on the source alone, which takes half of its time.
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
            with statistics.on_both(model, rows):
                output = model(**batch, progress=progress)
            return output.task_loss, output.alignment_loss

        return run

    def task(batch: Batch, rows: Rows | None = None) -> Callable[[], Tensor]:
        return task_pass(model, batch, partial(statistics.task_pass, model, rows) if mixed else nullcontext)

    if mixed and not aligns:
        if statistics.one_pass_moves and has_live_statistics(model):
            alone = [task_pass(model, batch, partial(statistics.on_both, model, rows)) for batch, rows in passes]
        else:
            alone = [task_pass(model, batch) for batch in source]
        return StepClosures(alone, [], [task_as_both(run) for run in alone])
    together = bool(mixed) and statistics.task_needs_target(model, "domain_labels" in source[0])
    tasks = [task(*pass_) for pass_ in passes] if together else [task(batch) for batch in source]
    aligned = [alignment(*pass_) for pass_ in passes]
    joint = [both(*pass_) for pass_ in passes]
    # DistributedDataParallel takes one forward before a backward; in mode `train` the task's pass moves statistics.
    distributed = dist.is_available() and dist.is_initialized()
    if mixed and two_passes and statistics.one_pass_moves and not together and not distributed:
        joint = [_one_by_one(*pair) for pair in zip(tasks, aligned, strict=True)]
    penalties = [alignment(*pass_, "penalty") for pass_ in passes] if penalty else []
    return StepClosures(tasks, aligned, joint, penalty=penalties)


def _one_by_one(task: Callable[[], Tensor], alignment: Callable[[], Tensor]) -> Callable[[], tuple[Tensor, Tensor]]:
    """Both losses, by two passes."""
    return lambda: (task(), alignment())


def task_as_both(run: Callable[[], Tensor]) -> Callable[[], tuple[Tensor, Tensor]]:
    """A pass of the task alone, as one of both losses."""

    def both() -> tuple[Tensor, Tensor]:
        loss = run()
        return loss, torch.zeros_like(loss)

    return both
