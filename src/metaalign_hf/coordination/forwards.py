"""The forward of a layer, replaced for a while."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

__all__ = ["replaced_forward"]


@contextmanager
def replaced_forward(layer: nn.Module, forward: Callable[..., Any]) -> Iterator[None]:
    """The layer computes `forward` inside; its hooks run as ever. Contexts of one layer may be nested."""
    had = layer.__dict__.get("forward")
    layer.forward = forward
    try:
        yield
    finally:
        if had is None:
            del layer.forward
        else:
            layer.forward = had
