"""The metaalign checkpoint, of a folder or the Hub, that a run goes on from (`model.checkpoint`)."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import torch
from transformers import PreTrainedModel

from ..configuration import ModelConfig
from ..errors import UserError, one_line
from ..hub.fetch import fetch
from ..models.backbone import use_attention
from ..models.origin import checkpoint_origin
from ..progress import quiet_loading
from ..reports.record import record_folder
from ..run_folder import SUMMARY_FILE, model_config_file
from .kinds import TaskKind, task_of_architecture

__all__ = [
    "check_labels",
    "fetch_starting_point",
    "recorded_batch_norm",
    "starting_architecture",
    "starting_model",
]

M = TypeVar("M", bound=PreTrainedModel)


def fetch_starting_point(place: str) -> Path:
    """The folder of `model.checkpoint`.

    Raises:
        UserError: If there is no such folder or repository, or it holds no safetensors weights.
    """
    return fetch(place, what="model.checkpoint:")


def starting_architecture(place: str) -> str:
    """Name of the class that `model.checkpoint` holds.

    Raises:
        UserError: If the checkpoint cannot be read.
    """
    return _architecture(place, fetch_starting_point(place))


def starting_model(config: ModelConfig, kind: TaskKind, model_class: type[M], fresh: Callable[[], M]) -> M:
    """The model that the configuration describes: a new one, or a metaalign checkpoint in float32.

    Args:
        config: The model's section.
        kind: The task.
        model_class: The class that a checkpoint must hold.
        fresh: Builds a new model.

    Raises:
        UserError: If the model cannot be built, or the checkpoint cannot be found or loaded, lacks a tensor, or holds
            another class.
    """
    model = fresh() if config.checkpoint is None else _checkpoint(config.checkpoint, kind, model_class)
    if config.attention is not None:
        use_attention(model.base_model, config.attention)
    return model


def _checkpoint(place: str, task: TaskKind, kind: type[M]) -> M:
    folder = fetch_starting_point(place)
    found = _architecture(place, folder)
    if found != kind.__name__:
        instead = f"; to start from it {task.start_words}, use model.{task.start_key}: {place}"
        fits = task_of_architecture(found) == task
        raise UserError(f"model.checkpoint: {place} holds {found}, not {kind.__name__}{instead if fits else ''}")
    try:
        with quiet_loading():
            model = kind.from_pretrained(folder, dtype=torch.float32)
    except UserError as error:
        raise UserError(f"model.{str(error).replace(str(folder), place)}") from error
    except Exception as error:  # damaged files make the libraries raise nearly anything
        reason = one_line(error, first=True)
        raise UserError(f"model.checkpoint: {place} cannot be loaded: {reason}") from error
    if not Path(place).expanduser().is_dir():
        # The folder is a snapshot in the Hub's cache, whose name is the commit.
        repository, commit = place.partition("@")[0], folder.name
        model.config.origin = checkpoint_origin(repository, commit, model.config.origin)
    return model


def recorded_batch_norm(place: str | None) -> str | None:
    """What batch normalisation did in the run that a checkpoint comes from; None where that is not on record.

    Args:
        place: As `model.checkpoint` takes it.
    """
    if place is None:
        return None
    try:
        found = json.loads((record_folder(fetch_starting_point(place)) / SUMMARY_FILE).read_text()).get("batch_norm")
    except (OSError, ValueError, AttributeError):
        return None
    return found if isinstance(found, str) else None


def check_labels(known: list[str], found: list[str]) -> None:
    """The classes of model and data must be the same names; their order may differ.

    Args:
        known: Class names of the model.
        found: Class names of the data.

    Raises:
        UserError: If one of them has a name that the other lacks.
    """
    lacking = [name for name in found if name not in known]
    unused = [name for name in known if name not in found]
    if lacking or unused:
        parts = [
            f"only {who} has {', '.join(names[:5])}"
            for who, names in (("the model", unused), ("the data", lacking))
            if names
        ]
        raise UserError(f"model: its classes are not those of the data: {'; '.join(parts)}")


def _architecture(place: str, folder: Path) -> str:
    try:
        names = json.loads(model_config_file(folder).read_text()).get("architectures") or ["a model"]
    except (json.JSONDecodeError, UnicodeDecodeError, AttributeError) as error:
        raise UserError(f"model.checkpoint: {place} has a damaged config.json") from error
    return str(names[0])
