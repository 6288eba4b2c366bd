"""The short help of `metaalign train`: the most common entries."""

from __future__ import annotations

import dataclasses
import re
import textwrap
import typing
from typing import Any, Literal

import yaml
from docstring_parser import parse

from .training import Config

__all__ = ["COMMON_KEYS", "short_help"]

COMMON_KEYS = (
    "data.source",
    "data.target",
    "data.image_size",
    "data.augmentation",
    "model.backbone",
    "model.pretrained",
    "model.alignment",
    "model.detector",
    "model.checkpoint",
    "coordination.method",
    "optimizer.name",
    "optimizer.lr",
    "training.output_dir",
    "training.source_steps",
    "training.max_steps",
    "training.batch_size",
    "training.batch_norm",
    "training.seed",
    "training.resume",
    "hub.repo_id",
)
_WIDTH, _INDENT = 100, 28


def short_help() -> str:
    """The text."""
    lines = [
        "usage: metaalign train [--config FILE] [--section.key VALUE ...]",
        "",
        "Adapt a model from a labelled source to an unlabelled target domain.",
        "",
        _entry("config", "YAML file with any entries; options on the line win."),
    ]
    section = ""
    for key in COMMON_KEYS:
        if section != (section := key.partition(".")[0]):
            lines.append("")
        lines.append(_entry(key, _explanation(key)))
    lines += [
        "",
        "A domain is embedded (mnist, uci_digits, mnist_m, solar_mono, solar_poly), imagefolder:FOLDER (class",
        "folders; without them unlabelled), list:FILE (lines `path label`), dataset:ORG/NAME, or parquet, arrow or",
        "webdataset:FILES;",
        "--data.target.KEY VALUE refines it.",
        "metaalign train --help all explains every entry.",
    ]
    return "\n".join(lines)


def _entry(key: str, text: str) -> str:
    found = textwrap.wrap(text, _WIDTH - _INDENT)
    head = f"  --{key}"
    first = f"{head:<{_INDENT}}{found[0]}" if len(head) < _INDENT else f"{head}\n{'':<{_INDENT}}{found[0]}"
    return "\n".join([first, *(f"{'':<{_INDENT}}{line}" for line in found[1:])])


def _explanation(key: str) -> str:
    """The first sentence on an entry, what it may be where the sentence leaves that out, and its default."""
    section, name = key.split(".")
    kind = typing.get_type_hints(Config)[section]
    described = {parameter.arg_name: parameter.description for parameter in parse(kind.__doc__).params}
    sentence = re.split(r"(?<=\.)\s+(?=[A-Z])", " ".join((described[name] or "").split()))[0]
    hint = typing.get_type_hints(kind)[name]
    if typing.get_origin(hint) is Literal and not all(str(choice) in sentence for choice in typing.get_args(hint)):
        sentence += f" One of {', '.join(map(str, typing.get_args(hint)))}."
    default = next(field.default for field in dataclasses.fields(kind) if field.name == name)
    return sentence if default is dataclasses.MISSING else f"{sentence} (default: {_shown(default)})"


def _shown(value: Any) -> str:
    return yaml.safe_dump(value).splitlines()[0]
