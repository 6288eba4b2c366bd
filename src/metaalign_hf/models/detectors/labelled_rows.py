"""The detection loss on some rows of a batch, when the whole batch runs through the network."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor
from transformers import PreTrainedModel

from ...coordination._replacement import replaced_attribute

__all__ = ["loss_of_rows"]

_WITH_LAYERS = (5, 6)
"""Places of the classes and boxes of all decoder layers among a loss function's arguments, which are for every
detector: logits, labels, device, boxes, configuration, classes of all layers, boxes of all layers, and what follows."""


@contextmanager
def loss_of_rows(detector: PreTrainedModel, rows: Sequence[int], layers_first: bool) -> Iterator[None]:
    """A context in which the detector's loss function sees these rows only.

    The network itself runs on the whole batch, so that layers with live batch statistics normalise as they do in a pass
    without labels on the same images.

    Args:
        detector: Called inside with labels for every row; those of other rows are not looked at.
        rows: Which.
        layers_first: Whether classes and boxes of all decoder layers are `(L, B, ...)`, or `(B, L, ...)`.
    """
    plain = detector.loss_function

    def chosen(value: Any, axis: int = 0) -> Any:
        if isinstance(value, Tensor):
            return value[(slice(None),) * axis + (list(rows),)]
        if isinstance(value, list | tuple):
            return [value[row] for row in rows]
        return value

    def of_rows(*arguments: Any, denoising_meta_values: dict[str, Any] | None = None, **keywords: Any) -> Any:
        given = [
            chosen(value, 1 if layers_first and place in _WITH_LAYERS else 0) for place, value in enumerate(arguments)
        ]
        more = {name: chosen(value) for name, value in keywords.items()}
        if denoising_meta_values is not None:
            positive = chosen(denoising_meta_values["dn_positive_idx"])
            more["denoising_meta_values"] = {**denoising_meta_values, "dn_positive_idx": positive}
        return plain(*given, **more)

    # The attribute behind the `loss_function` setter, which can be restored.
    with replaced_attribute(detector, "_loss_function", of_rows):
        yield
