"""Text, YAML and JSON that somebody else wrote: read in full, or refused in one line."""

from __future__ import annotations

import json
from collections.abc import Hashable
from pathlib import Path
from typing import Any

import yaml

from .errors import UserError, one_line

__all__ = ["read_json", "read_text", "read_yaml"]

_DEEPEST = 50
_LARGEST = 1_000_000
_MARKS = {b"\xff\xfe": "UTF-16", b"\xfe\xff": "UTF-16"}


def read_text(path: Path, what: str) -> str:
    """The text of a UTF-8 file, without a byte order mark.

    Args:
        path: The file.
        what: What errors call it, such as `domain photos: the list`.

    Raises:
        UserError: If it cannot be read, or is not UTF-8 text.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"{what} {path} cannot be read ({error.strerror})") from error
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        found = _MARKS.get(content[:2], f"byte 0x{content[error.start]:02x} in line {line}")
        raise UserError(f"{what} {path} is not UTF-8 text ({found}); save it as UTF-8") from error
    if "\0" in text:
        raise UserError(f"{what} {path} is not UTF-8 text (it holds zero bytes); save it as UTF-8")
    return text


def read_yaml(text: str, what: str) -> Any:
    """The value of a YAML text.

    Args:
        text: The text.
        what: What errors call it.

    Raises:
        UserError: If a mapping has a key twice, or the value is nested too deeply or contains itself.
        yaml.YAMLError: If it is not YAML.
    """
    try:
        value = yaml.load(text, _UniqueKeys)
    except RecursionError:
        raise _too_deep(what) from None
    except (ValueError, OverflowError, TypeError) as error:  # such as a date in month 13, or a list as a key
        raise UserError(f"{what} has a value that cannot be read ({one_line(error)})") from error
    except _RepeatedKeyError as error:
        raise UserError(f"{what}, line {error.line}: key {error.key!r} stands twice; keep one") from error
    return _shallow(value, what)


def read_json(path: Path, what: str) -> Any:
    """The value of a JSON file.

    Args:
        path: The file.
        what: What errors call it.

    Raises:
        UserError: If it cannot be read, is not JSON, or is nested too deeply.
    """
    text = read_text(path, what)
    try:
        return json.loads(text)
    except ValueError as error:  # also that of a number with thousands of digits
        raise UserError(f"{what} {path} is not valid json ({error})") from error
    except RecursionError:
        raise _too_deep(f"{what} {path}") from None


class _RepeatedKeyError(Exception):
    def __init__(self, key: Any, line: int) -> None:
        super().__init__(key)
        self.key, self.line = key, line


class _UniqueKeys(yaml.SafeLoader):
    """YAML forbids a key that stands twice; PyYAML takes the last one."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                if (key.tag, key.value) in seen:
                    raise _RepeatedKeyError(key.value, key.start_mark.line + 1)
                seen.add((key.tag, key.value))
        return super().construct_mapping(node, deep)


def _shallow(value: Any, what: str) -> Any:
    """The value, unless its lists and mappings are nested more deeply than any configuration or annotation is."""
    level = {id(value): value}
    for _ in range(_DEEPEST):
        level = {
            id(inner): inner
            for outer in level.values()
            if isinstance(outer, dict | list)
            for inner in (outer.values() if isinstance(outer, dict) else outer)
            if isinstance(inner, dict | list)
        }
        if not level:
            break
    else:
        raise _too_deep(what)
    if _size(value, {}) > _LARGEST:
        raise UserError(f"{what} is too large: its anchors stand for more than {_LARGEST} values")
    return value


def _size(value: Any, known: dict[int, int]) -> int:
    """How many values there are once every anchor is written out, without doing so."""
    if not isinstance(value, dict | list):
        return 1
    if id(value) not in known:
        inner = value.values() if isinstance(value, dict) else value
        known[id(value)] = 1 + sum(_size(entry, known) for entry in inner)
    return known[id(value)]


def _too_deep(what: str) -> UserError:
    return UserError(f"{what} is nested too deeply, or contains itself")
