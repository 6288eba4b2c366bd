"""Files and folders at addresses that fsspec opens, such as `hf://`, `s3://` and `https://`."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import PurePosixPath
from typing import Any

from ..errors import UserError, one_line
from ..paths import is_visible

__all__ = ["files_at", "is_address", "open_place", "told_remote_errors"]

_HTTP = ("http", "https")
_EXTRA = (*_HTTP, "s3", "s3a", "gs", "gcs")
"""What the extra `remote` reads."""


def is_address(path: str) -> bool:
    """Whether a path is an address rather than a place on this disk."""
    return "://" in path


def open_place(path: str, name: str) -> tuple[Any, str]:
    """The file system of a path, and what it calls the path.

    Credentials are those that the file system finds by itself, such as the token of `hf auth login`.

    Args:
        path: A path on this disk, or an address; `zip://FOLDER::ADDRESS` looks into an archive.
        name: Name of the domain, for errors.

    Raises:
        UserError: If nothing installed reads such an address, or it is not well formed.
    """
    import fsspec

    try:
        return fsspec.core.url_to_fs(path)
    except ImportError as error:
        raise UserError(f"domain {name}: {_needed(path, error)}") from error
    except ValueError as error:
        raise UserError(f"domain {name}: {path}: {one_line(error)}; known: hf, https, s3, gs, zip, ...") from error
    except Exception as error:  # what a file system says of an address that it does not take
        raise UserError(f"domain {name}: {path} cannot be read: {one_line(error)[:300]}") from error


def _needed(path: str, error: ImportError) -> str:
    """Which package reads an address, where one is missing; `zip://FOLDER::s3://FILE` needs those of both."""
    from fsspec.registry import get_filesystem_class, known_implementations

    for place in path.split("::"):
        protocol, found, _ = place.partition("://")
        try:
            get_filesystem_class(protocol if found else "file")
        except ImportError:
            module = known_implementations.get(protocol, {}).get("class", "").partition(".")[0]
            package = "metaalign-hf[remote]" if protocol in _EXTRA else module
            advice = one_line(error) if package == "fsspec" else f"pip install '{package}'"
            return f"to read {protocol}:// another package is needed: {advice}"
        except ValueError:
            continue
    return f"{path} cannot be read: {one_line(error)}"


@contextmanager
def told_remote_errors(path: str, name: str) -> Iterator[None]:
    """Report what goes wrong at an address in one line.

    Args:
        path: The address.
        name: Name of the domain.

    Raises:
        UserError: In place of any other error.
    """
    try:
        yield
    except UserError:
        raise
    except FileNotFoundError as error:
        raise UserError(f"domain {name}: {path} does not exist") from error
    except Exception as error:  # every file system has errors of its own
        if _is_refused(error):
            raise UserError(
                f"domain {name}: no permission to read {path} ({one_line(error)[:200]}); log in as its store wants "
                "(hf auth login, ...)"
            ) from error
        raise UserError(f"domain {name}: {path} cannot be read: {one_line(error)[:300]}") from error


def _is_refused(error: BaseException | None) -> bool:
    """Whether it, or what caused it, is about permission."""
    while error is not None:
        status = getattr(getattr(error, "response", None), "status_code", getattr(error, "status", None))
        if isinstance(error, PermissionError) or status in (401, 403) or "Credentials" in type(error).__name__:
            return True
        error = error.__cause__
    return False


def files_at(path: str, endings: tuple[str, ...], name: str) -> list[str]:
    """The files that a path stands for, sorted, each as an address of its own.

    Args:
        path: A file, a folder, whose files with these endings are meant, or a pattern.
        endings: Endings of files, in lower case.
        name: Name of the domain, for errors.

    Raises:
        UserError: If there is none.
    """
    place = path if is_address(path) else os.path.expanduser(path)
    fs, inner = open_place(place, name)
    _, chained, rest = path.partition("::")
    with told_remote_errors(path, name):
        if any(sign in inner for sign in "*?["):
            found = fs.glob(inner)
        elif path.startswith(_HTTP):  # such a server has no folders, and asking would fetch the file
            return [path]
        elif fs.isdir(inner):
            found = [file for file in fs.find(inner) if file.lower().endswith(endings)]
        elif fs.exists(inner):
            return [place]
        else:
            found = []
    if not found:
        what = "does not exist" if not fs.exists(inner) else f"holds no file ending in {' or '.join(endings)}"
        raise UserError(f"domain {name}: {path} {what}")
    # Of a pattern, what comes before its first sign is what the user named.
    folder = re.split(r"[*?[]", inner)[0].rpartition("/")[0] if any(sign in inner for sign in "*?[") else inner
    visible = (file for file in sorted(found) if is_visible(PurePosixPath(file[len(folder) :].lstrip("/"))))
    return [(fs.unstrip_protocol(file) if is_address(path) else file) + chained + rest for file in visible]
