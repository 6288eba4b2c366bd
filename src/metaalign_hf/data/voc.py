"""PASCAL VOC xml."""

from __future__ import annotations

import re
from pathlib import Path
from xml.etree.ElementTree import Element, ParseError

from defusedxml import DefusedXmlException
from defusedxml.ElementTree import fromstring

from ..configuration import DomainConfig
from ..errors import UserError
from ..paths import is_file
from ..text_files import read_text
from .annotations import ClassNames, FoundObject, header_size, packed
from .bad_boxes import BoxCheck
from .boundary import Boundary
from .dataset_files import required_path
from .domains import RawDomain
from .images import IMAGE_SUFFIXES, FileLoader, ImageSet
from .objects import DetectionSet
from .remote_path import absent, fetch_all, place_of

__all__ = ["read_voc"]

_SIDE = re.compile(r"\s*[0-9]{1,9}\s*")


def read_voc(config: DomainConfig) -> RawDomain[DetectionSet]:
    """A domain of a folder with `JPEGImages`, `Annotations` and `ImageSets/Main`, or of several below `path`.

    Raises:
        UserError: If a list, an image or an annotation is missing or malformed.
    """
    name = config.describe()
    root = place_of(required_path(config), name)
    if not root.is_dir():
        raise UserError(f"domain {name}: {absent(root)}")
    check = BoxCheck(name, config.bad_boxes)
    names = ClassNames(config)
    train = _voc_set(root, config.train_split, config, names, check)
    test = _voc_set(root, config.test_split, config, names, check) if config.test_split is not None else None
    if names.fixed:
        return RawDomain(name, names.names, train, test, check.notes())
    if not names.names:
        raise UserError(f"domain {name}: no annotation in {root} has an object; name the classes with classes")
    # Found in the order of the files: sorted, the order depends on the names alone.
    ordered = sorted(names.names)
    train = train.relabelled(names.names, ordered)
    test = test.relabelled(names.names, ordered) if test is not None else None
    return RawDomain(name, ordered, train, test, check.notes())


def _voc_set(root: Path, splits: str, config: DomainConfig, names: ClassNames, check: BoxCheck) -> DetectionSet:
    """The images of one or several lists `[folder/]split`."""
    name = config.describe()
    paths, places, sizes, found = [], [], [], []
    for part in splits.split(","):
        folder, _, split = part.strip().rpartition("/")
        base = root / folder
        boundary = Boundary(base, config)
        listing = base / "ImageSets" / "Main" / f"{split}.txt"
        text = read_text(listing, f"domain {name}: the list")
        stems = [line.split()[0] for line in text.splitlines() if line.strip()]
        if not stems:
            raise UserError(f"domain {name}: the list {listing} is empty")
        seen: set[str] = set()
        fetch_all([base / "Annotations" / f"{stem}.xml" for stem in stems], f"fetching annotations of {name}")
        for row, stem in enumerate(stems, start=1):
            where = f"{listing}, line {row}"
            if stem in seen:
                raise UserError(f"{where}: {stem} is listed twice")
            seen.add(stem)
            candidates = [base / "JPEGImages" / f"{stem}{suffix}" for suffix in IMAGE_SUFFIXES]
            image = next((path for path in candidates if is_file(path)), None)
            if image is None:
                raise UserError(f"{where}: there is no image {base / 'JPEGImages' / stem}.*")
            annotation = base / "Annotations" / f"{stem}.xml"
            boundary.require(image, where)
            boundary.require(annotation, where)
            size, objects = _voc_objects(annotation, image, names, check)
            paths.append(image)
            places.append(where)
            sizes.append(size)
            found.append(objects)
    images = ImageSet(name, len(paths), FileLoader(tuple(paths), tuple(places)), None, tuple(paths))
    return DetectionSet(images, packed(found), tuple(sizes))


def _voc_objects(
    path: Path, image: Path, names: ClassNames, check: BoxCheck
) -> tuple[tuple[int, int], list[FoundObject]]:
    """Size of the image, and its objects."""
    try:
        root: Element = fromstring(path.read_bytes())
    except UserError:
        raise
    except OSError as error:
        raise UserError(f"annotation {path} cannot be read ({error.strerror})") from error
    except (ParseError, DefusedXmlException, ValueError, LookupError) as error:  # of an encoding that is unknown
        raise UserError(f"annotation {path} is not valid VOC xml ({error})") from error
    height, width = root.findtext("size/height"), root.findtext("size/width")
    size = (
        (int(height), int(width))
        if height is not None and width is not None and _SIDE.fullmatch(height) and _SIDE.fullmatch(width)
        else (0, 0)
    )
    if 0 in size:  # some tools leave the size out, or at 0
        size = header_size(image, str(path))
    found = []
    for number, entry in enumerate(root.iter("object")):
        where = f"{path}, object {number + 1}"
        category = (entry.findtext("name") or "").strip()
        if not category:
            check.drop("unknown category", where)
            continue
        label = names.index(category)
        if label is None:
            continue  # a class that `classes` leaves out
        texts = [entry.findtext(f"bndbox/{key}") for key in ("xmin", "ymin", "xmax", "ymax")]
        try:
            left, top, right, bottom = (float(text or "") for text in texts)
        except ValueError as error:
            raise UserError(
                f"{where}: bndbox must hold xmin, ymin, xmax and ymax as numbers, got {str(texts)[:200]}"
            ) from error
        # VOC counts pixels from 1 and includes the last one.
        box = check.clip((left - 1, top - 1, right, bottom), size, where)
        if box is not None:
            found.append((box, label, (entry.findtext("difficult") or "0").strip() == "1"))
    return size, found
