"""Paths of very many files in little memory."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast, overload

from .remote_path import RemotePath

__all__ = ["PathList", "Places", "picked"]


@dataclass(frozen=True)
class PathList(Sequence[Path]):
    """Paths, each made when it is asked for: a million Path objects take seconds to make, and 400 MB.

    Attributes:
        root: The folder that names start from, on this disk or at an address.
        names: The files; an absolute one stays as it is.
    """

    root: str | RemotePath
    names: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.names)

    @overload
    def __getitem__(self, index: int) -> Path: ...
    @overload
    def __getitem__(self, index: slice) -> PathList: ...
    def __getitem__(self, index: int | slice) -> Path | PathList:
        if isinstance(index, slice):
            return PathList(self.root, self.names[index])
        return self.place(self.names[index])

    def place(self, name: str) -> Path:
        """The path of a name."""
        return Path(self.root, name) if isinstance(self.root, str) else cast(Path, self.root / name)

    def __iter__(self) -> Iterator[Path]:
        return map(self.place, self.names)

    def pick(self, indices: Sequence[int]) -> PathList:
        """The paths with these indices."""
        return PathList(self.root, tuple(self.names[index] for index in indices))


@dataclass(frozen=True)
class Places(Sequence[str]):
    """Where each path stands in a list file, for errors.

    Attributes:
        file: The list.
        lines: Number of the line of each, from 1.
    """

    file: str
    lines: Sequence[int]

    def __len__(self) -> int:
        return len(self.lines)

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> Places: ...
    def __getitem__(self, index: int | slice) -> str | Places:
        if isinstance(index, slice):
            return Places(self.file, self.lines[index])
        return f"{self.file}, line {self.lines[index]}"


def picked(paths: Sequence[Path], indices: Sequence[int]) -> Sequence[Path]:
    """The paths with these indices, kept as small as they were."""
    return paths.pick(indices) if isinstance(paths, PathList) else tuple(paths[index] for index in indices)
