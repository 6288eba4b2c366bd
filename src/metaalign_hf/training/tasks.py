"""Which task a configuration describes."""

from __future__ import annotations

from typing import Any

from transformers import AutoConfig

from ..errors import UserError
from ..hub import fetch
from ..models import MetaAlignDetectionConfig, MetaAlignForObjectDetection
from .classification import ClassificationTask
from .configuration import Config
from .detection import DetectionTask
from .task import Task

__all__ = ["build_task", "is_detection"]


def build_task(config: Config, pair: Any = None, model: Any = None) -> Task:
    """The task that the configuration describes, with its data and its model.

    Args:
        config: The whole configuration.
        pair: The domain pair; by default the one that `config.data` describes.
        model: The model; by default the one that `config.model` describes.

    Raises:
        UserError: If the data or the model cannot be loaded, or they do not fit.
    """
    if is_detection(config, model):
        return DetectionTask(config, pair, model)
    return ClassificationTask(config, pair, model)


def is_detection(config: Config, model: Any = None) -> bool:
    """Whether the model, given or described, is a detector.

    Raises:
        UserError: If `model.checkpoint` cannot be read.
    """
    if model is not None:
        return isinstance(model, MetaAlignForObjectDetection)
    if config.model.checkpoint is None:
        return config.model.detector is not None
    folder = fetch(config.model.checkpoint, what="model.checkpoint:")
    try:
        found = AutoConfig.from_pretrained(folder)
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(f"model.checkpoint: {config.model.checkpoint} cannot be loaded: {reason}") from error
    return isinstance(found, MetaAlignDetectionConfig)
