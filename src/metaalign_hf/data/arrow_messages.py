"""The messages of an Arrow stream without their bodies: where each lies, and what is in it.

Arrow reads a message only as a whole, images and all. What has to be known of it is in its head, a flatbuffer of a few
fields: https://arrow.apache.org/docs/format/Columnar.html#encapsulated-message-format.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

__all__ = ["DICTIONARY", "RECORDS", "Message", "messages", "read_message"]

RECORDS, DICTIONARY = 3, 2
_FILE_MARK = b"ARROW1\0\0"
_GUESS = 4096


@dataclass(frozen=True)
class Message:
    """A message.

    Attributes:
        start: Where it begins in the file.
        head: All of it before the body.
        length: Bytes of the body.
        kind: `RECORDS`, `DICTIONARY`, or that of a schema.
        rows: Rows of a batch of records, else 0.
        buffers: Place in the body and length of each buffer of a batch.
    """

    start: int
    head: bytes
    length: int
    kind: int
    rows: int
    buffers: tuple[tuple[int, int], ...]

    @property
    def body(self) -> int:
        """Where the body begins."""
        return self.start + len(self.head)

    @property
    def end(self) -> int:
        """Where the next message begins."""
        return self.body + self.length


def messages(source: Any) -> Iterator[Message]:
    """The messages of an opened stream or file of Arrow, in order.

    Raises:
        ValueError: If it is neither, or is cut short.
    """
    size = source.seek(0, 2)
    source.seek(0)
    at = len(_FILE_MARK) if source.read(len(_FILE_MARK)) == _FILE_MARK else 0
    while at < size and (message := read_message(source, at)) is not None:
        if message.end > size:
            raise ValueError(f"it is cut short: it has {size} bytes, and a batch ends at {message.end}")
        yield message
        at = message.end


def read_message(source: Any, start: int) -> Message | None:
    """The message that begins at a place; None at the end of the stream.

    Raises:
        ValueError: If there is none.
    """
    source.seek(start)
    head = source.read(_GUESS)
    try:
        mark, length = struct.unpack_from("<Ii", head)
        if mark != 0xFFFFFFFF or length < 0:
            raise ValueError("it is not in Arrow's stream or file format")
        if length == 0:
            return None
        if len(head) < 8 + length:
            head += source.read(8 + length - len(head))
        return _parsed(start, head[: 8 + length])
    except struct.error as error:
        raise ValueError("it is cut short") from error


def _parsed(start: int, head: bytes) -> Message:
    message = _Table(head, 8 + _number(head, 8, "<I"))
    kind, length = message.number(1, "<B"), message.number(3, "<q")
    if length < 0:
        raise ValueError("a message in it has no sound length")
    if kind != RECORDS:
        return Message(start, head, length, kind, 0, ())
    batch = message.table(2)
    at = batch.vector(2)
    pairs = struct.iter_unpack("<qq", head[at + 4 : at + 4 + 16 * _number(head, at, "<I")]) if at else ()
    return Message(start, head, length, kind, batch.number(0, "<q"), tuple((a, b) for a, b in pairs))


@dataclass(frozen=True)
class _Table:
    """A table of a flatbuffer."""

    data: bytes
    at: int

    def _field(self, number: int) -> int:
        """Where a field is; 0 where it has its default."""
        fields = self.at - _number(self.data, self.at, "<i")
        if 4 + 2 * number >= _number(self.data, fields, "<H"):
            return 0
        offset = _number(self.data, fields + 4 + 2 * number, "<H")
        return self.at + offset if offset else 0

    def number(self, number: int, form: str) -> int:
        place = self._field(number)
        return _number(self.data, place, form) if place else 0

    def vector(self, number: int) -> int:
        """Where a vector or table is to which a field points; 0 where there is none."""
        place = self._field(number)
        return place + _number(self.data, place, "<I") if place else 0

    def table(self, number: int) -> _Table:
        return _Table(self.data, self.vector(number))


def _number(data: bytes, at: int, form: str) -> int:
    found: int = struct.unpack_from(form, data, at)[0]
    return found
