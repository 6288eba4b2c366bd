"""Methods by short names: words that stand for settings."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ..errors import UserError, did_you_mean

__all__ = ["METHOD_WORDS", "Method", "read_methods"]

METHOD_WORDS: Mapping[str, tuple[str, ...]] = {
    # It is its own baseline, which the other methods may have.
    "source_only": ("--coordination.method", "source_only", "--training.baseline", "false"),
    "joint": ("--coordination.method", "joint"),
    "remembered": ("--coordination.method", "metaalign", "--coordination.direction", "remembered"),
    "fresh": ("--coordination.method", "metaalign", "--coordination.direction", "fresh"),
    "extragradient": ("--coordination.method", "extragradient"),
    "heun": ("--coordination.method", "heun"),
    "pga": ("--coordination.method", "pga"),
}
"""Steps by name, as options of `metaalign train`; an alignment objective is a word too."""


@dataclass(frozen=True)
class Method:
    """A method of a comparison.

    Attributes:
        name: What it is called, also as a folder.
        options: Options of `metaalign train` that make it.
    """

    name: str
    options: tuple[str, ...]


def read_methods(text: str, objectives: list[str]) -> list[Method]:
    """The methods that a text such as `joint,remembered+cdan,mine.yaml` names.

    Each is one or several words with `+` between them: a step of `METHOD_WORDS`, an alignment objective, or a YAML file
    with settings, whose name without its ending it then has.

    Args:
        text: The methods, with commas between them.
        objectives: Names of the alignment objectives.

    Raises:
        UserError: If a word is unknown, a file does not exist, or a method is named twice.
    """
    found = [_method(entry.strip(), objectives) for entry in text.split(",") if entry.strip()]
    if not found:
        raise UserError("--methods: name at least one, such as joint,remembered")
    names = [method.name for method in found]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise UserError(f"--methods: {twice} is named twice")
    return found


def _method(text: str, objectives: list[str]) -> Method:
    names: list[str] = []
    options: list[str] = []
    for word in text.split("+"):
        if word.endswith((".yaml", ".yml")):
            if not Path(word).is_file():
                raise UserError(f"--methods: the file {word} does not exist")
            names.append(re.sub(r"[^\w.-]", "_", Path(word).stem))
            options += ["--config", word]
        elif word in METHOD_WORDS:
            names.append(word)
            options += METHOD_WORDS[word]
        elif word in objectives:
            names.append(word)
            options += ["--model.alignment", word]
        else:
            known = [*METHOD_WORDS, *objectives]
            hint = did_you_mean(word, known, f"use a step ({', '.join(METHOD_WORDS)}), an objective or a YAML file")
            raise UserError(f"--methods: {word!r} is unknown; {hint}")
    return Method("+".join(names), tuple(options))
