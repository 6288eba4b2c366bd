"""YOLO txt: a yaml file that names folders of images and classes, and a text file of boxes for every image."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import yaml

from ..configuration import DomainConfig
from ..errors import UserError, one_line
from ..paths import is_file
from ..text_files import read_text, read_yaml
from .annotations import ClassNames, FoundObject, header_size, packed
from .bad_boxes import BoxCheck
from .boundary import Boundary
from .dataset_files import required_path
from .domains import RawDomain
from .images import FileLoader, ImageSet, find_images
from .objects import DetectionSet
from .remote_path import absent, fetch_all, place_of

__all__ = ["read_yolo"]


def read_yolo(config: DomainConfig) -> RawDomain[DetectionSet]:
    """A domain of a yaml file with `names` and, for each split, a folder of images or a text file with their paths.

    The boxes of `images/a.jpg` are in `labels/a.txt`, or in `a.txt` beside it: lines `class x y width height` in 0..1,
    x and y of the centre, or `class x1 y1 x2 y2 ...`, the outline of the object. Without the file an image has no
    objects; where no image of a split has one, the split has no annotations.

    Raises:
        UserError: If the yaml file, an image or a line is missing or malformed.
    """
    name = config.describe()
    file = place_of(required_path(config), name)
    try:
        document = read_yaml(read_text(file, f"domain {name}: the data file"), str(file))
    except yaml.YAMLError as error:
        raise UserError(f"domain {name}: {file} is not valid YAML ({one_line(error)})") from error
    if not isinstance(document, dict):
        raise UserError(f"domain {name}: {file} must have names and splits, such as train")
    classes = _class_names(document.get("names"), file)
    check, names = BoxCheck(name, config.bad_boxes), ClassNames(config, classes)
    train = _split(document, config.train_split, file, config, classes, names, check)
    test = None
    if config.test_split is not None:
        test = _split(document, config.test_split, file, config, classes, names, check)
    labelled = train.objects is not None and (test is None or test.objects is not None)
    if not labelled:
        train, test = train.without_annotations(), None if test is None else test.without_annotations()
    return RawDomain(name, names.names if labelled else None, train, test, check.notes())


def _class_names(given: Any, file: Path) -> list[str]:
    if isinstance(given, dict) and sorted(given) == list(range(len(given))):
        given = [given[number] for number in range(len(given))]
    if not isinstance(given, list) or not given or len({str(name) for name in given}) != len(given):
        raise UserError(f"{file}: names must be a list of different class names, or a mapping from 0, 1, ... to them")
    return [str(name) for name in given]


def _split(
    document: dict[str, Any],
    split: str,
    file: Path,
    config: DomainConfig,
    classes: list[str],
    names: ClassNames,
    check: BoxCheck,
) -> DetectionSet:
    if document.get(split) is None:
        known = ", ".join(key for key in document if key not in ("names", "nc", "path"))
        raise UserError(f"{file}: there is no split {split!r}; it has {known}")
    entries = document[split] if isinstance(document[split], list) else [document[split]]
    root, boundary = file.parent / str(document.get("path") or ""), Boundary(file.parent, config)
    paths = [path for entry in entries for path in _images(root, str(entry), file, split, boundary)]
    if not paths:
        raise UserError(f"{file}: split {split} has no images")
    labels = [_label_file(path) for path in paths]
    fetch_all([place for place in labels if place is not None], f"fetching labels of {config.describe()}")
    fetch_all(paths, f"fetching images of {config.describe()} for their sizes")
    sizes = tuple(header_size(path, f"{file}, {split}") for path in paths)
    images = ImageSet(config.describe(), len(paths), FileLoader(tuple(paths)), None, tuple(paths))
    if not any(labels):
        return DetectionSet(images, None, sizes)
    found = [
        [] if place is None else _objects(place, size, classes, names, check)
        for place, size in zip(labels, sizes, strict=True)
    ]
    return DetectionSet(images, packed(found), sizes)


def _images(root: Path, entry: str, file: Path, split: str, boundary: Boundary) -> list[Path]:
    """Images of a folder, or those that a text file lists; exports write `../train/images` for `train/images`."""
    place = next((p for p in (root / entry, root / entry.removeprefix("../")) if p.exists()), None)
    if place is None:
        raise UserError(f"{file}: {split} is {entry}, and {absent(root / entry)}")
    boundary.require(place, f"{file}, {split}")
    if place.is_dir():
        return find_images(place)
    found = []
    for number, line in enumerate(read_text(place, f"{split}:").splitlines(), start=1):
        if line.strip():
            path = root / line.strip()
            boundary.require(path, f"{place}, line {number}")
            if not is_file(path):
                raise UserError(f"{place}, line {number}: image {path} does not exist")
            found.append(path)
    return found


def _label_file(image: Path) -> Path | None:
    """The text file of an image: in the last folder `images` of its path read as `labels`, or beside it."""
    places = [image.with_suffix(".txt")]
    if "images" in image.parts[:-1]:
        below = image.parts[:-1][::-1].index("images")
        folder = image
        for _ in range(below + 2):
            folder = folder.parent
        places.insert(0, folder / "/".join(["labels", *places[0].parts[len(image.parts) - 1 - below :]]))
    return next((place for place in places if is_file(place)), None)


def _objects(
    place: Path, size: tuple[int, int], classes: list[str], names: ClassNames, check: BoxCheck
) -> list[FoundObject]:
    height, width = size
    found = []
    for number, line in enumerate(read_text(place, "labels:").splitlines(), start=1):
        where, words = f"{place}, line {number}", line.split()
        if not words:
            continue
        try:
            values = [float(word) for word in words[1:]]
        except ValueError:
            values = []
        if len(values) < 4 or len(values) % 2:
            raise UserError(f"{where}: must be `class x y width height` or `class x1 y1 x2 y2 ...`, got {line[:80]!r}")
        if not words[0].isdigit() or int(words[0]) >= len(classes):
            check.drop("unknown category", where)
            continue
        label = names.index(classes[int(words[0])])
        if label is None:
            continue  # a class that `classes` leaves out
        if len(values) == 4:
            x, y, w, h = values
            corners = (x - w / 2, y - h / 2, x + w / 2, y + h / 2)
        else:
            corners = (min(values[::2]), min(values[1::2]), max(values[::2]), max(values[1::2]))
        if not all(math.isfinite(value) for value in values):
            corners = (math.nan,) * 4
        box = check.clip(
            (corners[0] * width, corners[1] * height, corners[2] * width, corners[3] * height), size, where
        )
        if box is not None:
            found.append((box, label, False))
    return found
