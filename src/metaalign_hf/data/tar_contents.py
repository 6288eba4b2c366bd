"""What is in a tar of the WebDataset kind: read through once, and kept as a table on this disk.

A tar has no table of contents: its members lie one after another, each after its head. Members that stand next to each
other and have the same name up to its first dot are the columns of a row, named after what follows the dot.
"""

from __future__ import annotations

import tarfile
from collections.abc import Callable, Iterator
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import pyarrow as pa

from ..errors import UserError
from .block_files import BlockFile
from .disk_cache import DiskCache

__all__ = ["KEY", "decoded", "tar_contents"]

KEY = "__key__"
_TEXTS = ("txt", "text", "transcript", "cls", "cls2", "index", "inx", "id", "json", "jsn")
"""Endings of members that are kept in the table; images are where they are, and others are not read."""
_IMAGE = pa.struct({"offset": pa.int64(), "size": pa.int64()})
_ENOUGH = 2**22


def tar_contents(file: BlockFile) -> pa.Table:
    """A row for each row of a tar: its key, the place and length of each image, and the bytes of texts.

    Raises:
        UserError: If the tar is damaged, or is not of this kind.
    """
    cache = DiskCache("contents of tar files")
    return _mapped(str(cache.file(f"{file.place} {file.version}", partial(_write, file))))


@lru_cache(maxsize=1024)
def _mapped(path: str) -> pa.Table:
    return pa.ipc.open_file(pa.memory_map(path)).read_all()


def _write(file: BlockFile, part: Path) -> None:
    with file.opened(cache_type="readahead", block_size=_ENOUGH) as source:
        rows = list(_rows(source, file))
    fields = dict.fromkeys(field for row in rows for field in row if field != KEY)
    if not any(_is_image(field) for field in fields):
        raise UserError(f"domain {file.domain}: {file.place} holds no images as NAME.jpg, NAME.png or the like")
    kinds = {field: _IMAGE if _is_image(field) else pa.binary() for field in fields}
    columns = {field: pa.array([row.get(field) for row in rows], kind) for field, kind in kinds.items()}
    table = pa.table({KEY: pa.array([row[KEY] for row in rows], pa.string()), **columns})
    with pa.OSFile(str(part), "wb") as out, pa.ipc.new_file(out, table.schema) as writer:
        writer.write_table(table)


def _rows(source: Any, file: BlockFile) -> Iterator[dict[str, Any]]:
    from datasets.packaged_modules.webdataset.webdataset import base_plus_ext

    row: dict[str, Any] = {}
    for name, place, content in _members(source, file):
        key, field = base_plus_ext(name)
        if key is None:
            continue
        if row and row[KEY] != key:
            yield row
            row = {}
        if field in row:
            raise UserError(f"domain {file.domain}: {file.place} has two members {name}")
        row[KEY] = key
        if _is_image(field):
            row[field] = place
        elif field.rpartition(".")[2].lower() in _TEXTS:
            row[field] = content()
    if row:
        yield row


def _members(source: Any, file: BlockFile) -> Iterator[tuple[str, dict[str, int], Callable[[], bytes]]]:
    """Name, place and content of each file in a tar, without hidden ones."""
    last = ""
    try:
        with tarfile.open(fileobj=source, mode="r:") as tar:
            while (member := tar.next()) is not None:
                if member.isreg() and not member.name.rpartition("/")[2].startswith((".", "__")):
                    place = {"offset": member.offset_data, "size": member.size}
                    yield member.name, place, partial(_content, tar, member)
                tar.members = []  # type: ignore[attr-defined]  # else all of them stay in memory
                last = member.name
            # For `tarfile` a damaged head is the end.
            source.seek(tar.offset)
            end = source.read(tarfile.BLOCKSIZE)
    except tarfile.TarError as error:
        plain = "; streaming wants tars that are not compressed" if not last else ""
        where = f"after {last}" if last else "at its beginning"
        raise UserError(f"domain {file.domain}: {file.place} is no sound tar {where}: {error}{plain}") from error
    if end != bytes(tarfile.BLOCKSIZE):
        what = "is damaged" if len(end) == tarfile.BLOCKSIZE else "is cut short"
        raise UserError(f"domain {file.domain}: {file.place} {what} after {last}; make or copy it anew")


def _content(tar: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    opened = tar.extractfile(member)
    assert opened is not None
    return opened.read()


def _is_image(field: str) -> bool:
    from datasets.packaged_modules.webdataset.webdataset import WebDataset

    return field.rpartition(".")[2].lower() in WebDataset.IMAGE_EXTENSIONS


def decoded(file: BlockFile, key: str, field: str, content: bytes | None) -> Any:
    """The value of a text.

    Args:
        file: The tar.
        key: The row.
        field: The column.
        content: Its bytes; None where the row has none.

    Raises:
        UserError: If it is not what its ending says.
    """
    from datasets.packaged_modules.webdataset.webdataset import WebDataset

    ending = field.rpartition(".")[2].lower()
    try:
        return None if content is None else WebDataset.DECODERS[ending](content)
    except ValueError as error:
        advice = "; names of classes belong in members NAME.txt, with label_column: txt" if ending == "cls" else ""
        raise UserError(
            f"domain {file.domain}: {file.place}: {key}.{field} cannot be read as {ending} ({error}){advice}"
        ) from error
