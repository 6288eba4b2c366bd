"""Resumable checkpoints: tensors as safetensors, the rest as JSON, never a pickle.

A checkpoint is written aside, flushed to the disk, and renamed when it is whole; `sha256.json` in it has the checksums
of its files. So a kill or a power cut leaves it whole or not there, and what a disk or a copy damaged is noticed.

`checkpoints/step-000500/` holds `model.safetensors` (and `average.safetensors`, where an average of the weights is
kept, and what the mode of batch normalisation keeps), `optimizer.safetensors` and `state.json`. Under FSDP2 the files
hold whole tensors, whatever the shards.
Learning rate, reversal strength, data order and random numbers are pure functions of the step, so there is nothing else
to save.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.optim import Optimizer

from ..disk import flush_to_disk
from ..errors import UserError, one_line
from ..run_folder import CHECKPOINTS_FOLDER

__all__ = [
    "checkpoint_folder",
    "checkpoints",
    "damage",
    "drop_after",
    "load_checkpoint",
    "load_modules",
    "read_state",
    "save_checkpoint",
    "step_of",
    "whole_tensors",
]

_CHECKSUMS = "sha256.json"
_DELETED = ".deleted"
_NAME = re.compile(r"step-(\d+)")


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
    folder = checkpoint_folder(output_dir, step)
    tensors, numbers = _split_optimizer_state(optimizer)
    files = {name: whole_tensors(module.state_dict()) for name, module in modules.items()}
    files["optimizer"] = whole_tensors(tensors)
    if not write:
        return folder
    partial = folder.with_name(f"{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir(parents=True)
        for name, content in files.items():
            save_file(content, partial / f"{name}.safetensors")
        (partial / "state.json").write_text(json.dumps({"step": step, "optimizer": numbers, **state}, indent=2) + "\n")
        sums = {file.name: _checksum(file) for file in sorted(partial.iterdir())}
        (partial / _CHECKSUMS).write_text(json.dumps(sums, indent=2) + "\n")
        for path in (*partial.iterdir(), partial):
            flush_to_disk(path)
    except (OSError, SafetensorError):
        shutil.rmtree(partial, ignore_errors=True)  # a full disk has other uses for the room
        raise
    if folder.exists():
        _delete(folder)
    partial.rename(folder)
    flush_to_disk(folder.parent)
    for old in checkpoints(output_dir)[:-keep]:
        _delete(old)
    for rest in folder.parent.glob(f"step-*{_DELETED}"):
        shutil.rmtree(rest, ignore_errors=True)  # what a kill has left
    return folder


def _delete(folder: Path) -> None:
    """Take a checkpoint away. Under another name first: a kill in the middle leaves no half of one."""
    aside = folder.with_name(f"{folder.name}{_DELETED}")
    shutil.rmtree(aside, ignore_errors=True)
    folder.rename(aside)
    shutil.rmtree(aside)


def checkpoint_folder(output_dir: Path, step: int) -> Path:
    """Where the checkpoint of a step is, or will be."""
    return output_dir / CHECKPOINTS_FOLDER / f"step-{step:06d}"


def checkpoints(output_dir: Path) -> list[Path]:
    """The complete checkpoints of a run, the newest one last."""
    found = (output_dir / CHECKPOINTS_FOLDER).glob("step-*")
    return sorted((path for path in found if _NAME.fullmatch(path.name) and path.is_dir()), key=step_of)


def step_of(folder: Path) -> int:
    """How many steps had been taken at a checkpoint, by its name."""
    found = _NAME.fullmatch(folder.name)
    return int(found.group(1)) if found else 0


def damage(folder: Path) -> str | None:
    """What is wrong with the files of a checkpoint; None if they are as they were written.

    Of a checkpoint of an older release, which has no checksums, it is not known.

    Args:
        folder: As `checkpoints` gives it.
    """
    try:
        sums = json.loads((folder / _CHECKSUMS).read_text())
        for name, wanted in sums.items():
            if _checksum(folder / name) != wanted:
                return f"{name} is not what was written"
    except FileNotFoundError as error:
        missing = Path(error.filename).name
        return None if missing == _CHECKSUMS and (folder / "state.json").is_file() else f"{missing} is missing"
    except (OSError, ValueError, AttributeError, TypeError) as error:
        return one_line(error)
    return None


def drop_after(output_dir: Path, step: int) -> None:
    """Take away the checkpoints of later steps, which a run that goes on from here makes again; damaged ones go aside.

    Args:
        output_dir: The run's folder.
        step: Steps taken.
    """
    for folder in checkpoints(output_dir):
        if step_of(folder) <= step:
            continue
        if damage(folder) is None:
            _delete(folder)
        else:
            aside = folder.with_name(f"{folder.name}.damaged")
            shutil.rmtree(aside, ignore_errors=True)
            folder.rename(aside)


def _checksum(file: Path) -> str:
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


def read_state(folder: Path) -> dict[str, Any]:
    """What `save_checkpoint` was given as state, plus `step`.

    Raises:
        UserError: If the file cannot be read.
    """
    try:
        state = json.loads((folder / "state.json").read_text())
        if not isinstance(state, dict) or not isinstance(state.get("step"), int):
            raise ValueError("it has no step")
        return state
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"checkpoint {folder}: state.json cannot be read ({error}); delete the folder") from error


def load_checkpoint(folder: Path, modules: dict[str, nn.Module], optimizer: Optimizer) -> None:
    """Put the tensors of a checkpoint into the modules and the optimiser.

    Args:
        folder: The checkpoint.
        modules: As for `save_checkpoint`.
        optimizer: An optimiser over the same parameters in the same order.

    Raises:
        UserError: If a file is damaged or does not fit the model.
    """
    try:
        load_modules(folder, modules)
        tensors = load_file(folder / "optimizer.safetensors")
        _restore_optimizer_state(optimizer, tensors, read_state(folder)["optimizer"])
    except UserError:
        raise
    except Exception as error:
        raise UserError(
            f"checkpoint {folder}: cannot be loaded ({one_line(error, first=True)}); delete the folder"
        ) from error


def load_modules(folder: Path, modules: dict[str, nn.Module]) -> None:
    """Put the tensors of `NAME.safetensors` in a folder into each module."""
    for name, module in modules.items():
        state = load_file(folder / f"{name}.safetensors")
        like = module.state_dict()
        module.load_state_dict({key: _sharded(value, like.get(key)) for key, value in state.items()}, strict=True)


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
