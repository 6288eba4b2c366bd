"""Measuring a model: metrics with labels, validators without."""

from .metrics import Accuracy, evaluate_classifier, predict_probabilities
from .outputs import collect_outputs, gather_rows
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
    "Validator",
    "collect_outputs",
    "compute_validators",
    "evaluate_classifier",
    "gather_rows",
    "get_validator",
    "predict_probabilities",
    "register_validator",
    "validator_names",
]
