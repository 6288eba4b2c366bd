"""Making a run longer: it must end as if it had been that long from the start."""

from __future__ import annotations

from pathlib import Path

from torch import nn

from ..alignment import AlignmentObjective
from ..alignment.detection.base import AlignmentLevel
from ..configuration import Config
from ..errors import UserError
from ..target_losses import normalise_target_losses
from .run_folder import as_new_run, recorded_steps

__all__ = ["refuse_inexact", "why_not_longer"]


def why_not_longer(config: Config, model: nn.Module) -> str | None:
    """What in a run depends on how many steps it has; None where nothing does, so that more steps may be added.

    Evaluations may depend on it: they change no weights of the training.

    Args:
        config: The run's configuration.
        model: Its bare model.
    """
    if config.optimizer.schedule == "cosine":
        return "the learning rate of optimizer.schedule: cosine depends on the number of steps"
    if config.training.recalibrate_bn == "target":
        return "its last checkpoint has the statistics of training.recalibrate_bn: target, not those of the training"
    if config.coordination.method == "source_only":
        return None
    for loss in normalise_target_losses(config.training.target_loss_specs):
        if loss.get("burn_in") or loss.get("ramp_up"):
            return f"burn_in and ramp_up of the target loss {loss['name']} depend on the number of steps"
    if config.coordination.method == "target_only":
        return None
    for module in model.modules():
        if isinstance(module, AlignmentObjective | AlignmentLevel) and module.uses_progress:
            return (
                f"the alignment loss ({type(module).__name__}) depends on the number of steps, over which its gradient "
                "reversal grows"
            )
    return None


def refuse_inexact(config: Config, model: nn.Module, checkpoint: Path | None) -> None:
    """Refuse to go on with a run as a longer one where that would be another run than a long one from the start.

    Args:
        config: The configuration now.
        model: The bare model.
        checkpoint: Where the run goes on from; None from the start, which is always exact.

    Raises:
        UserError: If more steps were asked for than the run in the folder has, and something depends on their number.
    """
    steps = recorded_steps(config)
    if checkpoint is None or steps is None or config.training.max_steps <= steps:
        return
    reason = why_not_longer(config, model)
    if reason is not None:
        raise UserError(
            f"training.max_steps: the run in {config.training.output_dir} has {steps} and cannot become longer, "
            f"because {reason}; {as_new_run(config)}"
        )
