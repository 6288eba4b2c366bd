"""From a domain's configuration to images with objects."""

from __future__ import annotations

from dataclasses import replace

from ..configuration import SCENES, DomainConfig
from ..configuration.data import FILE_KINDS
from ..errors import UserError
from .annotations import ClassNames
from .bad_boxes import BoxCheck
from .coco import read_coco
from .dataset_files import required_path
from .digit_scenes import SCENE_LABELS, load_digit_scenes
from .domains import RawDomain
from .images import IMAGE_SUFFIXES, FileLoader, ImageSet, KeptLoader
from .notes import room_notes, transparency_notes
from .object_columns import objects_of_rows, read_objects_dataset
from .objects import DetectionSet
from .readers import existing_images
from .remote_path import absent, place_of
from .voc import read_voc
from .yolo import read_yolo

__all__ = ["read_detection_domain"]


def read_detection_domain(config: DomainConfig) -> RawDomain[DetectionSet]:
    """Read a detection domain; images are decoded later.

    Args:
        config: Where it is.

    Returns:
        The images with their objects, if any.

    Raises:
        UserError: If something is missing, empty or malformed: one line that names the file, row or key.
    """
    readers = {
        "coco": read_coco,
        "voc": read_voc,
        "yolo": read_yolo,
        "dataset": read_objects_dataset,
        **dict.fromkeys(FILE_KINDS, read_objects_dataset),
        "digit_scenes": _digit_scenes,
        "imagefolder": _unlabelled_folder,
    }
    if config.kind not in readers:
        raise UserError(
            f"domain {config.describe()}: kind {config.kind} has no boxes; for a detector use {', '.join(readers)}"
        )
    raw = readers[config.kind](config)
    paths = [*raw.train.images.paths, *(raw.test.images.paths if raw.test is not None else ())]
    return replace(raw, notes=[*raw.notes, *room_notes(raw.name, paths)])


def _digit_scenes(config: DomainConfig) -> RawDomain[DetectionSet]:
    name = config.name or ""
    if name not in SCENES:
        raise UserError(f"domain {name!r}: digit_scenes has {', '.join(SCENES)}; set name to one of them")
    check = BoxCheck(name)
    names = ClassNames(config, SCENE_LABELS)
    parts = [load_digit_scenes(name, split) for split in ("train", "test")]
    train, test = (objects_of_rows(data, config, name, names, list(SCENE_LABELS), check) for data in parts)
    return RawDomain(name, names.names, _kept(train), _kept(test))


def _kept(drawn: DetectionSet) -> DetectionSet:
    """The same images, each decoded once."""
    return replace(drawn, images=replace(drawn.images, load=KeptLoader(drawn.images.load)))


def _unlabelled_folder(config: DomainConfig) -> RawDomain[DetectionSet]:
    """A folder of images without annotations: a target without a way to evaluate."""
    name = config.describe()

    def folder(path: str) -> DetectionSet:
        place = place_of(path, name)
        if not place.is_dir():
            raise UserError(f"domain {name}: {absent(place)}")
        files = tuple(existing_images(place, name))
        if not files:
            raise UserError(f"domain {name}: the folder {place} holds no images ({', '.join(IMAGE_SUFFIXES)})")
        return DetectionSet(ImageSet(name, len(files), FileLoader(files), None, files))

    test = folder(config.test_path) if config.test_path is not None else None
    train = folder(required_path(config))
    return RawDomain(name, None, train, test, transparency_notes(name, train.images.paths))
