"""From a domain's configuration to labelled images: folders, lists and data sets."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

from ..configuration import DomainConfig
from ..configuration.data import FILE_KINDS
from ..errors import UserError
from ..paths import printable
from .dataset_files import dataset_split, open_dataset, required_path
from .digits import load_digits_images, split_digits
from .domains import RawDomain
from .images import IMAGE_SUFFIXES, FileLoader, ImageSet, TensorLoader, find_images
from .kept_classes import with_chosen_classes
from .lists import WHOLE, class_index, label_names, read_list
from .notes import transparency_notes
from .remote_path import RemotePath, absent, place_of
from .solar import SOLAR_CLASSES, load_solar_cells, split_solar_cells
from .streamed_rows import image_column, row_name

__all__ = ["domain_of_rows", "existing_images", "read_domain"]


def read_domain(config: DomainConfig) -> RawDomain[ImageSet]:
    """Read a domain; images are decoded later.

    Args:
        config: Where it is.

    Returns:
        The images with their labels, if any.

    Raises:
        UserError: If something is missing, empty or malformed: one line that names the file, row or key.
    """
    readers = {"digits": _digits, "solar": _solar, "imagefolder": _imagefolder, "list": _list, "dataset": _dataset}
    readers |= dict.fromkeys(FILE_KINDS, _dataset)
    if config.kind not in readers:
        raise UserError(f"domain {config.describe()}: kind {config.kind} is for detectors; valid: {', '.join(readers)}")
    return with_chosen_classes(config, readers[config.kind](config))


def _digits(config: DomainConfig) -> RawDomain[ImageSet]:
    name = config.name or ""
    images, labels = load_digits_images(name)
    data = ImageSet(name, len(images), TensorLoader(images), labels)
    return RawDomain(name, [str(digit) for digit in range(10)], data, held_out=split_digits(name))


def _solar(config: DomainConfig) -> RawDomain[ImageSet]:
    name = config.name or ""
    return RawDomain(name, list(SOLAR_CLASSES), load_solar_cells(name), held_out=split_solar_cells(name))


def _imagefolder(config: DomainConfig) -> RawDomain[ImageSet]:
    name = config.describe()
    notes: list[str] = []
    classes, train = _read_folder(required_path(config), name, None, notes)
    notes += transparency_notes(name, train.paths)
    if config.test_path is None:
        return RawDomain(name, classes, train, notes=notes)
    test_classes, test = _read_folder(config.test_path, name, classes, notes)
    if (test_classes is None) != (classes is None):
        raise UserError(
            f"domain {name}: test_path {config.test_path} has class folders and path has not, or vice versa"
        )
    return RawDomain(name, classes, train, test, notes=list(dict.fromkeys(notes)))


def _read_folder(path: str, name: str, known: list[str] | None, notes: list[str]) -> tuple[list[str] | None, ImageSet]:
    """Images of a folder: of its class folders, or, where it has none, unlabelled; adds what is not used to `notes`."""
    folder = place_of(path, name)
    if not folder.is_dir():
        raise UserError(f"domain {name}: {absent(folder)}")
    if isinstance(folder, RemotePath):
        folder.search()
    entries = sorted(p for p in folder.iterdir() if not p.name.startswith("."))
    refuse_broken_links(entries, name)
    folders = [p for p in entries if p.is_dir()]
    if not folders:
        files = existing_images(folder, name)
        if not files:
            raise UserError(f"domain {name}: the folder {folder} holds no images and no class folders")
        return None, ImageSet(name, len(files), FileLoader(tuple(files)), None, tuple(files))
    classes = known or [p.name for p in folders]
    loose = [p for p in entries if p.suffix.lower() in IMAGE_SUFFIXES and p.is_file()]
    if loose:
        notes.append(
            f"{name}: {len(loose)} images beside the class folders of {folder} are not used, e.g. "
            f"{printable(loose[0].name)}."
        )
    files, labels = [], []
    for class_folder in folders:
        if printable(class_folder.name) != class_folder.name:
            raise UserError(
                f"domain {name}: the name of the class folder {str(class_folder)!r} is not UTF-8; rename it"
            )
        if class_folder.name not in classes:
            raise UserError(f"domain {name}: the test folder {class_folder} is not a class of the training folder")
        found = existing_images(class_folder, name)
        if not found:
            raise UserError(f"domain {name}: the class folder {class_folder} holds no images; fill or remove it")
        files += found
        labels += [classes.index(class_folder.name)] * len(found)
    return classes, ImageSet(name, len(files), FileLoader(tuple(files)), tuple(labels), tuple(files))


def existing_images(folder: Path, name: str) -> list[Path]:
    """All image files under a folder, sorted.

    Raises:
        UserError: If one is a link to a file that does not exist.
    """
    found = find_images(folder)
    refuse_broken_links(found, name)
    return found


def refuse_broken_links(paths: list[Path], name: str) -> None:
    """Refuse broken links: a disk may be missing, and with it much of the data.

    Raises:
        UserError: If there is one.
    """
    broken = [path for path in paths if path.is_symlink() and not path.exists()]
    if broken:
        others = f" (and {len(broken) - 1} more)" if len(broken) > 1 else ""
        raise UserError(
            f"domain {name}: {broken[0]} is a link to {broken[0].readlink()}, which does not exist{others}; repair or "
            "remove it"
        )


def _list(config: DomainConfig) -> RawDomain[ImageSet]:
    return read_list(required_path(config), config)


def _dataset(config: DomainConfig) -> RawDomain[ImageSet]:
    name = config.describe()
    splits, config = open_dataset(config)
    train = dataset_split(splits, config.train_split, config, name)
    classes, labels, encoded = _dataset_labels(train, config, name)
    images = image_column(train, config.image_column, name, labels)
    if config.test_split is None:
        return RawDomain(name, classes, images)
    test = dataset_split(splits, config.test_split, config, name)
    test_classes, test_labels, _ = _dataset_labels(test, config, name)
    if test_classes is not None and classes is not None and not encoded:
        # Plain values have no fixed order: number the test split's as the training split's.
        missing = sorted(set(test_classes) - set(classes))
        if missing:
            raise UserError(f"domain {name}: class {missing[0]!r} occurs in {config.test_split} only")
        test_labels = tuple(classes.index(test_classes[i]) for i in test_labels or ())
    return RawDomain(name, classes, images, image_column(test, config.image_column, name, test_labels))


def domain_of_rows(data: Any, config: DomainConfig, name: str) -> RawDomain[ImageSet]:
    """All rows of a `datasets.Dataset`, with their labels if there are any.

    Args:
        data: The data set.
        config: Names the columns.
        name: What to call it in errors.

    Raises:
        UserError: If a row has no label.
    """
    classes, labels, _ = _dataset_labels(data, config, name)
    return RawDomain(name, classes, image_column(data, config.image_column, name, labels))


def _dataset_labels(
    data: Any, config: DomainConfig, name: str
) -> tuple[list[str] | None, tuple[int, ...] | None, bool]:
    """Class names, label indices, and whether the data set itself fixes the names' order."""
    if config.label_column not in data.column_names:
        return None, None, False
    feature = data.features[config.label_column]
    values = list(data[config.label_column])
    if any(value is None for value in values):
        row = next(index for index, value in enumerate(values) if value is None)
        raise UserError(f"domain {name}: {row_name(data, row)} has no {config.label_column}")
    if hasattr(feature, "int2str"):
        if config.labels_file is not None:
            raise UserError(f"domain {name}: {config.label_column} has names of its own; drop labels_file")
        if all(value == -1 for value in values):
            return None, None, True
        wrong = next((row for row, value in enumerate(values) if not 0 <= value < len(feature.names)), None)
        if wrong is not None:
            raise UserError(
                f"domain {name}: row {wrong} has {config.label_column} {values[wrong]}, but there are "
                f"{len(feature.names)} classes, 0 to {len(feature.names) - 1}"
            )
        return list(feature.names), tuple(values), True
    texts = {str(value) for value in values}
    if (given := label_names(config)) is not None:
        first = {str(value): row for row, value in reversed(list(enumerate(values)))}
        index = {text: class_index(text, given, config, partial(_row, name, first[text])) for text in texts}
        return given, tuple(index[str(value)] for value in values), True
    names = sorted(texts, key=int) if all(WHOLE.fullmatch(text) for text in texts) else sorted(texts)
    index = {text: i for i, text in enumerate(names)}
    return names, tuple(index[str(value)] for value in values), False


def _row(name: str, row: int) -> str:
    return f"domain {name}: row {row}"
