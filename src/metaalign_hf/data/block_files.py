"""Files whose rows are read in blocks, wherever they are; how a block is found in one, its format says."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate, chain
from typing import Any, Protocol

import pyarrow as pa

from ..errors import UserError
from ..progress import track
from .addresses import is_address, open_place, told_remote_errors

__all__ = ["BlockFile", "BlockFiles", "BlockFormat", "Numbered", "index_files"]

_THREADS = 16

Numbered = tuple[int, int]
"""What a format calls a block of a file, and how many rows it has."""


@dataclass(frozen=True)
class BlockFile:
    """A file.

    Attributes:
        place: Its path or address.
        domain: Name of the domain, for errors.
        version: What tells it from what it may become.
        blocks: Its blocks that have rows.
    """

    place: str
    domain: str
    version: str = ""
    blocks: tuple[Numbered, ...] = ()

    @contextmanager
    def opened(self, **options: Any) -> Iterator[Any]:
        """The file, opened; what goes wrong with it is told in one line.

        Args:
            options: How an address is read ahead; by default it is not: a format asks for what it needs, at once.
        """
        fs, inner = open_place(self.place, self.domain)
        ahead = (options or {"cache_type": "none"}) if is_address(self.place) else {}
        with told_remote_errors(self.place, self.domain), fs.open(inner, "rb", **ahead) as source:
            yield source


class BlockFormat(Protocol):
    """A format of files, such as parquet."""

    def index(self, file: BlockFile) -> tuple[list[Numbered], pa.Schema]:
        """The blocks of a file, and its columns."""

    def read(self, file: BlockFile, block: Numbered, column: str) -> Any:
        """A column of a block, an Arrow array."""

    def column(self, file: BlockFile, column: str) -> list[Any]:
        """A column of all blocks of a file; not one of images."""

    def where(self, file: BlockFile, block: Numbered, row: int) -> str:
        """What a row of a block is called, where it has a name of its own; else empty."""


@dataclass(frozen=True)
class BlockFiles:
    """The rows of some files of one format.

    Attributes:
        name: Name of the domain, for errors.
        format: Reads the files.
        files: The files.
        features: The columns, as `datasets` describes them.
    """

    name: str
    format: BlockFormat
    files: tuple[BlockFile, ...]
    features: Any

    @cached_property
    def _blocks(self) -> list[tuple[BlockFile, Numbered]]:
        return [(file, block) for file in self.files for block in file.blocks]

    @cached_property
    def sizes(self) -> tuple[int, ...]:
        """Rows of each block, in order."""
        return tuple(rows for _, (_, rows) in self._blocks)

    @cached_property
    def _ends(self) -> list[int]:
        return list(accumulate(self.sizes))

    def key(self, block: int) -> str:
        """What tells a block from all others."""
        file, (number, _) = self._blocks[block]
        return f"{file.place} {file.version} {number}"

    def read(self, block: int, column: str) -> Any:
        """A column of a block, an Arrow array."""
        return self.format.read(*self._blocks[block], column)

    def column(self, column: str) -> list[Any]:
        """A column of all blocks."""
        with ThreadPoolExecutor(_THREADS) as pool:
            found = pool.map(lambda file: self.format.column(file, column), self.files)
            shown = track(found, f"reading {column} of {self.name}", len(self.files), "files")
            return list(chain.from_iterable(shown))

    def place(self, row: int) -> tuple[int, int]:
        """The block of a row, and its number in there."""
        block = bisect_right(self._ends, row)
        return block, row - (self._ends[block - 1] if block else 0)

    def row_name(self, row: int) -> str:
        """What to call a row in errors."""
        block, number = self.place(row)
        own = self.format.where(*self._blocks[block], number)
        return f"row {row} ({own})" if own else f"row {row}"


def index_files(places: Sequence[str], reader: BlockFormat, features: Any, name: str) -> BlockFiles:
    """The blocks of some files.

    Args:
        places: Paths or addresses.
        reader: Their format.
        features: The columns, where somebody knows them; else the first file says what they are.
        name: Name of the domain, for errors.

    Raises:
        UserError: If a file cannot be read, or lacks a column that the first has.
    """
    import datasets

    def look(place: str) -> tuple[BlockFile, pa.Schema]:
        fs, inner = open_place(place, name)
        with told_remote_errors(place, name):
            file = BlockFile(place, name, f"{fs.ukey(inner)} {fs.size(inner)}")
            blocks, schema = reader.index(file)
        return BlockFile(place, name, file.version, tuple(block for block in blocks if block[1])), schema

    with ThreadPoolExecutor(_THREADS) as pool:
        seen = list(track(pool.map(look, places), f"listing {name}", len(places), "files"))
    columns = seen[0][1].names
    for file, schema in seen:
        if missing := [column for column in columns if column not in schema.names]:
            raise UserError(f"domain {name}: {file.place} has no column {missing[0]!r}, which {places[0]} has")
    known = features or datasets.Features.from_arrow_schema(seen[0][1])
    return BlockFiles(name, reader, tuple(file for file, _ in seen), known)
