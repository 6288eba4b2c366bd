"""Measuring a model: metrics with labels, validators without."""

from .metrics import Accuracy, evaluate_classifier, predict_probabilities
from .validators import (
    CachedOutputs,
    Validator,
    compute_validators,
    get_validator,
    register_validator,
    validator_names,
)

__all__ = [
    "Accuracy",
    "CachedOutputs",
    "Validator",
    "compute_validators",
    "evaluate_classifier",
    "get_validator",
    "predict_probabilities",
    "register_validator",
    "validator_names",
]
