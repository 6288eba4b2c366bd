"""Image lists: lines `path label`, as published experiments have them; a million lines in seconds."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from ..configuration import DomainConfig
from ..errors import UserError
from ..paths import is_file
from ..text_files import read_text
from .boundary import Boundary
from .domains import RawDomain
from .images import IMAGE_SUFFIXES, FileLoader, ImageSet
from .notes import transparency_notes
from .path_list import PathList, Places
from .remote_path import RemotePath, place_of

__all__ = ["WHOLE", "class_index", "label_names", "read_list"]

WHOLE = re.compile(r"-?[0-9]{1,18}")
"""A label that is a number."""


def read_list(path: str, config: DomainConfig) -> RawDomain[ImageSet]:
    """A domain from a list file, and perhaps one of test images; no image is opened.

    Args:
        path: The list.
        config: The domain.

    Raises:
        UserError: If a list is empty or malformed, or names a file that does not exist.
    """
    name = config.describe()
    names = label_names(config)
    train = _read(path, config, name)
    parts = [train, *([_read(config.test_path, config, name)] if config.test_path is not None else [])]
    notes = transparency_notes(name, train.paths)
    if all(part.labels is None for part in parts):
        first, *rest = (_listed(part, {}, name) for part in parts)
        return RawDomain(name, None, first, rest[0] if rest else None, notes)
    if any(part.labels is None for part in parts):
        bare, other = sorted(parts, key=lambda part: part.labels is not None)
        raise UserError(f"domain {name}: {bare.places.file} has no labels, and {other.places.file} has")
    classes, index = _classes(parts, names, config)
    first, *rest = (_listed(part, index, name) for part in parts)
    return RawDomain(name, classes, first, rest[0] if rest else None, notes)


@dataclass(frozen=True)
class _Rows:
    """The lines of a list: where they stand, their paths, and their labels as they are written, if they have any."""

    places: Places
    paths: PathList
    labels: list[str] | None


def _read(path: str, config: DomainConfig, name: str) -> _Rows:
    """The label follows the last tab or, without tabs, the last space where it is a label."""
    file = place_of(path, name)
    folder = file.parent if config.root is None else place_of(config.root, name)
    root = folder if isinstance(folder, RemotePath) else str(folder)
    lines: list[int] = []
    names: list[str] = []
    labels: list[str] = []
    known: dict[str, str] = {}  # one object for each label, however often it stands there
    unlabelled = None
    for number, line in enumerate(read_text(file, f"domain {name}: the list").splitlines(), start=1):
        text = line.strip()
        if not text:
            continue
        image, _, label = text.rpartition("\t" if "\t" in text else " ")
        if not image or ("." in label.rpartition("/")[2] and Path(label).suffix.lower() in (".jpg", ".jpeg", ".png")):
            unlabelled = unlabelled or number
            image, label = text, ""
        else:
            label = label.strip()
            labels.append(known.setdefault(label, label))
        lines.append(number)
        names.append(image.strip())
    if not names:
        raise UserError(f"domain {name}: the list {file} is empty")
    if unlabelled is not None and labels:
        raise UserError(f"{file}, line {unlabelled}: no label after the path; lines are `path label`")
    rows = _Rows(Places(str(file), lines), PathList(root, tuple(names)), labels or None)
    boundary = Boundary(root, config, "root")
    if (row := _first_unsound(rows.paths, boundary)) is not None:
        unsound = rows.paths[row]
        if not boundary.holds(unsound):
            raise boundary.error(unsound, rows.places[row])
        advice = "set root to the folder that paths start from"
        if other := _other_separator(str(unsound)):
            advice = f"separate path and label by a space or a tab, not by {other!r}"
        raise UserError(f"{rows.places[row]}: image {unsound} does not exist; {advice}")
    return rows


def _first_unsound(paths: PathList, boundary: Boundary) -> int | None:
    """Number of the first path that leaves the folder or is no file.

    Folders are listed once each, which asks less of a disk than files.
    """
    found: dict[str, set[str]] = {}
    if not isinstance(paths.root, str):  # which lists its folders once anyway
        return next((n for n, path in enumerate(paths) if not (boundary.holds(path) and path.is_file())), None)
    for number, name in enumerate(paths.names):
        folder, _, base = name.rpartition("/")
        if folder not in found:
            place = os.path.join(paths.root, folder or ("/" if name.startswith("/") else ""))
            found[folder] = _sound_files(place, boundary)
        if base not in found[folder] and not (boundary.holds(path := paths[number]) and is_file(path)):
            return number
    return None


def _sound_files(folder: str, boundary: Boundary) -> set[str]:
    """Names of files in a folder that need no further look: links do, unless they may lead anywhere."""
    if not boundary.holds_folder(folder):
        return set()
    try:
        with os.scandir(folder) as entries:
            return {entry.name for entry in entries if entry.is_file(follow_symlinks=boundary.lifted)}
    except (OSError, ValueError):
        return set()


def _other_separator(image: str) -> str | None:
    """A comma or semicolon after the path, where that is what is wrong with a row."""
    for sign in ",;|":
        path, found, _ = image.rpartition(sign)
        if found and Path(path.strip().strip("\"'")).suffix.lower() in IMAGE_SUFFIXES:
            return sign
    return None


def _classes(parts: Sequence[_Rows], names: list[str] | None, config: DomainConfig) -> tuple[list[str], dict[str, int]]:
    """Class names, and the class index of every label text.

    Integer labels are named by `labels_file`, or by the folders of their images where each label has a folder of its
    own (`Art/Alarm_Clock/00001.jpg 0`), or else by themselves. Other labels are names already.
    """
    texts = sorted({label for part in parts for label in part.labels or ()})
    if names is not None:
        return names, {text: class_index(text, names, config, partial(_place, text, parts)) for text in texts}
    if not all(WHOLE.fullmatch(text) for text in texts):
        return texts, {text: i for i, text in enumerate(texts)}
    if negative := next((text for text in texts if int(text) < 0), None):
        raise UserError(f"{_place(negative, parts)}: label {negative} is negative")
    ordered = sorted(texts, key=int)
    index = {text: i for i, text in enumerate(ordered)}
    folders: dict[str, set[str]] = {text: set() for text in ordered}
    for part in parts:
        pairs = zip(part.paths.names, part.labels or (), strict=True)
        for folder, text in {(name.rpartition("/")[0], label) for name, label in pairs}:
            folders[text].add(part.paths.place(folder).name)
    if all(len(found) == 1 for found in folders.values()):
        by_folder = [next(iter(folders[text])) for text in ordered]
        if len(set(by_folder)) == len(by_folder):
            return by_folder, index
    return ordered, index


def class_index(text: str, names: list[str], config: DomainConfig, place: Callable[[], str]) -> int:
    """Class index of a label that is a name of `labels_file` or a number into it.

    Args:
        text: The label.
        names: The class names.
        config: The domain.
        place: Says where the label stands, for errors.

    Raises:
        UserError: If it is neither.
    """
    if text in names:
        return names.index(text)
    if WHOLE.fullmatch(text) and 0 <= int(text) < len(names):
        return int(text)
    raise UserError(
        f"{place()}: label {text!r} is neither a name in {config.labels_file} nor a number from 0 to {len(names) - 1}"
    )


def _place(text: str, parts: Sequence[_Rows]) -> str:
    """Where a label stands first."""
    return next(part.places[part.labels.index(text)] for part in parts if part.labels and text in part.labels)


def _listed(rows: _Rows, index: dict[str, int], name: str) -> ImageSet:
    labels = tuple(index[label] for label in rows.labels or ()) if index else None
    return ImageSet(name, len(rows.paths), FileLoader(rows.paths, rows.places), labels, rows.paths)


def label_names(config: DomainConfig) -> list[str] | None:
    """The class names of `labels_file`; None where it is not set.

    Raises:
        UserError: If it cannot be read, or its names are not different.
    """
    if config.labels_file is None:
        return None
    text = read_text(place_of(config.labels_file, config.describe()), "labels_file:")
    names = [line.strip() for line in text.splitlines()]
    names = [name for name in names if name]
    if len(set(names)) != len(names) or not names:
        raise UserError(f"labels_file: {config.labels_file} must hold different class names, one a line")
    return names
