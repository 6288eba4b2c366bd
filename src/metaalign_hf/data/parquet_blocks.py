"""Parquet files read by row groups, wherever they are."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from ..errors import UserError
from ..progress import track
from .addresses import is_address, open_place, told_remote_errors

__all__ = ["ParquetBlocks", "index_parquet"]

_THREADS = 16


@dataclass(frozen=True)
class ParquetBlocks:
    """The row groups of some files.

    Attributes:
        name: Name of the domain, for errors.
        files: Paths or addresses of the files.
        versions: What tells each from what it may become.
        sizes: Rows of each row group.
        places: The number of its file, and its number in there.
        features: The columns, as `datasets` describes them.
    """

    name: str
    files: tuple[str, ...]
    versions: tuple[str, ...]
    sizes: tuple[int, ...]
    places: tuple[tuple[int, int], ...]
    features: Any

    def key(self, block: int) -> str:
        """What tells a block from all others."""
        file, group = self.places[block]
        return f"{self.files[file]} {self.versions[file]} {group}"

    def read(self, block: int, column: str) -> Any:
        """A column of a block, an Arrow array."""
        file, group = self.places[block]
        return _opened(self.files[file], self.name, lambda opened: opened.read_row_group(group, [column]))[column]

    def column(self, column: str) -> list[Any]:
        """A column of all blocks."""
        read = partial(_column, column, self.name)
        with ThreadPoolExecutor(_THREADS) as pool:
            found = track(pool.map(read, self.files), f"reading {column} of {self.name}", len(self.files), "files")
            return [value for values in found for value in values]


def index_parquet(files: Sequence[str], features: Any, name: str) -> ParquetBlocks:
    """The row groups of some files; of each only its end is read.

    Args:
        files: Paths or addresses.
        features: The columns, where somebody knows them; else the first file says what they are.
        name: Name of the domain, for errors.

    Raises:
        UserError: If a file cannot be read, or has other columns than the first.
    """
    import datasets

    with ThreadPoolExecutor(_THREADS) as pool:
        seen = list(track(pool.map(partial(_footer, name), files), f"listing {name}", len(files), "files"))
    schema = seen[0][2]
    for file, (_, _, other) in zip(files, seen, strict=True):
        if missing := [column for column in schema.names if column not in other.names]:
            raise UserError(f"domain {name}: {file} has no column {missing[0]!r}, which {files[0]} has")
    return ParquetBlocks(
        name,
        tuple(files),
        tuple(version for version, _, _ in seen),
        tuple(rows for _, groups, _ in seen for rows in groups if rows),
        tuple((n, group) for n, (_, groups, _) in enumerate(seen) for group, rows in enumerate(groups) if rows),
        features or datasets.Features.from_arrow_schema(schema),
    )


def _footer(name: str, file: str) -> tuple[str, list[int], pa.Schema]:
    """Version, rows of the row groups and columns of a file."""
    fs, inner = open_place(file, name)
    with told_remote_errors(file, name):
        version = f"{fs.ukey(inner)} {fs.size(inner)}"

    def look(opened: pq.ParquetFile) -> tuple[list[int], pa.Schema]:
        found = opened.metadata
        return [found.row_group(group).num_rows for group in range(found.num_row_groups)], opened.schema_arrow

    return version, *_opened(file, name, look)


def _column(column: str, name: str, file: str) -> list[Any]:
    found: list[Any] = _opened(file, name, lambda opened: opened.read([column]))[column].to_pylist()
    return found


def _opened(file: str, name: str, use: Any) -> Any:
    """What `use` makes of an opened file."""
    fs, inner = open_place(file, name)
    # Nothing is read ahead: Arrow asks for what it needs, and for all of it at once.
    options = {"cache_type": "none"} if is_address(file) else {}
    with (
        told_remote_errors(file, name),
        fs.open(inner, "rb", **options) as source,
        pq.ParquetFile(source, pre_buffer=True) as opened,
    ):
        return use(opened)
