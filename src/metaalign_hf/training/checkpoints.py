"""Resumable checkpoints: tensors as safetensors, the rest as JSON, never a pickle.

`checkpoints/step-000500/` holds `model.safetensors` (and `average.safetensors`, where an average of the weights is
kept, and what the mode of batch normalisation keeps), `optimizer.safetensors` and `state.json`. Under FSDP2 the files
hold whole tensors, whatever the shards.
Learning rate, reversal strength, data order and random numbers are pure functions of the step, so there is nothing else
to save.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.optim import Optimizer

from ..errors import UserError, one_line
from ..run_folder import CHECKPOINTS_FOLDER

__all__ = ["latest_checkpoint", "load_checkpoint", "save_checkpoint", "whole_tensors"]


def save_checkpoint(
    output_dir: Path,
    step: int,
    modules: dict[str, nn.Module],
    optimizer: Optimizer,
    state: dict[str, Any],
    keep: int,
    *,
    write: bool = True,
) -> Path:
    """Write a checkpoint after `step` steps and delete all but the newest `keep`; a collective call under FSDP2.

    The folder appears under its final name only when it is complete, so that a killed run never leaves half a
    checkpoint.

    Args:
        output_dir: The run's folder.
        step: Number of steps taken.
        modules: The bare model as `model`, and what else has tensors to keep.
        optimizer: The model's optimiser.
        state: What else the loop must know, as JSON values.
        keep: How many checkpoints stay.
        write: Whether this process is the one that writes.

    Returns:
        The checkpoint's folder.
    """
    folder = output_dir / CHECKPOINTS_FOLDER / f"step-{step:06d}"
    tensors, numbers = _split_optimizer_state(optimizer)
    files = {name: whole_tensors(module.state_dict()) for name, module in modules.items()}
    files["optimizer"] = whole_tensors(tensors)
    if not write:
        return folder
    partial = folder.with_name(f"{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    for name, content in files.items():
        save_file(content, partial / f"{name}.safetensors")
    (partial / "state.json").write_text(json.dumps({"step": step, "optimizer": numbers, **state}, indent=2) + "\n")
    shutil.rmtree(folder, ignore_errors=True)
    partial.rename(folder)
    for old in _checkpoints(output_dir)[:-keep]:
        shutil.rmtree(old)
    return folder


def latest_checkpoint(output_dir: Path) -> Path | None:
    """The newest complete checkpoint of a run, or None."""
    found = _checkpoints(output_dir)
    return found[-1] if found else None


def read_state(folder: Path) -> dict[str, Any]:
    """What `save_checkpoint` was given as state, plus `step`.

    Raises:
        UserError: If the file cannot be read.
    """
    try:
        return json.loads((folder / "state.json").read_text())
    except (OSError, json.JSONDecodeError) as error:
        raise UserError(f"checkpoint {folder}: state.json cannot be read ({error}); delete the folder") from error


def load_checkpoint(folder: Path, modules: dict[str, nn.Module], optimizer: Optimizer) -> None:
    """Put the tensors of a checkpoint into the modules and the optimiser.

    Args:
        folder: As `latest_checkpoint` returns it.
        modules: As for `save_checkpoint`.
        optimizer: An optimiser over the same parameters in the same order.

    Raises:
        UserError: If a file is damaged or does not fit the model.
    """
    try:
        for name, module in modules.items():
            state = load_file(folder / f"{name}.safetensors")
            like = module.state_dict()
            module.load_state_dict({key: _sharded(value, like.get(key)) for key, value in state.items()}, strict=True)
        tensors = load_file(folder / "optimizer.safetensors")
    except Exception as error:
        raise UserError(
            f"checkpoint {folder}: cannot be loaded ({one_line(error, first=True)}); delete the folder"
        ) from error
    _restore_optimizer_state(optimizer, tensors, read_state(folder)["optimizer"])


def _checkpoints(output_dir: Path) -> list[Path]:
    folder = output_dir / CHECKPOINTS_FOLDER
    return sorted(p for p in folder.glob("step-*") if p.is_dir() and p.suffix != ".partial")


def whole_tensors(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors on the CPU, gathered from all processes under FSDP2 (a collective call)."""
    whole = {name: t.full_tensor() if isinstance(t, DTensor) else t for name, t in tensors.items()}
    found: dict[str, Tensor] = {}
    places: set[int] = set()
    for name, tensor in whole.items():
        kept = tensor.detach().contiguous().cpu()
        # Detectors tie some of their heads, and safetensors refuses what shares memory: written twice, loaded twice.
        found[name] = kept.clone() if kept.data_ptr() in places else kept
        places.add(kept.data_ptr())
    return found


def _sharded(value: Tensor, like: Tensor | None) -> Tensor:
    """The value, sharded as `like` is."""
    return distribute_tensor(value, like.device_mesh, like.placements) if isinstance(like, DTensor) else value


def _split_optimizer_state(optimizer: Optimizer) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The optimiser's state as tensors named `parameter index.entry`, and its plain numbers under the same names."""
    tensors: dict[str, Tensor] = {}
    numbers: dict[str, Any] = {}
    for index, entries in optimizer.state_dict()["state"].items():
        for key, value in entries.items():
            (tensors if isinstance(value, Tensor) else numbers)[f"{index}.{key}"] = value
    return tensors, numbers


def _restore_optimizer_state(optimizer: Optimizer, tensors: dict[str, Tensor], numbers: dict[str, Any]) -> None:
    state: dict[int, dict[str, Any]] = {}
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    for name, value in {**tensors, **numbers}.items():
        index, key = name.split(".", 1)
        if isinstance(value, Tensor):
            like = parameters[int(index)]
            value = _sharded(value.clone(), like if like.shape == value.shape else None)
        state.setdefault(int(index), {})[key] = value
    full = optimizer.state_dict()
    full["state"] = state
    optimizer.load_state_dict(full)
