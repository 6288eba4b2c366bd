"""Writing to a disk that may be full, read-only or missing."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from .errors import UserError

__all__ = ["disk_reason", "flush_to_disk", "refuse_unwritable", "told_disk_errors", "write_whole", "writing"]


@contextmanager
def told_disk_errors(where: Path, advice: Callable[[], str]) -> Iterator[None]:
    """Report a disk error in one line.

    Args:
        where: What was being written; named where the error itself names no file.
        advice: What to do about it, asked for when it happened; may return an empty text.

    Raises:
        UserError: In the place of an error of the operating system, or one that safetensors passes on.
    """
    try:
        yield
    except (OSError, SafetensorError) as error:
        if (reason := disk_reason(error)) is None:
            raise
        path = getattr(error, "filename", None) or where
        raise UserError(f"{path} cannot be written or read ({reason}){advice()}") from error


def refuse_unwritable(folder: Path, key: str) -> None:
    """Refuse a folder that cannot be made or written to, as far as that is known without trying.

    Args:
        folder: The folder; it need not exist.
        key: What named it, for the error.

    Raises:
        UserError: If a part of its path is a file, too long, or may not be written to.
    """
    try:
        parent = next(path for path in (folder.absolute(), *folder.absolute().parents) if os.path.lexists(path))
        if folder.exists() and not folder.is_dir():
            raise UserError(f"{key}: {folder} is a file, not a folder")
        if not parent.is_dir():
            raise UserError(f"{key}: {folder} cannot be made, because {parent} is not a folder")
        if not os.access(parent, os.W_OK | os.X_OK):
            raise UserError(f"{key}: {folder} cannot be written: {parent} is read-only for you; choose another folder")
        os.stat(folder)
    except FileNotFoundError:
        pass  # it will be made
    except OSError as error:
        raise UserError(f"{key}: {folder} cannot be used ({error.strerror})") from error


def write_whole(path: Path, text: str) -> None:
    """Write a text such that the file is there whole or not at all, whatever happens to the process or the machine."""
    partial = path.with_name(f"{path.name}.partial")
    try:
        partial.write_text(text, encoding="utf-8")
        flush_to_disk(partial)
        partial.replace(path)
        flush_to_disk(path.parent)
    except OSError:
        partial.unlink(missing_ok=True)
        raise


def flush_to_disk(path: Path) -> None:
    """Wait until the content of a file, or the names in a folder, are on the disk and not in memory alone.

    Args:
        path: The file or folder.
    """
    if path.is_dir() and os.name == "nt":  # which cannot open folders
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        # Some file systems cannot; what they say of a full or broken disk counts.
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.EBADF):
            raise
    finally:
        os.close(descriptor)


def disk_reason(error: Exception) -> str | None:
    """What the operating system said, in an `OSError` or one of safetensors; None for another error."""
    if isinstance(error, ConnectionError):
        return None
    if isinstance(error, OSError):
        # The Hub's client and transformers raise OSErrors of their own, without a number.
        return None if error.errno is None else os.strerror(error.errno)
    found = re.search(r"\(os error (\d+)\)", str(error))
    return None if found is None else os.strerror(int(found.group(1)))


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Report a full or read-only disk in one line.

    Raises:
        UserError: In place of an `OSError`, or what safetensors makes of one.
    """
    try:
        yield
    except (OSError, SafetensorError) as error:
        if (reason := disk_reason(error)) is None:
            raise
        raise UserError(f"{path} cannot be written: {reason}") from error
