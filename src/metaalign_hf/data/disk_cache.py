"""A folder of this disk that holds what was read elsewhere, so that all processes here read it once."""

from __future__ import annotations

import errno
import hashlib
import os
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub.constants import HF_HOME

from ..errors import UserError

try:
    import fcntl
except ImportError:  # not a POSIX system: two processes may read the same block at once, and one of them wins
    fcntl = None  # type: ignore[assignment]

__all__ = ["DiskCache"]

_LOCKS = 61
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)


@dataclass(frozen=True)
class DiskCache:
    """Files by key; those that were not used for longest make room for others.

    Attributes:
        name: What is held; each name has a folder of its own in `HF_HOME/metaalign_hf`.
        most: Bytes that it may hold; None for no limit. The file that was asked for last is always kept.
    """

    name: str
    most: int | None = None

    @property
    def folder(self) -> Path:
        """Where the files are."""
        digest = hashlib.sha256(self.name.encode()).hexdigest()[:16]
        return Path(HF_HOME) / "metaalign_hf" / digest

    def holds(self, key: str) -> bool:
        """Whether there is a file of a key."""
        return self._path(key).exists()

    def _path(self, key: str) -> Path:
        return self.folder / hashlib.sha256(key.encode()).hexdigest()[:32]

    def file(self, key: str, write: Callable[[Path], None]) -> Path:
        """The file of a key, which is made if it is not there.

        Args:
            key: What tells it from all others.
            write: Writes it to a path.

        Raises:
            UserError: If this disk cannot take it.
        """
        path = self._path(key)
        digest = path.name
        if _touched(path):
            return path
        self.folder.mkdir(parents=True, exist_ok=True)
        with open(self.folder / f"lock-{int(digest, 16) % _LOCKS}", "wb") as lock:
            if fcntl is not None:
                with suppress(OSError):  # a file system without locks
                    fcntl.flock(lock, fcntl.LOCK_EX)
            if not _touched(path):
                part = path.with_name(f"{digest}.part-{os.getpid()}")
                try:
                    write(part)
                    os.replace(part, path)
                except OSError as error:
                    if error.errno not in _FULL:
                        raise
                    raise UserError(
                        f"{self.folder.parent} cannot be written to ({error.strerror}): make room there, or set "
                        "HF_HOME to a folder of another disk"
                    ) from error
                finally:
                    part.unlink(missing_ok=True)
                self._make_room(path)
        return path

    def _make_room(self, newest: Path) -> None:
        if self.most is None:
            return
        found = []
        for entry in os.scandir(self.folder):
            if not entry.name.startswith("lock-"):
                with suppress(FileNotFoundError):  # another process has just removed it
                    found.append((entry.stat().st_mtime_ns, entry.stat().st_size, entry.path))
        held = sum(size for _, size, _ in found)
        for _, size, path in sorted(found):
            if held <= self.most:
                return
            if path != str(newest) and ".part-" not in path:
                Path(path).unlink(missing_ok=True)
                held -= size


def _touched(path: Path) -> bool:
    """Whether the file is there; it then counts as used."""
    try:
        os.utime(path)
    except FileNotFoundError:
        return False
    return True
