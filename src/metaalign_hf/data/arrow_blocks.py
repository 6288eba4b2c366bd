"""Arrow files read by record batches: streams, which `datasets` writes, and files with a table at their end."""

from __future__ import annotations

import mmap
from functools import lru_cache
from typing import Any

import pyarrow as pa

from ..errors import UserError
from .arrow_messages import DICTIONARY, RECORDS, Message, messages, read_message
from .block_files import BlockFile, Numbered

__all__ = ["ArrowBlocks"]


class ArrowBlocks:
    """Record batches, called by the place where they begin. Of each only the buffers of a column are read."""

    def index(self, file: BlockFile) -> tuple[list[Numbered], pa.Schema]:
        """The batches of a file, and its columns; bodies are not read.

        Raises:
            UserError: If its dictionaries change, so that no batch can be read for itself.
        """
        found: list[Numbered] = []
        with file.opened() as source:
            for message in messages(source):
                if message.kind == RECORDS:
                    found.append((message.start, message.rows))
                elif message.kind == DICTIONARY and found:
                    raise UserError(
                        f"domain {file.domain}: {file.place} has dictionaries that change between its batches; save it "
                        "as parquet, or drop streaming"
                    )
            return found, _schema(file)

    def read(self, file: BlockFile, block: Numbered, column: str) -> Any:
        """A column of a batch."""
        with file.opened() as source:
            return _read(source, file, block[0], column)

    def column(self, file: BlockFile, column: str) -> list[Any]:
        """A column of a file."""
        with file.opened() as source:
            return [value for start, _ in file.blocks for value in _read(source, file, start, column).to_pylist()]

    def where(self, file: BlockFile, block: Numbered, row: int) -> str:
        """Empty: rows have no names."""
        return ""


@lru_cache(maxsize=1024)
def _prelude(file: BlockFile) -> bytes:
    """What comes before the first batch: the columns, and dictionaries."""
    found = b""
    with file.opened() as source:
        for message in messages(source):
            if message.kind == RECORDS:
                break
            source.seek(message.body)
            found += message.head + source.read(message.length)
        if not found:
            raise ValueError("it is empty")
    return found


def _schema(file: BlockFile) -> pa.Schema:
    return pa.ipc.open_stream(_prelude(file)).schema


def _read(source: Any, file: BlockFile, start: int, column: str) -> Any:
    """A column of the batch at a place."""
    message, schema, prelude = read_message(source, start), _schema(file), _prelude(file)
    if message is None or message.kind != RECORDS:
        raise ValueError("it has changed since it was listed")
    number = schema.get_field_index(column)
    first, end = _extent(message, schema, number)
    # A stream of one batch, in which what is not read of the body is empty: pages that no one touches take no memory.
    head = prelude + message.head
    made = mmap.mmap(-1, len(head) + message.length)
    made[: len(head)] = head
    source.seek(message.body + first)
    made[len(head) + first : len(head) + end] = source.read(end - first)
    options = pa.ipc.IpcReadOptions(included_fields=[number])
    batch = pa.ipc.open_stream(pa.py_buffer(made), options=options).read_next_batch()
    batch.validate(full=True)
    return batch.column(0)


def _extent(message: Message, schema: pa.Schema, number: int) -> tuple[int, int]:
    """Where in the body the buffers of a column begin and end; all of it where they are not as many as expected."""
    counts = [_buffers(field.type) for field in schema]
    if sum(counts) != len(message.buffers):
        return 0, message.length
    first = sum(counts[:number])
    own = message.buffers[first : first + counts[number]]
    return min((place for place, _ in own), default=0), max((place + length for place, length in own), default=0)


@lru_cache(maxsize=1024)
def _buffers(kind: pa.DataType) -> int:
    """How many buffers a column of a type has in a batch."""
    batch = pa.record_batch([pa.nulls(0, kind)], ["0"])
    message = read_message(pa.BufferReader(batch.serialize()), 0)
    assert message is not None
    return len(message.buffers)
