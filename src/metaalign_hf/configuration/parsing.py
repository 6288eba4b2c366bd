"""Parsing of YAML files and command-line overrides into a `Config`."""

from __future__ import annotations

import dataclasses
import re
import typing
from collections.abc import Callable, Mapping
from copy import deepcopy
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import ArgumentError, ArgumentParser

from ..checks import requirement
from ..errors import UserError, brief, one_line
from ..text_files import read_text, read_yaml
from .data import DIGITS, SCENES, SOLAR, DomainConfig, Kind
from .reading import defaults_of, ignored_by_task, unread
from .training import Config

__all__ = ["build_parser", "load_config", "parse_config", "parse_domain"]

DOMAINS = ("source", "target", "target_labeled")
SOURCE_FREE_LOSSES = [
    {"name": "information_maximization"},
    {"name": "self_training", "weight": 0.3, "threshold": 0.9, "thresholds": "class_balanced"},
]
"""What a model learns from a target alone where nothing is said: SHOT's two terms, at SHOT's weights."""


def load_config(path: str | Path, overrides: dict[str, Any] | None = None) -> Config:
    """Read a configuration file.

    Args:
        path: The YAML file.
        overrides: Dotted keys with values, such as `{"training.max_steps": 200}`. What the file sets, and only an
            override makes unread, is set aside.

    Returns:
        The configuration.

    Raises:
        UserError: If the file cannot be read, or a key or value is wrong.
    """
    values = _read_yaml(Path(path))
    before = deepcopy(values)
    for key, value in (overrides or {}).items():
        _check_dotted(key)
        _assign(values, key, value)
    _without_source(before, values)
    _set_aside(before, values, overrides or {})
    return _to_config(values)


def parse_config(arguments: list[str]) -> Config:
    """The configuration that command-line arguments describe.

    Args:
        arguments: `--config FILE` and overrides such as `--training.max_steps 200`, later ones winning. A domain may be
            given in short: `--data.target imagefolder:photos/`.

    Returns:
        The configuration. What a file sets, and only an option on the line makes unread, is set aside.

    Raises:
        UserError: If a file cannot be read, or a key or value is wrong: one line that names it and the nearest valid
            keys.
    """
    values: dict[str, Any] = {}
    files: dict[str, Any] = {}
    given: dict[str, Any] = {}
    for key, text in _pairs(arguments, lambda key: None if key == "config" else _check_dotted(key)):
        if key == "config":
            read = _read_yaml(Path(text))
            _merge(files, deepcopy(read))
            _merge(values, read)
        else:
            given[key] = _parse_value(key, text)
            _assign(values, key, deepcopy(given[key]))
    _without_source(files, values)
    _set_aside(files, values, given)
    return _to_config(values)


def parse_domain(text: str, arguments: list[str]) -> DomainConfig:
    """A domain in short form, refined by options such as `--data.domain_column site`.

    Args:
        text: As `DomainConfig.parse` takes it.
        arguments: Options that start with `--data.`.

    Returns:
        The domain's configuration.

    Raises:
        UserError: If the text, a key or a value is wrong.
    """
    values = dataclasses.asdict(DomainConfig.parse(text))

    def check(key: str) -> None:
        if (name := key.removeprefix("data.")) not in values:
            near = get_close_matches(name, list(values), n=2) or list(values)
            raise UserError(f"option --{key}: unknown key; did you mean {' or '.join(f'data.{k}' for k in near)}?")

    for key, value in _pairs(arguments, check):
        values[key.removeprefix("data.")] = _parse_value(key, value)
    return _domain(values, "data")


def build_parser() -> ArgumentParser:
    """A parser with one argument for every entry of the configuration; it checks the types and writes the help."""
    parser = ArgumentParser(
        prog="metaalign train",
        exit_on_error=False,
        description="Adapt a model from a labelled source to an unlabelled target domain.",
    )
    parser.add_argument("--config", type=str, help="YAML file with any of the entries below; options on the line win")
    for section, kind in _fields(Config).items():
        parser.add_class_arguments(kind, section)
    return parser


def _to_config(values: dict[str, Any]) -> Config:
    values = {section: entries for section, entries in values.items() if entries is not None}
    for section, entries in values.items():
        if not isinstance(entries, dict):
            raise UserError(f"{section} must be a section with keys, not {brief(entries)}")
    data = values.setdefault("data", {})
    source_free = False
    for name in DOMAINS:
        given = data.get(name)
        if name == "source" and _names_no_source(values):
            source_free = True
        elif given in (None, {}, [], "") and name != "target_labeled":
            raise UserError(
                f"data.{name} is missing: name a domain, e.g. --data.{name} imagefolder:FOLDER, or --config FILE"
                + ("; or a finished model to adapt without one, with --model.checkpoint" if name == "source" else "")
            )
        elif name == "source" and isinstance(given, list):
            data[name] = [_spell_out(domain, f"data.{name}") for domain in given]
        elif given is not None:
            data[name] = _spell_out(given, f"data.{name}")
    if source_free:
        # The parser takes null for a missing value; what stands in here is taken out again below.
        data["source"] = data["target"]
    parser = build_parser()
    try:
        namespace = parser.instantiate(parser.parse_object(values))
    except ArgumentError as error:
        raise UserError(_one_line(str(error), _fields(Config))) from error
    if source_free:
        namespace["data"] = dataclasses.replace(namespace["data"], source=None)
    return Config(**{section: namespace[section] for section in _fields(Config)})


def _names_no_source(values: dict[str, Any]) -> bool:
    """Whether a configuration adapts a checkpoint without a source: it says none, or names a checkpoint alone."""
    data, model = (values.get(section) for section in ("data", "model"))
    source = data.get("source") if isinstance(data, dict) else None
    checkpoint = model.get("checkpoint") if isinstance(model, dict) else None
    return source == "none" or (source in (None, {}, [], "") and checkpoint is not None)


def _without_source(files: dict[str, Any], values: dict[str, Any]) -> None:
    """Fill in how a checkpoint is adapted without a source, where that is not said.

    Args:
        files: What the files say; a method that they name for a source of theirs does not count.
        values: What files and overrides say together, in which it is filled in.
    """
    if not _names_no_source(values):
        return
    for section, key, value in (
        ("coordination", "method", "target_only"),
        ("training", "target_losses", deepcopy(SOURCE_FREE_LOSSES)),
    ):
        entries = values.get(section)
        entries = values[section] = entries if isinstance(entries, dict) else {}
        of_file = (files.get(section) or {}).get(key) if not _names_no_source(files) else None
        if entries.get(key) is None or (key == "method" and entries[key] == of_file):
            entries[key] = value


def _set_aside(files: dict[str, Any], values: dict[str, Any], given: Mapping[str, Any]) -> None:
    """Drop from `values` what a file sets and only an override makes unread, such as another method.

    Args:
        files: What the files say.
        values: What files and overrides say together.
        given: The overrides.
    """
    now_unread = _unread(values) - _unread(files)
    for key in now_unread:
        if not any(name == key or name.startswith(f"{key}.") for name in given):
            section, _, name = key.partition(".")
            del values[section][name]


def _unread(values: dict[str, Any]) -> set[str]:
    """The entries that are set and that nothing reads."""
    found: set[str] = set()
    sections: dict[str, dict[str, Any]] = {}
    for section, kind in _fields(Config).items():
        defaults, entries = defaults_of(kind), values.get(section)
        sections[section] = {**defaults, **(entries if isinstance(entries, dict) else {})}
        found |= {f"{section}.{key}" for key in unread(section, sections[section], defaults)}
    return found | ignored_by_task(sections)


def _spell_out(given: Any, key: str) -> dict[str, Any]:
    """All entries of a domain that is given in short form or as some of its entries."""
    if isinstance(given, dict):
        given = _short_form(given) or given
    if isinstance(given, str):
        return dataclasses.asdict(DomainConfig.parse(given))
    if not isinstance(given, dict):
        several = " (data.source alone may be a list)" if isinstance(given, list) else ""
        raise UserError(f"{key} is {given!r}: it must be one domain, in short form or as a mapping{several}")
    for name in given:
        if name not in _fields(DomainConfig):
            raise UserError(_unknown_key(f"{key}.{name}"))
    return dataclasses.asdict(_domain(given, key))


def _domain(given: dict[str, Any], key: str) -> DomainConfig:
    """A domain with these entries; errors name them as entries of `key`."""
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(DomainConfig, "domain")
    try:
        domain: DomainConfig = parser.instantiate(parser.parse_object({"domain": given})).domain
    except ArgumentError as error:
        raise UserError(f"{key}.{_one_line(str(error), {'domain': DomainConfig}).removeprefix('domain.')}") from error
    except UserError as error:
        raise UserError(f"{key}.{error}") from error
    return domain


def _pairs(arguments: list[str], check: Callable[[str], None]) -> list[tuple[str, str]]:
    """`["--a.b", "1", "--c=2"]` -> `[("a.b", "1"), ("c", "2")]`; `check` raises for a key that is unknown."""
    pairs, rest = [], list(arguments)
    while rest:
        option = rest.pop(0)
        if not option.startswith("--"):
            file = option.endswith((".yaml", ".yml"))
            right = f"did you mean --config {option}?" if file else "options are written --section.key value"
            raise UserError(f"argument {option!r} was not expected; {right}")
        key, equals, text = option[2:].partition("=")
        check(key)
        if not equals:
            if not rest or rest[0].startswith("--"):
                raise UserError(f"option --{key} lacks its value; write --{key} {_example(key)}")
            text = rest.pop(0)
        pairs.append((key, text))
    return pairs


def _example(key: str) -> str:
    """What may follow an option."""
    section, _, name = key.partition(".")
    return "true" if typing.get_type_hints(_fields(Config).get(section, Config)).get(name) is bool else "VALUE"


def _short_form(given: dict[str, Any]) -> str | None:
    """The short form that YAML read as a mapping: `imagefolder:`, or `imagefolder: photos` with a space."""
    if len(given) != 1:
        return None
    ((kind, path),) = given.items()
    if kind not in (*typing.get_args(Kind), *DIGITS, *SCENES, *SOLAR) or not isinstance(path, str | None):
        return None
    return f"{kind}:{path or ''}"


def _parse_value(key: str, text: str) -> Any:
    if not text:
        return text  # an empty shell variable is not YAML's null
    try:
        value = read_yaml(text, f"option --{key}")
    except yaml.YAMLError:
        return text
    if isinstance(value, dict) and key in [f"data.{name}" for name in DOMAINS]:
        return _short_form(value) or value
    # `{label}` and `a photo: {label}` are mappings to YAML.
    return text if isinstance(value, dict) and _is_text(key) else value


def _is_text(key: str) -> bool:
    """Whether an entry may be a text, and may not be a mapping."""
    section, _, name = key.partition(".")
    hint = typing.get_type_hints(_fields(Config).get(section, Config)).get(name)
    kinds = {typing.get_origin(kind) or kind for kind in (typing.get_args(hint) or (hint,))}
    return str in kinds and dict not in kinds


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        values = read_yaml(read_text(path, "--config:"), f"--config: {path}")
    except yaml.YAMLError as error:
        raise UserError(f"--config: {path} is not valid YAML ({one_line(error)})") from error
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise UserError(
            f"--config: {path} must hold sections ({', '.join(_fields(Config))}), not a {type(values).__name__}"
        )
    _check_keys(values, Config, "", str(path))
    return values


def _fields(kind: type) -> dict[str, type]:
    """The entries of a section and their types; a domain where one, several or none may be given."""
    hints = typing.get_type_hints(kind)
    return {
        field.name: DomainConfig if DomainConfig in typing.get_args(hints[field.name]) else hints[field.name]
        for field in dataclasses.fields(kind)
    }


def _all_keys(kind: type = Config, prefix: str = "") -> list[str]:
    keys = []
    for name, inner in _fields(kind).items():
        keys.append(f"{prefix}{name}")
        if dataclasses.is_dataclass(inner):
            keys += _all_keys(inner, f"{prefix}{name}.")
    return keys


def _check_keys(values: dict[str, Any], kind: type, prefix: str, file: str) -> None:
    """Every key of a YAML file must be an entry of the configuration."""
    known = _fields(kind)
    for name, value in values.items():
        key = f"{prefix}{name}"
        if name not in known:
            raise UserError(f"{file}: {_unknown_key(key)}")
        if dataclasses.is_dataclass(known[name]) and value is not None:
            if isinstance(value, dict) and not (known[name] is DomainConfig and _short_form(value)):
                _check_keys(value, known[name], f"{key}.", file)
            elif known[name] is not DomainConfig:
                raise UserError(f"{file}: {key} must be a section with keys, not {brief(value)}")


def _check_dotted(key: str) -> None:
    """An override must be an entry, or lead into a free-form one (`model.backbone_options.depths`)."""
    kind: Any = Config
    for part in key.split("."):
        if not dataclasses.is_dataclass(kind):
            if kind in (str, int, float, bool):
                break
            return
        if part not in (known := _fields(kind)):  # type: ignore[arg-type]
            raise UserError(f"option --{key}: {_unknown_key(key)}")
        kind = known[part]


def _unknown_key(key: str) -> str:
    keys = _all_keys()
    last = key.rsplit(".", 1)[-1]
    near = get_close_matches(key, keys, n=3, cutoff=0.7)
    near += [k for k in keys if k.rsplit(".", 1)[-1] == last and k not in near]
    if not near:
        tails = {k.rsplit(".", 1)[-1]: k for k in keys}
        near = [tails[tail] for tail in get_close_matches(last, list(tails), n=3, cutoff=0.6)]
    section = key.rsplit(".", 1)[0] if "." in key else ""
    siblings = [k for k in keys if k.rpartition(".")[0] == section]
    hint = f"did you mean {' or '.join(near[:3])}?" if near else f"valid here: {', '.join(siblings or _fields(Config))}"
    return f"unknown key {key!r}; {hint}"


def _assign(values: dict[str, Any], key: str, value: Any) -> None:
    """Set a dotted key; a domain in short form is spelled out first, so that an override can refine it."""
    *path, last = key.split(".")
    for part in path:
        inner = values.get(part)
        if isinstance(inner, str) and part in DOMAINS:
            inner = dataclasses.asdict(DomainConfig.parse(inner))
        if isinstance(inner, list):
            raise UserError(f"option --{key}: data.{part} is a list of domains; refine them in a configuration file")
        values[part] = inner if isinstance(inner, dict) else {}
        values = values[part]
    values[last] = value


def _merge(values: dict[str, Any], new: dict[str, Any]) -> None:
    """Merge the sections of a later file over those of an earlier one, in place."""
    for section, entries in new.items():
        if isinstance(values.get(section), dict) and isinstance(entries, dict):
            values[section].update(entries)
        else:
            values[section] = entries


def _one_line(message: str, sections: dict[str, type]) -> str:
    """The message of jsonargparse as one line: the key, its value, and what is allowed."""
    key = re.search(r'key "([^"]+)"', message)
    got = re.findall(r"(?:Got value|Given value): (.*)", message)
    section, _, name = key.group(1).rpartition(".") if key else ("", "", "")
    kind: Any = sections.get(section)
    if kind is None or not got or name not in _fields(kind):
        return " ".join(message.split())
    takes = requirement(typing.get_type_hints(kind)[name], kind.LIMITS.get(name))
    shown = got[-1].strip() or "''"
    return f"{section}.{name} is {shown}: it must be {takes}"
