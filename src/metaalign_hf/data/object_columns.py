"""Data sets with a column of objects, of the Hub or local, in either layout."""

from __future__ import annotations

import io
from typing import Any

from PIL import Image

from ..configuration import DomainConfig
from ..errors import UserError
from .annotations import ClassNames, FoundObject, corners, packed, upright_size
from .bad_boxes import BoxCheck
from .dataset_files import dataset_split, open_dataset
from .domains import RawDomain
from .objects import DetectionSet
from .streamed_rows import StreamedRows, image_column

__all__ = ["domain_of_rows", "objects_of_rows", "read_objects_dataset"]


def read_objects_dataset(config: DomainConfig) -> RawDomain[DetectionSet]:
    """A domain of a data set with images and objects; a target may lack the objects.

    Raises:
        UserError: If the data set, a split or a column is missing or malformed.
    """
    name = config.describe()
    splits, config = open_dataset(config)
    train = dataset_split(splits, config.train_split, config, name)
    labels = _dataset_classes(train, config, name)
    check = BoxCheck(name, config.bad_boxes)
    names = ClassNames(config, labels or ()) if labels is not None else None
    first = objects_of_rows(train, config, name, names, labels, check)
    test = None
    if config.test_split is not None:
        data = dataset_split(splits, config.test_split, config, name)
        test = objects_of_rows(data, config, name, names, _dataset_classes(data, config, name), check)
    return RawDomain(name, names.names if names is not None else None, first, test, check.notes())


def domain_of_rows(data: Any, config: DomainConfig, name: str) -> RawDomain[DetectionSet]:
    """All rows of a `datasets.Dataset`, with their objects if there are any.

    Args:
        data: The data set.
        config: Names the columns.
        name: What to call it in errors.

    Raises:
        UserError: If a box is malformed.
    """
    labels, check = _dataset_classes(data, config, name), BoxCheck(name, config.bad_boxes)
    names = ClassNames(config, labels) if labels is not None else None
    images = objects_of_rows(data, config, name, names, labels, check)
    return RawDomain(name, labels, images, notes=check.notes())


def _dataset_classes(data: Any, config: DomainConfig, name: str) -> list[str] | None:
    """Class names of the objects column; None where there is no such column."""
    if config.objects_column not in data.column_names:
        return None
    inner, class_label = _object_features(data, config, name)
    if hasattr(class_label, "names"):
        return list(class_label.names)
    found: set[str] = set()
    for row in data[config.objects_column]:
        found.update(str(value) for value in _columns(row, inner, config, name)[1])
    return sorted(found, key=int) if all(text.isdigit() for text in found) else sorted(found)


def _object_features(data: Any, config: DomainConfig, name: str) -> tuple[dict[str, Any], Any]:
    """The features of an object, and that of its category."""
    feature = data.features[config.objects_column]
    inner = getattr(feature, "feature", feature)  # a list of dicts, or a dict of lists
    if not isinstance(inner, dict):
        raise UserError(f"domain {name}: objects_column {config.objects_column!r} holds no boxes, but {feature}")
    category: Any = inner[_category_key(inner, config, name)]
    return inner, getattr(category, "feature", category)


def _category_key(inner: Any, config: DomainConfig, name: str) -> str:
    for key in ("category", "category_id", "label", "labels", "class"):
        if key in inner:
            return key
    raise UserError(
        f"domain {name}: the objects in {config.objects_column!r} have no category; they have {', '.join(inner)}"
    )


def _columns(row: Any, inner: Any, config: DomainConfig, name: str) -> tuple[list[Any], list[Any], list[Any]]:
    """Boxes, categories and crowd flags of a row in either layout."""
    key = _category_key(inner, config, name)
    box_key = next((k for k in ("bbox", "boxes", "box") if k in inner), None)
    if box_key is None:
        raise UserError(
            f"domain {name}: the objects in {config.objects_column!r} have no bbox; they have {list(inner)}"
        )
    crowd_key = next((k for k in ("iscrowd", "is_crowd", "difficult") if k in inner), None)
    if row is None:
        return [], [], []
    if isinstance(row, dict):
        boxes, categories = list(row[box_key] or ()), list(row[key] or ())
        crowds = list(row[crowd_key] or ()) if crowd_key else [False] * len(boxes)
    else:
        boxes, categories = [entry[box_key] for entry in row], [entry[key] for entry in row]
        crowds = [entry[crowd_key] if crowd_key else False for entry in row]
    return boxes, categories, crowds


def objects_of_rows(
    data: Any, config: DomainConfig, name: str, names: ClassNames | None, labels: list[str] | None, check: BoxCheck
) -> DetectionSet:
    """Images and objects of a split; `labels` are the names by which the column numbers its categories.

    Raises:
        UserError: If a box is malformed, or bad and not to be dropped.
    """
    images = image_column(data, config.image_column, name)
    if labels is None or names is None:
        return DetectionSet(images)
    inner, class_label = _object_features(data, config, name)
    sizes = _row_sizes(data, config, name)
    found: list[list[FoundObject]] = []
    for index, row in enumerate(data[config.objects_column]):
        objects = []
        for number, (box, category, crowd) in enumerate(zip(*_columns(row, inner, config, name), strict=True)):
            where = f"domain {name}, row {index}, object {number}"
            if hasattr(class_label, "names"):
                known = isinstance(category, int) and 0 <= category < len(labels)
                text = labels[category] if known else None
            else:
                text = str(category) if category is not None else None
            if text is None:
                check.drop("unknown category", where)
                continue
            label = names.index(text)
            if label is None:
                continue
            clipped = check.clip(corners(box, config.box_format, where), sizes[index], where)
            if clipped is not None:
                objects.append((clipped, label, bool(crowd)))
        found.append(objects)
    return DetectionSet(images, packed(found), tuple(sizes))


def _row_sizes(data: Any, config: DomainConfig, name: str) -> list[tuple[int, int]]:
    """Height and width of every image: from its columns, else from its header, without decoding."""
    if {"height", "width"} <= set(data.column_names):
        return list(zip(data["height"], data["width"], strict=True))
    if isinstance(data, StreamedRows):
        raise UserError(
            f"domain {name}: streaming needs columns height and width to know how large the images are; drop streaming"
        )
    import datasets

    raw = data.select_columns([config.image_column]).cast_column(config.image_column, datasets.Image(decode=False))
    sizes = []
    for index, row in enumerate(raw):
        entry = row[config.image_column]
        try:
            source = io.BytesIO(entry["bytes"]) if entry["bytes"] is not None else entry["path"]
            with Image.open(source) as image:
                sizes.append(upright_size(image))
        except (OSError, ValueError, TypeError) as error:
            raise UserError(f"{name}: row {index}, column {config.image_column}: unreadable image ({error})") from error
    return sizes
