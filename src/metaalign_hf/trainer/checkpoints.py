"""What a checkpoint of the Trainer holds beside what transformers writes: safetensors and JSON.

Where an average of the weights is kept, it is the checkpoint's `model.safetensors`: a checkpoint is the model that was
evaluated, and can be loaded as one. The weights that are trained are in `trained.safetensors`.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import nn

from ..coordination import Coordinator
from ..errors import UserError, one_line
from ..target_losses import TargetLoss
from ..training.checkpoints import load_modules, whole_tensors
from ..training.weights import Weights

__all__ = ["load_state", "save_state"]

_STATE = "metaalign_state.json"
_TRAINED = "trained"


def save_state(
    folder: Path,
    weights: Weights,
    modules: dict[str, nn.Module],
    coordinator: Coordinator,
    losses: Sequence[TargetLoss],
    *,
    write: bool,
) -> None:
    """Add to a checkpoint what a run of ours needs to go on; a collective call under FSDP2.

    Args:
        folder: The checkpoint.
        weights: The model, and its average where one is kept.
        modules: What the mode of batch normalisation keeps.
        coordinator: Of the steps.
        losses: The target losses.
        write: Whether this process is the one that writes.
    """
    tensors = {name: whole_tensors(m.state_dict()) for name, m in _modules(weights, modules, coordinator).items()}
    if not write:
        return
    for name, content in tensors.items():
        save_file(content, folder / f"{name}.safetensors")
    state = {
        "coordinator": coordinator.state_dict(),
        "target_losses": {loss.name: loss.state_dict() for loss in losses},
    }
    (folder / _STATE).write_text(json.dumps(state, indent=2) + "\n")


def load_state(
    folder: Path,
    weights: Weights,
    modules: dict[str, nn.Module],
    coordinator: Coordinator,
    losses: Sequence[TargetLoss],
) -> None:
    """Go on from what `save_state` wrote, once the checkpoint's model has been loaded.

    Args:
        folder: The checkpoint.
        weights: The model as the checkpoint has it.
        modules: As for `save_state`.
        coordinator: As for `save_state`.
        losses: As for `save_state`.

    Raises:
        UserError: If the checkpoint is of another kind of run, or damaged.
    """
    if not (folder / _STATE).is_file():
        raise UserError(f"checkpoint {folder}: it has no {_STATE}; it is not one of MetaAlignTrainer")
    averaged = (folder / f"{_TRAINED}.safetensors").is_file()
    if averaged != (weights.average is not None):
        had, has = ("an", "none") if averaged else ("no", "one")
        raise UserError(
            f"ema_decay: checkpoint {folder} has {had} average of the weights, and this run keeps {has}; resume with "
            "the ema_decay and target_losses of that run"
        )
    try:
        load_modules(folder, _modules(weights, modules, coordinator))
        state: dict[str, Any] = json.loads((folder / _STATE).read_text())
        coordinator.load_state_dict(state["coordinator"])
        kept = state["target_losses"]
        if set(kept) != {loss.name for loss in losses}:
            raise UserError(
                f"target_losses: checkpoint {folder} is of a run with {', '.join(kept) or 'none'}; resume with the same"
            )
        for loss in losses:
            loss.load_state_dict(kept[loss.name])
    except UserError:
        raise
    except Exception as error:
        raise UserError(
            f"checkpoint {folder}: cannot be loaded ({one_line(error, first=True)}); resume from another one"
        ) from error


def _modules(weights: Weights, modules: dict[str, nn.Module], coordinator: Coordinator) -> dict[str, nn.Module]:
    """The modules whose tensors transformers does not write, by the names of their files."""
    memory = coordinator.memory
    return {
        **({} if memory is None else {"coordination": memory}),
        **({} if weights.average is None else {_TRAINED: weights.bare}),
        **modules,
    }
