"""Tars of the WebDataset kind, read by stretches of rows that lie next to each other."""

from __future__ import annotations

from typing import Any

import pyarrow as pa

from .block_files import BlockFile, Numbered
from .tar_contents import KEY, decoded, tar_contents

__all__ = ["TarBlocks"]

_MOST_ROWS = 256
_MOST_BYTES = 2**25
_FIRST = 5


class TarBlocks:
    """At most 256 rows and 32 MiB, called by the number of the first."""

    def index(self, file: BlockFile) -> tuple[list[Numbered], pa.Schema]:
        """The blocks of a tar, and its columns as `datasets` takes them: images, and texts by their endings.

        Raises:
            UserError: If it is damaged.
        """
        import datasets

        table = tar_contents(file)
        images = [name for name in table.column_names if pa.types.is_struct(table.schema.field(name).type)]
        texts = [name for name in table.column_names if name not in (KEY, *images)]
        first = table.slice(0, _FIRST)
        rows = [{name: self._text(file, row, name) for name in texts} for row in first.to_pylist()]
        inferred = datasets.Features.from_arrow_schema(pa.Table.from_pylist(rows).schema) if texts else {}
        features = datasets.Features({**dict.fromkeys(images, datasets.Image()), **inferred})
        return _cut(_span(table, images)), features.arrow_schema

    def read(self, file: BlockFile, block: Numbered, column: str) -> Any:
        """The images of a stretch of rows, read at once."""
        table = tar_contents(file).slice(*block)
        places = table[column].to_pylist()
        known = [place for place in places if place is not None]
        start = min((place["offset"] for place in known), default=0)
        end = max((place["offset"] + place["size"] for place in known), default=0)
        with file.opened() as source:
            source.seek(start)
            data = memoryview(source.read(end - start))
            if len(data) < end - start:
                raise ValueError("it has become shorter since it was listed")
        found = []
        for key, place in zip(table[KEY].to_pylist(), places, strict=True):
            if place is not None:
                at = place["offset"] - start
                place = {"bytes": bytes(data[at : at + place["size"]]), "path": f"{key}.{column}"}
            found.append(place)
        return pa.array(found, pa.struct({"bytes": pa.binary(), "path": pa.string()}))

    def column(self, file: BlockFile, column: str) -> list[Any]:
        """The texts of a tar."""
        return [self._text(file, row, column) for row in tar_contents(file).select([KEY, column]).to_pylist()]

    def where(self, file: BlockFile, block: Numbered, row: int) -> str:
        """Tar and key."""
        name = file.place.rpartition("/")[2]
        return f"{name}, {tar_contents(file)[KEY][block[0] + row].as_py()}"

    @staticmethod
    def _text(file: BlockFile, row: dict[str, Any], column: str) -> Any:
        return decoded(file, row[KEY], column, row[column])


def _span(table: pa.Table, images: list[str]) -> list[tuple[int, int]]:
    """Where the images of each row begin and end; of a row without any, where the one before ends."""
    found, last = [], 0
    for places in zip(*(table[name].to_pylist() for name in images), strict=True):
        own = [(place["offset"], place["offset"] + place["size"]) for place in places if place is not None]
        start, last = min((start for start, _ in own), default=last), max((end for _, end in own), default=last)
        found.append((start, last))
    return found


def _cut(spans: list[tuple[int, int]]) -> list[Numbered]:
    """Stretches of rows; it depends on the tar alone, for the order of a run does on the blocks."""
    blocks, first = [], 0
    for row in range(1, len(spans) + 1):
        if row == len(spans) or row - first == _MOST_ROWS or spans[row][1] - spans[first][0] > _MOST_BYTES:
            blocks.append((first, row - first))
            first = row
    return blocks
