"""One writer per run folder: a lock that names the other process, and dies with it."""

from __future__ import annotations

import json
import os
import socket
import sys
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Any

from .errors import UserError
from .paths import is_file
from .run_folder import LOCK_FILE

try:
    import fcntl
except ImportError:  # not a POSIX system: there is no lock that dies with its process
    fcntl = None  # type: ignore[assignment]

__all__ = ["RunLock", "running"]


class RunLock:
    """Keeps other processes out of a run's folder while this one lives.

    It is a record lock of the operating system on a file: whatever ends the process ends the lock, and a child process,
    such as a data worker that outlives it by some seconds, does not inherit it. The file says who holds it. A folder
    that was made for the lock, and in which nothing else was written, is removed with it.

    Args:
        folder: The run's folder; it is made if it does not exist.
        key: What named it, for the error.

    Raises:
        UserError: If another process has the lock.
    """

    def __init__(self, folder: Path, key: str) -> None:
        self.path = folder / LOCK_FILE
        self._made = [path for path in (folder, *folder.parents) if not path.exists()]
        self._file: int | None = None
        folder.mkdir(parents=True, exist_ok=True)
        if fcntl is None:
            return
        while self._file is None:
            descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o644)
            try:
                fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                os.close(descriptor)
                if isinstance(error, BlockingIOError | PermissionError):
                    raise UserError(f"{key}: {folder} is being written by {_holder(self.path)}; {_ADVICE}") from None
                return  # a file system without locks
            if _is_still(self.path, descriptor):
                self._file = descriptor
            else:  # its holder has just removed it
                os.close(descriptor)
        with suppress(OSError):  # a full disk: the lock holds all the same, but does not say whose it is
            os.ftruncate(self._file, 0)
            os.write(self._file, json.dumps(_this_process()).encode())

    def release(self) -> None:
        """Let others write; may be called twice."""
        if self._file is not None:
            self.path.unlink(missing_ok=True)
            os.close(self._file)
            self._file = None
        for folder in self._made:
            with suppress(OSError):  # it is used
                folder.rmdir()
        self._made = []


_ADVICE = "wait for it, end it, or choose another folder"


def running(folder: Path) -> str | None:
    """Who writes a run's folder now, in words; None where nobody does."""
    path = folder / LOCK_FILE
    if fcntl is None or not is_file(path):
        return None
    try:
        with path.open("r+b") as file:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        return _holder(path)
    except OSError:
        pass
    return None


def _is_still(path: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(path.stat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def _this_process() -> dict[str, Any]:
    return {
        "pid": os.getpid(),
        "host": socket.gethostname(),
        "since": datetime.now().astimezone().isoformat(timespec="seconds"),
        "command": sys.argv,
    }


def _holder(path: Path) -> str:
    try:
        found = json.loads(path.read_text())
        return f"process {found['pid']} on {found['host']}, since {found['since']}"
    except (OSError, ValueError, KeyError, TypeError):  # it has not written yet
        return "another process"
