"""Names of files that users give."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path, PurePath

from .errors import UserError

__all__ = ["is_file", "is_visible", "printable", "require_readable"]


def printable(path: str | Path) -> str:
    r"""The name of a file as text; bytes that are not UTF-8 are written as `\xff`."""
    return os.fsencode(str(path)).decode("utf-8", "backslashreplace")


def is_file(path: Path) -> bool:
    """Whether there is such a file; False also for a name that no file can have, such as one that is too long."""
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False


def is_visible(path: PurePath) -> bool:
    """Whether neither a file nor a folder above it is hidden.

    Args:
        path: The file, as it is called within the folder that the user named.
    """
    return not any(part.startswith(".") for part in path.parts)


def require_readable(paths: Sequence[Path]) -> None:
    """Refuse a path that is neither a file nor a folder: reading from a pipe might never end.

    Raises:
        UserError: If a path does not exist, or is a pipe or a device.
    """
    for path in paths:
        if not path.exists():
            raise UserError(f"image {printable(path)} does not exist")
        if not path.is_dir() and not path.is_file():
            raise UserError(f"image {printable(path)} is a pipe or a device; name a file or a folder")
