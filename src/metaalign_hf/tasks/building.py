"""Selects the task that a configuration describes."""

from __future__ import annotations

from typing import Any

from ..configuration import Config
from ..configuration.reading import refuse_unread_by_task
from ..errors import UserError
from .base import Task
from .kinds import TaskKind, task_chosen_by, task_of_architecture, task_of_model
from .starting_point import starting_architecture

__all__ = ["build_task", "described_task"]


def build_task(config: Config, pair: Any = None, model: Any = None) -> Task:
    """The task that the configuration describes, with its data and its model.

    Args:
        config: The whole configuration.
        pair: The domain pair; by default the one that `config.data` describes.
        model: The model; by default the one that `config.model` describes.

    Raises:
        UserError: If the data or the model cannot be loaded, or they do not fit, or an entry is set that the task does
            not read, or there is nothing to align by.
    """
    kind = described_task(config, model)
    refuse_unread_by_task(config, kind)
    task: Any = kind.load()
    built: Task = task(config, pair, model)
    method, aligns = config.coordination.method, built.model.config.alignment or built.target_losses
    if method not in ("source_only", "target_only") and not aligns:
        raise UserError(
            f"model.alignment: {method} needs an alignment objective; name one, or a target loss "
            "(training.target_losses), or use coordination.method: source_only"
        )
    return built


def described_task(config: Config, model: Any = None) -> TaskKind:
    """The kind of task that the configuration or the given model describes.

    Raises:
        UserError: If `model.checkpoint` cannot be read.
    """
    if model is not None:
        return task_of_model(model)
    chosen, place = task_chosen_by(vars(config.model)), config.model.checkpoint
    if place is None or chosen.chosen_by is not None:
        return chosen
    return task_of_architecture(starting_architecture(place))
