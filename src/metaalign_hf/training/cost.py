"""What a run will cost, measured on a few of its steps."""

from __future__ import annotations

import statistics
import sys
import time
from dataclasses import dataclass, replace

import torch

from ..batch_norm import check_batch_norm
from ..configuration import Config
from ..errors import UserError
from ..progress import stage
from ..tasks.base import Task
from .bad_steps import BadStep
from .machine import build_accelerator, check_machine
from .schedules import evaluation_interval
from .stepper import build_stepper

__all__ = ["Cost", "duration", "measure_cost"]

STEPS = 3


@dataclass(frozen=True)
class Cost:
    """Seconds and memory.

    Attributes:
        device: Where the steps ran.
        source_step: Median of the measured steps of the source phase, in seconds, images included; None without one.
        adaptation_step: The same of the adaptation phase.
        waiting: Share of the time of adaptation steps that was spent waiting for images.
        evaluations: Evaluations that the run will make.
        evaluated_images: Images of each.
        training_seconds: Seconds of all steps, those of a baseline included.
        evaluation_seconds: Seconds of all evaluations.
        memory: Bytes: on a GPU the most that torch held there, else the most that this process held; None where the
            system does not say.
    """

    device: str
    source_step: float | None
    adaptation_step: float
    waiting: float
    evaluations: int
    evaluated_images: int
    training_seconds: float
    evaluation_seconds: float
    memory: int | None

    @property
    def seconds(self) -> float:
        """The whole run."""
        return self.training_seconds + self.evaluation_seconds


def measure_cost(config: Config, task: Task, images_per_second: float) -> Cost:
    """Take three steps of each phase and put the model's weights out of use.

    Args:
        config: The whole configuration.
        task: The task; its model is trained by these steps.
        images_per_second: Images that a forward pass takes a second, for the evaluations.

    Raises:
        UserError: If the run would refuse what the configuration asks for, or a step is not finite.
    """
    training = replace(config.training, trackers=[])
    check_batch_norm(training)
    check_machine(training)
    accelerator = build_accelerator(training)
    on_gpu = accelerator.device.type == "cuda"
    if on_gpu:
        torch.cuda.reset_peak_memory_stats()
    stepper = build_stepper(config, task, accelerator)
    first = training.source_steps
    seconds: dict[bool, list[float]] = {False: [], True: []}
    waited = 0.0
    phases = {False: min(STEPS, first), True: min(STEPS, training.max_steps)}
    with stage("steps to measure", sum(phases.values()), "steps") as shown:
        for adapting, count in phases.items():
            begin = first if adapting else 0
            stepper.open_streams(begin)
            for step in range(begin, begin + count):
                started = time.perf_counter()
                taken = stepper.take(step, adapting)
                if on_gpu:
                    torch.cuda.synchronize()
                if isinstance(taken, BadStep):
                    raise UserError(f"step {step + 1} is not finite: {taken.reason}; lower optimizer.lr")
                seconds[adapting].append(time.perf_counter() - started)
                waited += (stepper.started - started) if adapting else 0.0
                shown.advance()
    source_step = statistics.median(seconds[False]) if seconds[False] else None
    adaptation_step = statistics.median(seconds[True])
    steps = first * (source_step or 0.0) + training.max_steps * adaptation_step
    if training.baseline:
        steps += (first + training.max_steps) * (source_step or adaptation_step)
    batch = training.batch_size * training.gradient_accumulation_steps
    every = training.evaluate_every
    if every is None:
        every = evaluation_interval(first, training.max_steps, batch, task.evaluated_images)
    evaluations = 2 + (training.max_steps // every if every > 0 else 0)
    return Cost(
        str(accelerator.device),
        source_step,
        adaptation_step,
        waited / sum(seconds[True]),
        evaluations,
        task.evaluated_images,
        steps,
        evaluations * task.evaluated_images / images_per_second,
        torch.cuda.max_memory_allocated() if on_gpu else _most_memory(),
    )


def duration(seconds: float) -> str:
    """A time in the unit that fits it, such as `3.5 hours`."""
    for unit, length in (("days", 86_400), ("hours", 3_600), ("minutes", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.1f} {unit}"
    return f"{seconds:.2g} seconds"


def _most_memory() -> int | None:
    """The most bytes that this process has held; None where the system does not say."""
    try:
        import resource
    except ImportError:  # Windows has no such module
        return None
    found = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return found if sys.platform == "darwin" else found * 1024
