"""An attribute of a module, replaced for a while."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

__all__ = ["replaced_attribute"]


@contextmanager
def replaced_attribute(module: nn.Module, name: str, value: Any) -> Iterator[None]:
    """The module has this attribute inside, such as a `forward` of its own; its hooks run as ever. May be nested."""
    own = module.__dict__
    had, before = name in own, own.get(name)
    setattr(module, name, value)
    try:
        yield
    finally:
        if had:
            setattr(module, name, before)
        else:
            delattr(module, name)
