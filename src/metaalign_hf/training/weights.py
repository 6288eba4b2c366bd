"""The model of a run in all its forms: wrapped, bare, averaged (also the teacher of pseudo-labels), and as saved."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from accelerate import Accelerator, DistributedType
from timm.utils import ModelEmaV3
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from transformers import PreTrainedModel

from ..coordination.gradients import average_over_processes
from ..errors import UserError
from ..progress import no_model_progress_bars

if TYPE_CHECKING:
    from ..configuration import TrainingConfig
    from ..target_losses import TargetLoss

__all__ = ["WeightAverage", "Weights", "average_decay"]

_TEACHER_DECAY = 0.999
"""Decay of the average of the weights where a target loss needs it and nothing else is said."""


def average_decay(training: TrainingConfig, losses: Sequence[TargetLoss]) -> float | None:
    """Decay of the average of the weights that a run keeps; None where it keeps none.

    Args:
        training: The training section.
        losses: The target losses, of which some learn from the average.
    """
    taught = any(loss.needs_teacher for loss in losses)
    return _TEACHER_DECAY if training.ema_decay is None and taught else training.ema_decay


class WeightAverage(ModelEmaV3):
    """`average = d average + (1 - d) weights` after every step; running statistics are averaged likewise.

    They are averaged over the processes as well, so that all of these have the same average.

    d rises to `decay` as timm's warm-up has it, `d = min(decay, 1 - step^(-2/3))`, so that the average follows a young
    model closely: after 1000 steps it spans the last 100 of them.

    Timm's own update goes through the state dict, which names a tensor once for every place that it has in the model.
    Detectors tie their heads: those would be averaged several times a step, and so follow the weights faster than the
    rest.

    Args:
        model: The model, of which the average starts as a copy.
        decay: The decay in the long run.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        super().__init__(model, decay, use_warmup=True)

    @torch.no_grad()
    def apply_update_(self, model: nn.Module, decay: float) -> None:
        """One update with the given decay; tensors of whole numbers are copied."""
        averages = [*self.module.parameters(), *self.module.buffers()]
        pairs = [
            (average, value)
            for average, value in zip(averages, [*model.parameters(), *_buffers(model)], strict=True)
            if value.requires_grad or not isinstance(value, nn.Parameter)  # frozen ones are what they were
        ]
        moved = [pair for pair in pairs if pair[0].is_floating_point()]
        # One call for all: a detector has hundreds of small tensors.
        torch._foreach_lerp_([average for average, _ in moved], [value for _, value in moved], 1.0 - decay)
        for average, value in pairs:
            if not average.is_floating_point():
                average.copy_(value)


def _buffers(model: nn.Module) -> list[Tensor]:
    """The buffers; those that each process has moved by its own images, averaged over the processes."""
    found = list(model.buffers())
    if not (dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1):
        return found
    places = [place for place, buffer in enumerate(found) if buffer.is_floating_point()]
    averaged = [found[place].clone() for place in places]
    average_over_processes(averaged)
    for place, value in zip(places, averaged, strict=True):
        found[place] = value
    return found


class Weights:
    """The weights that are trained, and their average where one is kept.

    Args:
        model: The wrapped model.
        processor: The image processor that is saved beside it.
        accelerator: Wrapped it.
        ema_decay: Decay of the average; None keeps none.

    Raises:
        UserError: If an average is asked for under FSDP2.
    """

    def __init__(self, model: nn.Module, processor: Any, accelerator: Accelerator, ema_decay: float | None) -> None:
        self.model, self.processor, self.accelerator = model, processor, accelerator
        self.sharded = accelerator.distributed_type == DistributedType.FSDP
        if ema_decay is not None and self.sharded:
            raise UserError("training.ema_decay: an average of the weights cannot be kept under FSDP2; use null")
        self.average = None if ema_decay is None else WeightAverage(self.bare, ema_decay)

    @property
    def bare(self) -> PreTrainedModel:
        """The model without what accelerate wrapped it in."""
        return self.accelerator.unwrap_model(self.model, keep_torch_compile=False)

    @property
    def evaluated(self) -> nn.Module:
        """The model that is evaluated: the average of the weights where there is one.

        Without DistributedDataParallel, which has all processes wait for one another's buffers in every forward: they
        have different numbers of batches.
        """
        if self.average is not None:
            return self.average.module
        return self.model if self.accelerator.num_processes == 1 or self.sharded else self.bare

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """Inside, each process may run as many forwards as it has batches for, once all have run the first.

        What FSDP2 gathers for that stays whole until the end, and is sharded again then: a step changes the shards.
        """
        parts = [m for m in self.bare.modules() if isinstance(m, FSDPModule)] if self.sharded else []
        for part in parts:
            part.set_reshard_after_forward(False, recurse=False)
        try:
            yield
        finally:
            for part in parts:
                # As `fully_shard` has it: what the root holds is needed again at once, in the backward pass.
                inner = part is not self.bare and bool(self.accelerator.state.fsdp_plugin.reshard_after_forward)
                part.set_reshard_after_forward(inner, recurse=False)
                part.reshard()

    @property
    def kept(self) -> PreTrainedModel:
        """The bare form of the evaluated model, which is saved."""
        if self.average is None:
            return self.bare
        module: PreTrainedModel = self.average.module
        return module

    def update_average(self, step: int) -> None:
        """Update the average after a step."""
        if self.average is not None:
            self.average.update(self.bare, step)

    def gathered(self) -> dict[str, Tensor] | None:
        """The sharded parameters as a whole, for which every process is needed; None where they are not sharded."""
        if self.sharded:
            state: dict[str, Tensor] = self.accelerator.get_state_dict(self.model)
            return state
        return None

    def write(self, folder: Path, state: dict[str, Tensor] | None) -> None:
        """Save the kept model, or these tensors of it, with its image processor."""
        with no_model_progress_bars():
            self.kept.save_pretrained(folder, state_dict=state)
        self.processor.save_pretrained(folder)
