"""Files and folders at addresses that fsspec opens, as readers use those of this disk.

A folder is listed once; a file is fetched when it is first opened, and kept on this disk.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import partial, total_ordering
from pathlib import Path
from typing import cast
from urllib.parse import unquote

from ..errors import UserError
from ..progress import track
from .addresses import is_address, open_place
from .disk_cache import DiskCache
from .remote_tree import RemoteTree

__all__ = ["KEPT", "RemotePath", "absent", "fetch_all", "place_of"]

KEPT = DiskCache("remote files")
"""What was fetched."""
_THREADS = 16
_LEAVES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".gif", ".json", ".txt", ".xml", ".yaml", ".yml")


def place_of(path: str, name: str) -> Path:
    """The file or folder at a path on this disk or an address; of an address what readers use of a `Path`.

    Args:
        path: The path or address.
        name: Name of the domain, for errors.

    Raises:
        UserError: If nothing installed reads such an address.
    """
    if not is_address(path):
        return Path(path).expanduser()
    fs, inner = open_place(path, name)
    if path.startswith("file://") and "::" not in path:
        return Path(inner)  # so that links are looked at
    own, chained, rest = path.partition("::")
    whole, shown = own.rstrip("/"), inner.strip("/")
    # As the user wrote it: some file systems forget their host.
    prefix = whole.removesuffix(shown) if whole.endswith(shown) else fs.unstrip_protocol(inner).removesuffix(inner)
    web = inner.startswith(("http://", "https://"))
    inner = (unquote(inner) if web else inner).rstrip("/")
    return cast(Path, RemotePath(RemoteTree(path, name, prefix, chained + rest, web), inner))


def absent(folder: Path) -> str:
    """What is wrong with a folder in which nothing is found; a web server need not list any."""
    web = isinstance(folder, RemotePath) and folder.tree.web
    return f"the folder {folder} does not exist" + (", or its server does not list it" if web else "")


def fetch_all(paths: Sequence[Path], title: str) -> None:
    """Fetch files at addresses, many at a time, before they are read one by one; what fails is told then.

    Args:
        paths: The files; those of this disk need nothing.
        title: What is done.
    """

    def fetch(path: Path) -> None:
        with suppress(UserError):
            os.fspath(path)

    if paths and isinstance(paths[0], RemotePath):
        with ThreadPoolExecutor(_THREADS) as pool:
            for _ in track(pool.map(fetch, paths), title, len(paths), "files"):
                pass


@total_ordering
@dataclass(frozen=True, eq=False)
class RemotePath:
    """A file or folder at an address: what readers use of a `pathlib.Path`, under the same names.

    Attributes:
        tree: What is known of its file system.
        inner: What that calls it.
    """

    tree: RemoteTree
    inner: str

    def __str__(self) -> str:
        return self.tree.text(self.inner)

    def __repr__(self) -> str:
        return f"RemotePath({str(self)!r})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, RemotePath) and str(self) == str(other)

    def __hash__(self) -> int:
        return hash(str(self))

    def __lt__(self, other: RemotePath) -> bool:
        return self.parts < other.parts

    def __truediv__(self, below: str) -> RemotePath:
        if below.startswith("/"):
            return RemotePath(self.tree, below)
        parts = self.inner.split("/") if self.inner else []
        for part in below.split("/"):
            if part == "..":
                parts.pop() if len(parts) > 1 else None
            elif part not in ("", "."):
                parts.append(part)
        return RemotePath(self.tree, "/".join(parts))

    @property
    def parts(self) -> tuple[str, ...]:
        """What lies between its slashes."""
        return tuple(self.inner.split("/"))

    @property
    def name(self) -> str:
        """Its last part."""
        return self.inner.rpartition("/")[2]

    @property
    def suffix(self) -> str:
        """The ending of its name, with the dot."""
        return Path(self.name).suffix

    @property
    def stem(self) -> str:
        """Its name without the ending."""
        return Path(self.name).stem

    @property
    def parent(self) -> RemotePath:
        """The folder that it is in."""
        return RemotePath(self.tree, self.inner.rpartition("/")[0])

    @property
    def version(self) -> str:
        """What tells the file from what it may become; empty where nobody says."""
        return self.tree.version(self.inner)

    @property
    def size(self) -> int:
        """Bytes of the file; 0 where nobody says."""
        _, known, size = self.version.rpartition("size=")
        return int(size) if known else 0

    @property
    def is_kept(self) -> bool:
        """Whether a copy is on this disk already."""
        return KEPT.holds(self._key)

    @property
    def _key(self) -> str:
        return f"{self} {self.version}"

    def with_suffix(self, suffix: str) -> RemotePath:
        """The same with another ending."""
        return self.parent / Path(self.name).with_suffix(suffix).name

    def relative_to(self, folder: RemotePath) -> Path:
        """What it is called within a folder."""
        return Path(self.inner).relative_to(folder.inner)

    def absolute(self) -> RemotePath:
        """Itself."""
        return self

    def is_below(self, folder: RemotePath) -> bool:
        """Whether it is the folder, or in it."""
        root = f"{folder.inner.rstrip('/')}/" if folder.inner else ""
        return self.tree is folder.tree and f"{self.inner}/".startswith(root)

    def exists(self) -> bool:
        """Whether it is a file or a folder."""
        return self.is_dir() or self.is_file()

    def is_symlink(self) -> bool:
        """False: links are not looked for."""
        return False

    def is_file(self) -> bool:
        """Whether it is a file, as far as somebody lists its folder."""
        found = self.parent.entries()
        return found.get(self.name) is not None if found or not self.tree.web else bool(self.suffix)

    def is_dir(self) -> bool:
        """Whether it is a folder that holds something."""
        above = self.tree.listed.get(self.parent.inner)
        if above and self.name in above:
            return above[self.name] is None
        leaf = self.tree.web and self.name.lower().endswith(_LEAVES)  # asking would fetch it
        return not leaf and bool(self.entries())

    def entries(self) -> dict[str, str | None]:
        """Names in the folder, with the version of each file and None for each folder."""
        return self.tree.entries(self.inner)

    def search(self) -> None:
        """List all folders below at once."""
        self.tree.search(self.inner)

    def iterdir(self) -> Iterator[RemotePath]:
        """What the folder holds."""
        return (self / name for name in self.entries())

    def rglob(self, pattern: str) -> Iterator[RemotePath]:
        """All files and folders below; the pattern is `*`."""
        self.search()
        for path in self.iterdir():
            yield path
            if path.is_dir():
                yield from path.rglob(pattern)

    def read_bytes(self) -> bytes:
        """Of a text that may have changed unnoticed no copy is kept."""
        known = not self.version.startswith("size") and self.version
        return Path(self).read_bytes() if known else self.tree.content(self.inner)

    def __fspath__(self) -> str:
        """The copy on this disk."""
        return str(KEPT.file(self._key, partial(_copy, self.tree, self.inner)))


def _copy(tree: RemoteTree, inner: str, part: Path) -> None:
    part.write_bytes(tree.content(inner))
