"""Rows of a data set that stays where it is: labels are read at once, images in blocks when they are needed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from torch import Tensor

from ..errors import UserError
from .block_files import BlockFiles
from .blocks import Blocks
from .dataset_images import dataset_loader, opened_image
from .disk_cache import DiskCache
from .images import ImageSet, rgb_tensor

__all__ = ["StreamLoader", "StreamedRows", "image_column", "row_name"]


@dataclass(frozen=True)
class StreamedRows:
    """What the readers of a `datasets.Dataset` ask of it, for rows that are not on this disk.

    Attributes:
        files: The files.
        cache: Holds the blocks of images that were needed last.
        buffer: Among as many images a random order mixes at a time.
        rows: Numbers of the rows that are meant; None for all.
    """

    files: BlockFiles
    cache: DiskCache
    buffer: int
    rows: np.ndarray | None = None

    @property
    def features(self) -> Any:
        """The columns, as `datasets` describes them."""
        return self.files.features

    @property
    def column_names(self) -> list[str]:
        """Names of the columns."""
        return list(self.files.features)

    def __len__(self) -> int:
        return sum(self.files.sizes) if self.rows is None else len(self.rows)

    def __getitem__(self, column: str) -> list[Any]:
        """The values of a column, without images."""
        values = self.files.column(column)
        return values if self.rows is None else [values[row] for row in self.rows]

    def select(self, indices: Sequence[int]) -> StreamedRows:
        """The rows with these indices."""
        kept = np.asarray(indices, dtype=np.int64)
        return replace(self, rows=kept if self.rows is None else self.rows[kept])

    def images(self, column: str, name: str, labels: tuple[int, ...] | None = None) -> ImageSet:
        """The images of a column.

        Args:
            column: The column.
            name: What to call them in errors.
            labels: Their labels, if any.
        """
        blocks = Blocks(self.files.sizes, self.buffer)
        load = StreamLoader(self.files, self.cache, column, name)
        whole = ImageSet(name, sum(self.files.sizes), load, blocks=blocks)
        kept = whole if self.rows is None else whole.subset(self.rows.tolist())
        return replace(kept, labels=labels)


def image_column(data: Any, column: str, name: str, labels: tuple[int, ...] | None = None) -> ImageSet:
    """The images of a column.

    Args:
        data: A `datasets.Dataset`, or streamed rows.
        column: The column.
        name: What to call the images in errors.
        labels: Their labels, if any.
    """
    if isinstance(data, StreamedRows):
        return data.images(column, name, labels)
    return ImageSet(name, len(data), dataset_loader(data, column, name), labels)


def row_name(data: Any, row: int) -> str:
    """What to call a row in errors.

    Args:
        data: A `datasets.Dataset`, or streamed rows.
        row: Its number.
    """
    if not isinstance(data, StreamedRows):
        return f"row {row}"
    return data.files.row_name(row if data.rows is None else int(data.rows[row]))


@dataclass(frozen=True)
class StreamLoader:
    """Serves the images of a column, of which whole blocks are read and kept on this disk for a while.

    Attributes:
        files: The files.
        cache: Holds the blocks.
        column: The column.
        name: What to call it in errors.
    """

    files: BlockFiles
    cache: DiskCache
    column: str
    name: str

    def __call__(self, index: int) -> Tensor:
        """The image with this index `(3, H, W)`, uint8."""
        block, row = self.files.place(index)
        path = self.cache.file(f"{self.files.key(block)} {self.column}", lambda part: self._write(block, part))
        value = _mapped(str(path))[row].as_py()
        try:
            if value is None:
                raise ValueError("there is none")
            with opened_image(value if isinstance(value, dict) else {"bytes": value, "path": None}) as image:
                return rgb_tensor(image)
        except Exception as error:  # damaged files make Pillow raise nearly anything
            where = f"{self.name}: {self.files.row_name(index)}, column {self.column}"
            raise UserError(f"{where}: unreadable image ({error})") from error

    def _write(self, block: int, part: Path) -> None:
        table = pa.table({self.column: self.files.read(block, self.column)}).combine_chunks()
        with pa.OSFile(str(part), "wb") as file, pa.ipc.new_file(file, table.schema) as writer:
            writer.write_table(table)


@lru_cache(maxsize=32)  # a block that is mapped takes its place on the disk even after it was removed
def _mapped(path: str) -> Any:
    """The only column of a block."""
    return pa.ipc.open_file(pa.memory_map(path)).read_all().column(0)
