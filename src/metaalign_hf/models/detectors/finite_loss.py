"""A detector's loss on outputs that are not numbers any more: not a number, too, and the pass ends as any other."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from ...coordination._replacement import replaced_attribute

__all__ = ["loss_that_may_be_nan"]


@contextmanager
def loss_that_may_be_nan(detector: PreTrainedModel) -> Iterator[None]:
    """A context in which the detector's loss is NaN where its outputs are, and raises nothing.

    Matching fails on such boxes in various ways, on the one process whose boxes they are, while the others wait for it:
    for the number of all boxes, or for their gradients. So the loss is computed as ever, on numbers in their place, and
    then made NaN, and its gradient with it: all processes see the same and skip the same step.
    """
    plain = detector.loss_function

    def guarded(*arguments: Any, **keywords: Any) -> Any:
        tensors = [tensor for tensor in _tensors([arguments, keywords]) if tensor.is_floating_point()]
        # NaN alone: some detectors mask proposals by infinite values.
        if not bool(torch.stack([tensor.isnan().any() for tensor in tensors]).any()):
            return plain(*arguments, **keywords)
        loss, *rest = plain(*_numbers(arguments), **_numbers(keywords))
        return (loss * math.nan, *rest)

    with replaced_attribute(detector, "_loss_function", guarded):
        yield


def _tensors(value: Any) -> Iterator[Tensor]:
    """All tensors in tuples, lists and dicts."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict | list | tuple):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from _tensors(inner)


def _numbers(value: Any) -> Any:
    """The same with 0.5, which is the share of a box as well as of a score, for what is no finite number."""
    if isinstance(value, Tensor):
        return torch.where(value.isfinite(), value, 0.5) if value.is_floating_point() else value
    if isinstance(value, dict):
        return {key: _numbers(inner) for key, inner in value.items()}
    if type(value) in (list, tuple):
        return type(value)(map(_numbers, value))
    return value
