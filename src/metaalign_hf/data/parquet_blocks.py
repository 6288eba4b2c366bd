"""Parquet files read by row groups."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from .block_files import BlockFile, Numbered

__all__ = ["ParquetBlocks"]


class ParquetBlocks:
    """Row groups, which the end of a file lists."""

    def index(self, file: BlockFile) -> tuple[list[Numbered], pa.Schema]:
        """The row groups of a file, and its columns; only its end is read."""
        with _opened(file) as opened:
            found = opened.metadata
            groups = [(group, found.row_group(group).num_rows) for group in range(found.num_row_groups)]
            return groups, opened.schema_arrow

    def read(self, file: BlockFile, block: Numbered, column: str) -> Any:
        """A column of a row group."""
        with _opened(file) as opened:
            return opened.read_row_group(block[0], [column])[column]

    def column(self, file: BlockFile, column: str) -> list[Any]:
        """A column of a file."""
        with _opened(file) as opened:
            found: list[Any] = opened.read([column])[column].to_pylist()
            return found

    def where(self, file: BlockFile, block: Numbered, row: int) -> str:
        """Empty: rows have no names."""
        return ""


@contextmanager
def _opened(file: BlockFile) -> Iterator[pq.ParquetFile]:
    # Arrow asks for what it needs, and for all of it at once.
    with file.opened() as source, pq.ParquetFile(source, pre_buffer=True) as opened:
        yield opened
