"""Measuring a model: metrics with labels."""

from .metrics import Accuracy, evaluate_classifier, predict_probabilities

__all__ = ["Accuracy", "evaluate_classifier", "predict_probabilities"]
