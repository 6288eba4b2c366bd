"""Everything that one task knows, in a package each, and the registry by which everything else asks.

What is imported here needs no torch: names, measures and words. `TaskKind.load` imports what computes.
"""

from .classification import IMAGE_CLASSIFICATION
from .detection import OBJECT_DETECTION
from .kinds import (
    Measure,
    PredictOption,
    TaskKind,
    known_tasks,
    register_task,
    task_chosen_by,
    task_named,
    task_of_architecture,
    task_of_model,
)

__all__ = [
    "IMAGE_CLASSIFICATION",
    "OBJECT_DETECTION",
    "Measure",
    "PredictOption",
    "TaskKind",
    "known_tasks",
    "register_task",
    "task_chosen_by",
    "task_named",
    "task_of_architecture",
    "task_of_model",
]
