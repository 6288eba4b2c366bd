"""The metaalign checkpoint, of a folder or the Hub, that a run goes on from (`model.checkpoint`)."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import torch
from transformers import PreTrainedModel

from ..errors import UserError, one_line
from ..hub.fetch import fetch
from ..models.origin import checkpoint_origin
from ..progress import quiet_loading

__all__ = ["check_labels", "fetch_starting_point", "load_starting_point", "starting_architecture"]

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


def load_starting_point(place: str, kind: type[M], instead: Callable[[str], str]) -> M:
    """The model of `model.checkpoint`, in float32.

    Args:
        place: A folder, `org/name` or `org/name@revision`.
        kind: The class that it must hold.
        instead: Says, given the class that it holds, how to use it all the same; may be empty.

    Raises:
        UserError: If the checkpoint cannot be found or loaded, lacks a tensor, or holds another class.
    """
    folder = fetch_starting_point(place)
    found = _architecture(place, folder)
    if found != kind.__name__:
        raise UserError(f"model.checkpoint: {place} holds {found}, not {kind.__name__}{instead(found)}")
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
        names = json.loads((folder / "config.json").read_text()).get("architectures") or ["a model"]
    except (json.JSONDecodeError, UnicodeDecodeError, AttributeError) as error:
        raise UserError(f"model.checkpoint: {place} has a damaged config.json") from error
    return str(names[0])
