"""COCO json."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..configuration import DomainConfig
from ..errors import UserError
from ..paths import is_file
from ..text_files import read_json
from .annotations import ClassNames, FoundObject, corners, header_size, packed, required_entry, required_id
from .bad_boxes import BoxCheck
from .boundary import Boundary
from .domains import RawDomain
from .images import FileLoader, ImageSet
from .objects import DetectionSet
from .remote_path import fetch_all, place_of

__all__ = ["read_coco"]

_LARGEST_SIDE = 2**31


def read_coco(config: DomainConfig) -> RawDomain[DetectionSet]:
    """A domain of `annotations` (json) and a folder of images; without `path` that of the json file.

    Raises:
        UserError: If the file or an image is missing or malformed.
    """
    name = config.describe()
    if config.annotations is None:
        raise UserError(f"domain {name}: kind coco needs annotations, the json file")
    check = BoxCheck(name, config.bad_boxes)
    document = _read_json(config.annotations, name)
    names = ClassNames(config, _coco_categories(document, config.annotations)[1])
    train = _coco_set(document, config.annotations, config.path, config, names, check)
    test = None
    if config.test_annotations is not None:
        other = _read_json(config.test_annotations, name)
        ClassNames(config, _coco_categories(other, config.test_annotations)[1])
        test = _coco_set(other, config.test_annotations, config.test_path or config.path, config, names, check)
    return RawDomain(name, names.names, train, test, check.notes())


def _read_json(path: str, name: str) -> dict[str, Any]:
    place = place_of(path, name)
    document = read_json(place, f"domain {name}: annotations")
    if not isinstance(document, dict):
        raise UserError(f"{place}: must be a COCO object with images, annotations and categories")
    for key in ("images", "annotations", "categories"):
        if not isinstance(document.get(key), list):
            raise UserError(f"{place}: has no list {key!r}; a COCO file has images, annotations and categories")
    return document


def _coco_categories(document: dict[str, Any], file: str) -> tuple[dict[int | str, str], list[str]]:
    """Name by category id, and the names in the order of the ids."""
    by_id: dict[int | str, str] = {}
    for row, entry in enumerate(document["categories"]):
        where = f"{file}, categories[{row}]"
        number, name = required_id(entry, "id", where), str(required_entry(entry, "name", where))
        if not name.isprintable():
            raise UserError(f"{where}: name {name!r} has signs that cannot be printed; rename it")
        if number in by_id:
            raise UserError(f"{file}, categories[{row}]: id {number} occurs twice")
        by_id[number] = name
    names = [by_id[number] for number in sorted(by_id, key=lambda number: (isinstance(number, str), number))]
    if not names or len(set(names)) != len(names):
        raise UserError(f"{file}: categories must have different names, got {names[:20]}")
    return by_id, names


def _coco_set(
    document: dict[str, Any], file: str, root: str | None, config: DomainConfig, names: ClassNames, check: BoxCheck
) -> DetectionSet:
    folder = place_of(file, config.describe()).parent if root is None else place_of(root, config.describe())
    boundary = Boundary(folder, config, "path")
    by_id, _ = _coco_categories(document, file)
    rows: dict[int | str, int] = {}
    paths, places = [], []
    for row, entry in enumerate(document["images"]):
        where = f"{file}, images[{row}]"
        number = required_id(entry, "id", where)
        if number in rows:
            raise UserError(f"{where}: id {number} is that of images[{rows[number]}] already; image ids must differ")
        rows[number] = row
        path = folder / str(required_entry(entry, "file_name", where))
        boundary.require(path, where)
        if not is_file(path):
            raise UserError(f"{where}: image {path} does not exist; set path to the folder that file names start from")
        paths.append(path)
        places.append(where)
    if not paths:
        raise UserError(f"{file}: has no images")
    entries = document["images"]
    fetch_all(
        [path for path, entry in zip(paths, entries, strict=True) if not _has_size(entry)],
        f"fetching images of {config.describe()} for their sizes",
    )
    sizes = [_stated_size(*found) for found in zip(entries, paths, places, strict=True)]
    found: list[list[FoundObject]] = [[] for _ in paths]
    seen: set[Any] = set()
    for number, entry in enumerate(document["annotations"]):
        where = f"{file}, annotations[{number}]"
        identity = required_id(entry, "id", where) if isinstance(entry, dict) and entry.get("id") is not None else None
        if identity is not None and identity in seen:
            check.drop("second annotation with the same id", where)
            continue
        seen.add(identity)
        image, category = required_id(entry, "image_id", where), required_id(entry, "category_id", where)
        if image not in rows:
            check.drop("annotation of an unknown image", where)
            continue
        if category not in by_id:
            check.drop("unknown category", where)
            continue
        label = names.index(by_id[category])
        if label is None:
            continue  # a class that `classes` leaves out
        box = check.clip(corners(required_entry(entry, "bbox", where), "xywh", where), sizes[rows[image]], where)
        if box is not None:
            found[rows[image]].append((box, label, bool(entry.get("iscrowd", 0))))
    images = ImageSet(config.describe(), len(paths), FileLoader(tuple(paths), tuple(places)), None, tuple(paths))
    return DetectionSet(images, packed(found), tuple(sizes))


def _stated_size(entry: dict[str, Any], path: Path, where: str) -> tuple[int, int]:
    """Height and width as the annotations state them, else as the file's header does."""
    if not _has_size(entry):
        return header_size(path, where)
    height, width = entry["height"], entry["width"]
    if not all(isinstance(side, int) and 0 < side < _LARGEST_SIDE for side in (height, width)):
        told = " and ".join(f"{name} {str(side)[:20]}" for name, side in (("height", height), ("width", width)))
        raise UserError(f"{where}: {told} must be whole numbers above 0")
    return height, width


def _has_size(entry: dict[str, Any]) -> bool:
    return entry.get("height") is not None and entry.get("width") is not None
