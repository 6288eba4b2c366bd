"""Resumable checkpoints: tensors as safetensors, the rest as JSON, never a pickle.

`checkpoints/step-000500/` holds `model.safetensors`, `optimizer.safetensors` and `state.json`. Learning rate, reversal
strength, data order and random numbers are pure functions of the step, so there is nothing else to save.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.optim import Optimizer

from ..errors import UserError

__all__ = ["latest_checkpoint", "load_checkpoint", "save_checkpoint"]

FOLDER = "checkpoints"


def save_checkpoint(
    output_dir: Path, step: int, model: nn.Module, optimizer: Optimizer, state: dict[str, Any], keep: int
) -> Path:
    """Write a checkpoint after `step` steps and delete all but the newest `keep`.

    The folder appears under its final name only when it is complete, so that a killed run never leaves half a
    checkpoint.

    Args:
        output_dir: The run's folder.
        step: Number of steps taken.
        model: The bare model.
        optimizer: Its optimiser.
        state: What else the loop must know, as JSON values.
        keep: How many checkpoints stay.

    Returns:
        The checkpoint's folder.
    """
    folder = output_dir / FOLDER / f"step-{step:06d}"
    partial = folder.with_name(f"{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    save_file(_contiguous(model.state_dict()), partial / "model.safetensors")
    tensors, numbers = _split_optimizer_state(optimizer)
    save_file(_contiguous(tensors), partial / "optimizer.safetensors")
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


def load_checkpoint(folder: Path, model: nn.Module, optimizer: Optimizer) -> None:
    """Put the tensors of a checkpoint into the model and the optimiser.

    Args:
        folder: As `latest_checkpoint` returns it.
        model: The bare model.
        optimizer: An optimiser over the same parameters in the same order.

    Raises:
        UserError: If a file is damaged or does not fit the model.
    """
    try:
        model.load_state_dict(load_file(folder / "model.safetensors"), strict=True)
        tensors = load_file(folder / "optimizer.safetensors")
    except Exception as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"checkpoint {folder}: cannot be loaded ({reason}); delete the folder") from error
    _restore_optimizer_state(optimizer, tensors, read_state(folder)["optimizer"])


def _checkpoints(output_dir: Path) -> list[Path]:
    folder = output_dir / FOLDER
    return sorted(p for p in folder.glob("step-*") if p.is_dir() and p.suffix != ".partial")


def _contiguous(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().contiguous().cpu() for name, tensor in tensors.items()}


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
    for name, value in {**tensors, **numbers}.items():
        index, key = name.split(".", 1)
        state.setdefault(int(index), {})[key] = value.clone() if isinstance(value, torch.Tensor) else value
    full = optimizer.state_dict()
    full["state"] = state
    optimizer.load_state_dict(full)
