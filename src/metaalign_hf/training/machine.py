"""The machine that a run runs on: what it must have, and how accelerate uses it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

import torch
import torch.distributed as dist
from accelerate import Accelerator, DistributedType
from accelerate.state import AcceleratorState, PartialState
from accelerate.tracking import get_available_trackers
from accelerate.utils import DistributedDataParallelKwargs

from ..configuration import TrainingConfig
from ..errors import UserError, one_line

__all__ = ["Agreement", "build_accelerator", "check_machine", "precision", "told_lost_process"]


def precision(training: TrainingConfig) -> Literal["no", "bf16", "fp16"]:
    """`training.mixed_precision`, where `auto` is bf16 on a GPU that computes in it, and else no."""
    if training.mixed_precision != "auto":
        return training.mixed_precision
    on_gpu = training.device != "cpu" and torch.cuda.is_available()
    return "bf16" if on_gpu and torch.cuda.is_bf16_supported(including_emulation=False) else "no"


def check_machine(training: TrainingConfig) -> None:
    """Refuse what is asked for and this machine does not have, before anything is built.

    Raises:
        UserError: If a tracker is not installed, or there is no GPU for what needs one.
    """
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


@contextmanager
def told_lost_process() -> Iterator[None]:
    """Say in one line that another process of the run has ended, wherever this one waits for it.

    Raises:
        UserError: In place of the error of the library that connects them.
    """
    try:
        yield
    except RuntimeError as error:
        if not (dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1):
            raise
        if not any(word in str(error).lower() for word in _LOST):
            raise
        raise UserError(
            f"another process of the run has ended, so this one cannot go on ({one_line(error, first=True)}); start "
            "all of them again with --training.resume auto"
        ) from error


_LOST = ("connection closed", "connection reset", "broken pipe", "gloo", "nccl", "socket", "recvvalue failed")


def build_accelerator(training: TrainingConfig) -> Accelerator:
    """The accelerator of a run; convolutions are deterministic from now on.

    Raises:
        UserError: If the processes were launched in a way that accelerate does not run here.
    """
    torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = True, False
    # Without this, accelerate would run the processes of a launch on a machine without GPUs each for itself.
    cpu = training.device == "cpu" or not torch.accelerator.is_available()
    sharding = os.environ.get("ACCELERATE_USE_FSDP", "").lower() == "true"
    if sharding:
        # The launcher's default. Accelerate 1.15 cannot do it to a model with buffers, which batch normalisation has;
        # every process can hold a whole model of images until it is sharded.
        os.environ["FSDP_CPU_RAM_EFFICIENT_LOADING"] = "false"
    # A second run in one Python process may want another precision or device than the first.
    AcceleratorState._reset_state(reset_partial_state=PartialState._shared_state.get("_cpu") != cpu)
    accelerator = Accelerator(
        mixed_precision=precision(training),
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
    if sharding and accelerator.distributed_type != DistributedType.FSDP:
        raise UserError("FSDP was asked for at launch, and accelerate shards on GPUs only; launch without --use_fsdp")
    return accelerator


class Agreement:
    """Lets all processes of a run act alike on what one of them has seen, such as a signal.

    It works on the CPU, over a group of its own where the run's communicates on GPUs: asking waits for no kernel.

    Args:
        accelerator: Knows the processes.
    """

    def __init__(self, accelerator: Accelerator) -> None:
        self.alone = accelerator.num_processes == 1
        on_gpus = not self.alone and dist.get_backend() != "gloo"
        self._group: Any = dist.new_group(backend="gloo") if on_gpus else None

    def highest(self, *values: int) -> list[int]:
        """The highest of all processes' values, place by place; a collective call."""
        if self.alone:
            return list(values)
        found = torch.tensor(values, dtype=torch.int64)
        dist.all_reduce(found, op=dist.ReduceOp.MAX, group=self._group)
        return found.tolist()
