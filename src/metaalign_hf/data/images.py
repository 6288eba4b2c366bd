"""Sets of images, decoded when asked for."""

from __future__ import annotations

import itertools
from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor
from torchvision.transforms.v2 import functional as F

from ..errors import UserError
from ..paths import is_visible, printable, require_readable
from .blocks import Blocks, joined
from .jpeg import decoded_jpeg
from .path_list import picked

__all__ = ["IMAGE_SUFFIXES", "ImageSet", "image_files", "read_image", "read_images", "rgb_tensor"]

_WITH_ALPHA = (".png", ".webp", ".tif", ".tiff", ".gif")
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".gif", ".ppm")


@dataclass(frozen=True)
class ImageSet:
    """Images of one domain, as uint8 tensors `(3, H, W)`, with or without labels.

    Attributes:
        name: Name of the domain, for errors.
        size: Number of images.
        load: Reads the image with a given index.
        labels: Class index of every image, or None.
        paths: File of every image where there are files, else empty.
        parts: Number of images of each domain, in order, where several were joined; else empty.
        blocks: How they are cut into blocks that are read together; None where each is read for itself.
    """

    name: str
    size: int
    load: Callable[[int], Tensor]
    labels: tuple[int, ...] | None = None
    paths: Sequence[Path] = field(default=())
    parts: tuple[int, ...] = ()
    blocks: Blocks | None = None

    def __len__(self) -> int:
        return self.size

    def __repr__(self) -> str:
        """A few words: paths and labels may be millions."""
        return f"ImageSet({self.name!r}, {self.size} images, {'without' if self.labels is None else 'with'} labels)"

    def __getitem__(self, index: int) -> Tensor:
        return self.load(index)

    def subset(self, indices: Sequence[int], labels: Sequence[int] | None = None) -> ImageSet:
        """The images with these indices.

        Args:
            indices: Indices into this set.
            labels: New labels of those images; by default their own, where there are labels.
        """
        kept = tuple(int(index) for index in indices)
        if labels is None and self.labels is not None:
            labels = [self.labels[index] for index in kept]
        paths = picked(self.paths, kept) if self.paths else ()
        load = _Subset(self.load, kept)
        return ImageSet(
            self.name,
            len(kept),
            load,
            None if labels is None else tuple(labels),
            paths,
            _part_sizes(self.parts, kept),
            None if self.blocks is None else self.blocks.subset(kept),
        )

    @property
    def annotations(self) -> int:
        """How many labels there are."""
        return len(self.labels or ())

    def absent(self, labels: Sequence[str]) -> list[str]:
        """Those of the class names by which the images are numbered that no image has."""
        found = set(self.labels or ())
        return [name for number, name in enumerate(labels) if number not in found]

    def relabelled(self, names: Sequence[str], labels: Sequence[str]) -> ImageSet:
        """The images whose class is among `labels`, numbered by it.

        Args:
            names: Class names by which they are numbered now.
            labels: Class names by which they are numbered then.
        """
        assert self.labels is not None
        if list(names) == list(labels):
            return self
        index = {number: labels.index(name) for number, name in enumerate(names) if name in labels}
        kept = [i for i, number in enumerate(self.labels) if number in index]
        return self.subset(kept, [index[self.labels[i]] for i in kept])

    def loaded_by(self, load: Callable[[int], Any]) -> ImageSet:
        """The same images, of which something else is loaded, such as their views."""
        return replace(self, load=load)

    def without_annotations(self) -> ImageSet:
        """The same images with no way back to their labels."""
        return ImageSet(self.name, self.size, self.load, None, self.paths, self.parts, self.blocks)

    def join(self, *others: ImageSet, apart: bool = True) -> ImageSet:
        """These images and then those of the others; labelled if all are.

        Args:
            others: More images.
            apart: Whether `parts` says which are whose.
        """
        sets = (self, *others)
        labels = [images.labels for images in sets if images.labels is not None]
        return ImageSet(
            " + ".join(dict.fromkeys(images.name for images in sets)),
            sum(map(len, sets)),
            _Joined(tuple(images.load for images in sets), tuple(itertools.accumulate(map(len, sets)))),
            tuple(itertools.chain(*labels)) if len(labels) == len(sets) else None,
            tuple(itertools.chain(*(images.paths for images in sets))) if all(i.paths for i in sets) else (),
            tuple(map(len, sets)) if apart else (),
            joined([(len(images), images.blocks) for images in sets]),
        )


def _part_sizes(parts: tuple[int, ...], kept: Sequence[int]) -> tuple[int, ...]:
    """How many of the kept images are of each part; empty where they are no longer in the order of the parts."""
    ends = list(itertools.accumulate(parts))
    found = [bisect_right(ends, index) for index in kept]
    return tuple(found.count(part) for part in range(len(parts))) if found == sorted(found) else ()


@dataclass(frozen=True)
class _Joined:
    loads: tuple[Callable[[int], Tensor], ...]
    ends: tuple[int, ...]

    def __call__(self, index: int) -> Tensor:
        part = bisect_right(self.ends, index)
        return self.loads[part](index - (self.ends[part - 1] if part else 0))


@dataclass(frozen=True)
class _Subset:
    load: Callable[[int], Tensor]
    indices: tuple[int, ...]

    def __call__(self, index: int) -> Tensor:
        return self.load(self.indices[index])


@dataclass(frozen=True)
class FileLoader:
    """Loads image files.

    Attributes:
        paths: The files.
        places: Where each path was named (file and row), for errors; empty where it was found in a folder.
    """

    paths: Sequence[Path]
    places: Sequence[str] = ()

    def __call__(self, index: int) -> Tensor:
        """The image with this index `(3, H, W)`, uint8."""
        return read_image(self.paths[index], self.places[index] if self.places else "")


@dataclass(frozen=True)
class TensorLoader:
    """Serves images `(N, 3, H, W)`, uint8, that are in memory."""

    images: Tensor

    def __call__(self, index: int) -> Tensor:
        """The image with this index `(3, H, W)`, uint8."""
        return self.images[index]


@dataclass(frozen=True)
class KeptLoader:
    """Serves the images of another loader and keeps them decoded: for small images, of which there are few.

    Attributes:
        load: The other loader.
        kept: The images that were asked for, by index.
    """

    load: Callable[[int], Tensor]
    kept: dict[int, Tensor] = field(default_factory=dict, repr=False, compare=False)

    def __call__(self, index: int) -> Tensor:
        """The image with this index `(3, H, W)`, uint8."""
        if index not in self.kept:
            self.kept[index] = self.load(index)
        return self.kept[index]


def read_image(path: Path, place: str = "") -> Tensor:
    """Read an image file as RGB, upright by its EXIF orientation, exactly as `pipeline` of transformers reads it.

    An alpha channel is therefore dropped, not composited: transparent pixels show the colours stored beneath them.
    Images of more than 8 bits a channel are refused: `pipeline` clips them at 255.

    Args:
        path: The file.
        place: Where the file was named, for errors.

    Returns:
        The image `(3, H, W)`, uint8.

    Raises:
        UserError: If the file is missing, no readable image, or one of more than 8 bits a channel.
    """
    where = f"{place}: " if place else ""
    try:
        with Image.open(path) as image:
            return rgb_tensor(image)
    except UserError:
        raise
    except FileNotFoundError as error:
        raise UserError(f"{where}image {printable(path)} does not exist") from error
    except UnidentifiedImageError as error:
        raise UserError(
            f"{where}image {printable(path)} cannot be read: it is not an image, or it is damaged"
        ) from error
    except Exception as error:  # damaged files make Pillow raise nearly anything
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"{where}image {printable(path)} cannot be read: {reason}") from error


def read_images(
    images: Any, indices: Sequence[int], skip: Callable[[int, UserError], None] | None = None
) -> tuple[list[int], list[Tensor]]:
    """The images with these indices.

    Args:
        images: An `ImageSet` or a `DetectionSet`.
        indices: Indices into it.
        skip: Called with the index of an image that cannot be read, and why; the image is then left out.

    Returns:
        The indices that were read, and their images.

    Raises:
        UserError: If an image cannot be read and there is no `skip`.
    """
    kept, read = [], []
    for index in indices:
        try:
            image = images[index]
        except UserError as error:
            if skip is None:
                raise
            skip(index, error)
        else:
            kept.append(index)
            read.append(image)
    return kept, read


def image_files(paths: Sequence[Path]) -> ImageSet:
    """The image files among `paths`, folders searched through, in sorted order.

    Raises:
        UserError: If a path does not exist or is a device or pipe, or there is no image.
    """
    require_readable(paths)
    found: list[Path] = []
    for path in paths:
        found += find_images(path) if path.is_dir() else [path]
    if not found:
        raise UserError(f"no image in {', '.join(map(str, paths))}; known kinds: {', '.join(IMAGE_SUFFIXES)}")
    return ImageSet("images", len(found), FileLoader(tuple(found)), None, tuple(found))


def find_images(folder: Path) -> list[Path]:
    """All image files under a folder, sorted; hidden files are left out, links to files that are gone are not.

    Args:
        folder: The folder, which may be hidden itself.
    """
    return sorted(
        p
        for p in folder.rglob("*")
        if p.suffix.lower() in IMAGE_SUFFIXES and (p.is_file() or p.is_symlink()) and is_visible(p.relative_to(folder))
    )


def transparent_images(paths: Sequence[Path], most: int = 200) -> tuple[int, list[Path]]:
    """How many images were looked at, evenly spaced among `paths`, and which of them have transparent pixels."""
    chosen = paths[:: max(1, -(-len(paths) // most))]
    return len(chosen), [path for path in chosen if path.suffix.lower() in _WITH_ALPHA and _is_transparent(path)]


def _is_transparent(path: Path) -> bool:
    try:
        with Image.open(path) as image:
            if not image.has_transparency_data:
                return False
            return min(image.convert("RGBA").getchannel("A").tobytes()) < 255
    except Exception:
        return False  # told when the image is used


def rgb_tensor(image: Image.Image) -> Tensor:
    """The pixels of an opened image `(3, H, W)`, uint8, upright and in RGB.

    They are those of `transformers.image_utils.load_image`: what is served elsewhere must be what is trained on.

    Args:
        image: The image; of a file that is not decoded yet the faster decoder may do it.

    Raises:
        ValueError: If it has more than 8 bits a channel, or too many pixels.
    """
    most = Image.MAX_IMAGE_PIXELS
    if most is not None and image.width * image.height > most:
        # Pillow itself refuses twice as many, and warns here: a file of a few bytes may unpack to gigabytes.
        raise ValueError(f"it has {image.width} x {image.height} pixels, more than {most}; make it smaller")
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        raise ValueError(
            f"mode {image.mode} has more than 8 bits a channel, which transformers clips at 255; save it with 8 bits"
        )
    pixels = decoded_jpeg(image)
    return F.pil_to_tensor(ImageOps.exif_transpose(image).convert("RGB")) if pixels is None else pixels
