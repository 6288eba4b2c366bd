"""What the readers of every annotation format share."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from ..configuration import DomainConfig
from ..errors import UserError
from .objects import Objects

__all__ = [
    "ClassNames",
    "FoundObject",
    "corners",
    "header_size",
    "packed",
    "required_entry",
    "required_id",
    "upright_size",
]

FoundObject = tuple[tuple[float, float, float, float], int, bool]
"""Corners, class index, and whether it is to be ignored."""


class ClassNames:
    """Class names, collected while reading or given by `classes`."""

    def __init__(self, config: DomainConfig, known: Sequence[str] = ()) -> None:
        self.given = config.classes
        if self.given is not None and (not self.given or len(set(self.given)) != len(self.given)):
            raise UserError(f"domain {config.describe()}: classes must be different names, got {self.given!r}")
        if self.given is not None and known:
            absent = [name for name in self.given if name not in known]
            if absent:
                raise UserError(
                    f"domain {config.describe()}: classes names {absent[0]!r}, which the domain does not have; it has "
                    f"{', '.join(known[:20])}"
                )
        self.names = list(self.given or known)
        self.fixed = self.given is not None or bool(known)

    def index(self, name: str) -> int | None:
        """Index of a class; None where it is not to be kept."""
        if name in self.names:
            return self.names.index(name)
        if self.fixed:
            return None
        self.names.append(name)
        return len(self.names) - 1


def required_entry(entry: Any, key: str, where: str) -> Any:
    """A value of a mapping.

    Raises:
        UserError: If it is missing.
    """
    if not isinstance(entry, dict) or entry.get(key) is None:
        raise UserError(f"{where}: has no {key!r}")
    return entry[key]


def required_id(entry: Any, key: str, where: str) -> int | str:
    """An id in a mapping: a whole number or a text.

    Raises:
        UserError: If it is missing, or something else.
    """
    value = required_entry(entry, key, where)
    if not isinstance(value, int | str):
        raise UserError(f"{where}: {key} is {str(value)[:80]}: it must be a whole number or a text")
    return value


def corners(box: Any, box_format: str, where: str) -> tuple[float, float, float, float]:
    """A box as x_min, y_min, x_max, y_max.

    Raises:
        UserError: If it is not four numbers.
    """
    try:
        a, b, c, d = (float(value) for value in box)
    except (TypeError, ValueError, OverflowError) as error:
        raise UserError(f"{where}: a box must be four numbers, got {str(box)[:80]}") from error
    return (a, b, a + c, b + d) if box_format == "xywh" else (a, b, c, d)


def packed(found: Sequence[Sequence[FoundObject]]) -> tuple[Objects, ...]:
    """The objects of every image as tensors."""
    return tuple(
        Objects.of([box for box, _, _ in image], [label for _, label, _ in image], [flag for _, _, flag in image])
        for image in found
    )


def header_size(path: Path, where: str) -> tuple[int, int]:
    """Height and width of an image file, upright, without decoding it.

    Raises:
        UserError: If it is not an image.
    """
    try:
        with Image.open(path) as image:
            return upright_size(image)
    except UserError:
        raise
    except Exception as error:  # damaged files make Pillow raise nearly anything
        raise UserError(f"{where}: image {path} cannot be read: {error}") from error


def upright_size(image: Image.Image) -> tuple[int, int]:
    """Height and width of an opened image, upright, without decoding it."""
    width, height = image.size
    return (width, height) if image.getexif().get(0x0112, 1) >= 5 else (height, width)
