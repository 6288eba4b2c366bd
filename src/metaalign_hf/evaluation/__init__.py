"""Measuring a model: metrics with labels, validators without."""

from .detection import (
    Detections,
    Precision,
    average_precision,
    evaluate_detector,
    precision_curves,
    predict_objects,
    voc_precision,
)
from .metrics import Accuracy, evaluate_classifier, predict_probabilities
from .open_set import OpenSet, evaluate_open_set, is_unknown, open_set
from .outputs import Collected, collect_outputs, gather_rows, in_order
from .validators import (
    FEWEST_IMAGES,
    CachedOutputs,
    Validator,
    compute_validators,
    get_validator,
    register_validator,
    validator_names,
)

__all__ = [
    "FEWEST_IMAGES",
    "Accuracy",
    "CachedOutputs",
    "Collected",
    "Detections",
    "OpenSet",
    "Precision",
    "Validator",
    "average_precision",
    "collect_outputs",
    "compute_validators",
    "evaluate_classifier",
    "evaluate_detector",
    "evaluate_open_set",
    "gather_rows",
    "get_validator",
    "in_order",
    "is_unknown",
    "open_set",
    "precision_curves",
    "predict_objects",
    "predict_probabilities",
    "register_validator",
    "validator_names",
    "voc_precision",
]
