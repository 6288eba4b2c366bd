"""Rows of a data set that stays where it is: labels are read at once, images in blocks when they are needed."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from itertools import accumulate
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
from torch import Tensor

from ..errors import UserError
from .blocks import Blocks
from .dataset_images import dataset_loader, opened_image
from .disk_cache import DiskCache
from .images import ImageSet, rgb_tensor

__all__ = ["StreamLoader", "StreamedRows", "image_column"]


class BlockFiles(Protocol):
    """Files whose rows are read in blocks."""

    @property
    def name(self) -> str:
        """Name of the domain, for errors."""

    @property
    def sizes(self) -> tuple[int, ...]:
        """Rows of each block, in order."""

    @property
    def features(self) -> Any:
        """The columns, as `datasets` describes them."""

    def key(self, block: int) -> str:
        """What tells a block from all others."""

    def read(self, block: int, column: str) -> Any:
        """A column of a block, an Arrow array."""

    def column(self, column: str) -> list[Any]:
        """A column of all blocks."""


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
    _ends: list[int] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_ends", list(accumulate(self.files.sizes)))

    def __call__(self, index: int) -> Tensor:
        """The image with this index `(3, H, W)`, uint8."""
        block = bisect_right(self._ends, index)
        path = self.cache.file(f"{self.files.key(block)} {self.column}", lambda part: self._write(block, part))
        value = _mapped(str(path))[index - (self._ends[block - 1] if block else 0)].as_py()
        try:
            with opened_image(value if isinstance(value, dict) else {"bytes": value, "path": None}) as image:
                return rgb_tensor(image)
        except Exception as error:  # damaged files make Pillow raise nearly anything
            raise UserError(f"{self.name}: row {index}, column {self.column}: unreadable image ({error})") from error

    def _write(self, block: int, part: Path) -> None:
        table = pa.table({self.column: self.files.read(block, self.column)}).combine_chunks()
        with pa.OSFile(str(part), "wb") as file, pa.ipc.new_file(file, table.schema) as writer:
            writer.write_table(table)


@lru_cache(maxsize=32)  # a block that is mapped takes its place on the disk even after it was removed
def _mapped(path: str) -> Any:
    """The only column of a block."""
    return pa.ipc.open_file(pa.memory_map(path)).read_all().column(0)
