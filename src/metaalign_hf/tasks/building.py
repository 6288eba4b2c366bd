"""Which task a configuration describes."""

from __future__ import annotations

from typing import Any

from ..configuration import Config
from ..models import MetaAlignForObjectDetection
from .base import Task
from .classification.task import ClassificationTask
from .detection.task import DetectionTask
from .starting_point import starting_architecture

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
    detects = starting_architecture(config.model.checkpoint).endswith("ObjectDetection")
    return detects or config.model.detector is not None
