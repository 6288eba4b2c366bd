"""Allowed values of configuration entries, and the error for a wrong one."""

from __future__ import annotations

import dataclasses
import math
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Union

from .errors import UserError

__all__ = [
    "LARGEST_SEED",
    "PROMPT",
    "Limits",
    "check_entries",
    "check_lora",
    "check_pretrained",
    "check_prompts",
    "requirement",
]

LARGEST_SEED = 2**32 - 1
"""NumPy takes no larger one."""

PROMPT = "a photo of a {label}"
"""What a dual encoder reads of a class."""


@dataclass(frozen=True)
class Limits:
    """The range of a number.

    Attributes:
        least: The smallest value, if there is one.
        most: The largest value, if there is one.
        inside: Whether the ends themselves are left out.
    """

    least: float | None = None
    most: float | None = None
    inside: bool = False

    def hold(self, value: float) -> bool:
        """Whether the value lies in the range."""
        if self.inside and value in (self.least, self.most):
            return False
        return (self.least is None or value >= self.least) and (self.most is None or value <= self.most)

    def __str__(self) -> str:
        if self.least is not None and self.most is not None:
            return f" between {self.least} and {self.most}" if self.inside else f" from {self.least} to {self.most}"
        if self.least is not None:
            return f" above {self.least}" if self.inside else f", {self.least} or more"
        return "" if self.most is None else f", {self.most} or less"


def check_entries(section: Any, prefix: str, limits: Mapping[str, Limits]) -> None:
    """Refuse an entry of the wrong type, an empty text and a number out of range.

    Args:
        section: A dataclass with type hints.
        prefix: What its keys start with, such as `training.`; may be empty.
        limits: Ranges of the numbers that have one, by name.

    Raises:
        UserError: For the first wrong entry: its key, its value, and what would be right.
    """
    hints = typing.get_type_hints(type(section))
    for field in dataclasses.fields(section):
        name, value = field.name, getattr(section, field.name)
        if isinstance(value, str) and not _is_unicode(value):
            raise UserError(f"{prefix}{name} is {value!r}: its bytes are not UTF-8; rename the file or folder")
        if not _fits(value, hints[name], limits.get(name, Limits())):
            shown = "null" if value is None else repr(value)
            wanted = requirement(hints[name], limits.get(name))
            raise UserError(f"{prefix}{name} is {shown}: it must be {wanted}")


def check_pretrained(value: bool | str, key: str) -> None:
    """Refuse a text that cannot name weights.

    Args:
        value: True, False, a local folder or `.safetensors` file, or a Hub id.
        key: What named it, for the error.

    Raises:
        UserError: If it is none of these; whether a Hub id exists is not asked.
    """
    if isinstance(value, bool) or "/" in value or value.startswith(("~", ".")) or Path(value).is_dir():
        return
    if not value.endswith(".safetensors"):
        raise UserError(
            f"{key} is {value!r}: it must be true, false, a local folder or .safetensors file, or a Hub id "
            "(organisation/name)"
        )


def check_lora(lora: Mapping[str, Any], key: str) -> dict[str, Any]:
    """The entries of low-rank adapters with their defaults: `r` 16, `alpha` r, `target_modules` auto.

    Args:
        lora: Some of them.
        key: What named them, for the error.

    Raises:
        UserError: If one is unknown or wrong.
    """
    known = {"r": 16, "alpha": lora.get("r", 16), "target_modules": "auto"}
    for name in lora:
        if name not in known:
            raise UserError(f"{key}.{name}: unknown key; valid: {', '.join(known)}")
    found = {**known, **lora}
    if not _fits(found["r"], int, Limits(1)):
        raise UserError(f"{key}.r is {found['r']!r}: it must be a whole number, 1 or more")
    if not _fits(found["alpha"], float, Limits(0, inside=True)):
        raise UserError(f"{key}.alpha is {found['alpha']!r}: it must be a number above 0")
    if found["target_modules"] != "auto" and not (
        _fits(found["target_modules"], list[str], Limits()) and found["target_modules"]
    ):
        raise UserError(f"{key}.target_modules is {found['target_modules']!r}: it must be auto or a list of names")
    return found


def check_prompts(prompts: str | Sequence[str], key: str) -> list[str]:
    """The prompts as a list.

    Args:
        prompts: A text with `{label}`, or several.
        key: What named them, for the error.

    Raises:
        UserError: If there is none, or one has no `{label}`.
    """
    found = [prompts] if isinstance(prompts, str) else list(prompts)
    if not found:
        raise UserError(f"{key}: the list is empty; write one such as {PROMPT!r}")
    for prompt in found:
        if prompt.startswith("[") and prompt.endswith("]"):
            raise UserError(
                f"{key} is {prompt}: in a list each text is in quotes, such as [{PROMPT!r}, 'the {{label}}']"
            )
        if "{label}" not in prompt:
            raise UserError(f"{key} is {prompt!r}: it must hold {{label}}, such as {PROMPT!r}")
    return found


def requirement(hint: Any, limits: Limits | None = None) -> str:
    """What an entry takes, in words: "a whole number, 1 or more", "sgd or adamw"."""
    options = _options(hint)
    words = [_kind(option, limits or Limits()) for option in options if option is not types.NoneType]
    return " or ".join([*words, *(["null"] if types.NoneType in options else [])])


def _options(hint: Any) -> tuple[Any, ...]:
    return typing.get_args(hint) if typing.get_origin(hint) in (Union, types.UnionType) else (hint,)


def _kind(hint: Any, limits: Limits) -> str:
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin is Literal:
        return f"one of {', '.join(map(str, inner))}"
    if origin in (list, dict):
        names = " of text (numbers in quotes)" if inner[:1] == (str,) else ""
        return f"a list{names}" if origin is list else "a mapping"
    words = {bool: "true or false", int: "a whole number", float: "a finite number", str: "text that is not empty"}
    return words.get(hint, "a domain") + (str(limits) if hint in (int, float) else "")


def _fits(value: Any, hint: Any, limits: Limits) -> bool:
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin in (Union, types.UnionType):
        return any(_fits(value, option, limits) for option in inner)
    if origin is Literal:
        return any(value == option and type(value) is type(option) for option in inner)
    if origin is list:
        return isinstance(value, list) and all(_fits(entry, inner[0], limits) for entry in value)
    if origin is dict:
        return isinstance(value, dict) and all(_fits(entry, inner[1], limits) for entry in value.values())
    if hint is Any:
        return True
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool) and limits.hold(value)
    if hint is float:
        return isinstance(value, int | float) and not isinstance(value, bool) and _finite(value) and limits.hold(value)
    if hint is str:
        return isinstance(value, str) and value.strip() != "" and "\0" not in value
    return isinstance(value, hint)


def _is_unicode(value: str) -> bool:
    """Whether a text can be written; Python keeps bytes of file names that are not UTF-8 as lone surrogates."""
    return not any("\ud800" <= sign <= "\udfff" for sign in value)


def _finite(value: float) -> bool:
    try:
        return math.isfinite(value)
    except OverflowError:  # a whole number that no float can hold
        return False
