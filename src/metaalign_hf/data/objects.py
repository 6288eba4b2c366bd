"""Objects in images: their boxes, and sets of images with them."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import UserError
from .blocks import Blocks
from .images import ImageSet

__all__ = ["DetectionSet", "Objects"]


@dataclass(frozen=True)
class Objects:
    """The objects of one image.

    Attributes:
        boxes: `(n, 4)`, float32, x_min, y_min, x_max, y_max in pixels.
        labels: Class index `(n,)`, int64.
        ignored: `(n,)`, boolean: crowds (COCO) and difficult objects (VOC). Not trained on, and in the evaluation
            neither found nor missed.
    """

    boxes: Tensor
    labels: Tensor
    ignored: Tensor

    @classmethod
    def of(cls, boxes: Sequence[Sequence[float]], labels: Sequence[int], ignored: Sequence[bool] = ()) -> Objects:
        """Objects from plain lists; without `ignored` none is."""
        count = len(labels)
        return cls(
            torch.tensor(boxes, dtype=torch.float32).reshape(count, 4),
            torch.tensor(labels, dtype=torch.int64),
            torch.tensor(list(ignored) or [False] * count, dtype=torch.bool),
        )

    def __len__(self) -> int:
        return len(self.labels)

    def where(self, kept: Tensor) -> Objects:
        """The objects that a boolean mask `(n,)` keeps."""
        return Objects(self.boxes[kept], self.labels[kept], self.ignored[kept])


@dataclass(frozen=True)
class DetectionSet:
    """Images of one domain, as uint8 tensors `(3, H, W)`, with or without their objects.

    Attributes:
        images: The images.
        objects: The objects of every image, or None.
        sizes: Height and width that the annotations state for every image, against which the file is checked when it is
            read; None where they state none.
    """

    images: ImageSet
    objects: tuple[Objects, ...] | None = None
    sizes: tuple[tuple[int, int] | None, ...] | None = None

    @property
    def name(self) -> str:
        """Name of the domain, for errors."""
        return self.images.name

    def __len__(self) -> int:
        return len(self.images)

    def __repr__(self) -> str:
        """A few words: the objects may be millions."""
        annotated = "without" if self.objects is None else "with"
        return f"DetectionSet({self.name!r}, {len(self)} images, {annotated} objects)"

    def __getitem__(self, index: int) -> Tensor:
        image = self.images[index]
        stated = None if self.sizes is None else self.sizes[index]
        if stated is not None and tuple(image.shape[1:]) != stated:
            height, width = stated
            where = self.images.paths[index] if self.images.paths else f"{self.name}: image {index}"
            raise UserError(
                f"{where} is {image.shape[2]}x{image.shape[1]} pixels, but its annotations are for {width}x{height}"
            )
        return image

    def subset(self, indices: Sequence[int]) -> DetectionSet:
        """The images with these indices, and their objects."""
        pick = tuple(int(index) for index in indices)
        return DetectionSet(
            self.images.subset(pick),
            None if self.objects is None else tuple(self.objects[i] for i in pick),
            None if self.sizes is None else tuple(self.sizes[i] for i in pick),
        )

    @property
    def load(self) -> Callable[[int], Any]:
        """Reads the image with a given index, whatever size is stated for it."""
        return self.images.load

    @property
    def paths(self) -> Sequence[Path]:
        """File of every image where there are files, else empty."""
        return self.images.paths

    def loaded_by(self, load: Callable[[int], Any]) -> DetectionSet:
        """The same images with their objects, of which something else is loaded, such as their views."""
        return DetectionSet(self.images.loaded_by(load), self.objects)

    @property
    def parts(self) -> tuple[int, ...]:
        """Number of images of each domain, in order, where several were joined; else empty."""
        return self.images.parts

    @property
    def blocks(self) -> Blocks | None:
        """How they are cut into blocks that are read together; None where each is read for itself."""
        return self.images.blocks

    @property
    def annotations(self) -> int:
        """How many objects there are that are trained on and looked for in the evaluation."""
        return sum(int((~entry.ignored).sum()) for entry in self.objects or ())

    def absent(self, labels: Sequence[str]) -> list[str]:
        """Those of the class names by which the objects are numbered that no object has."""
        found = {label for entry in self.objects or () for label in entry.labels.tolist()}
        return [name for number, name in enumerate(labels) if number not in found]

    def without_annotations(self) -> DetectionSet:
        """The same images with no way back to their objects."""
        return DetectionSet(self.images.without_annotations(), None, self.sizes)

    def join(self, *others: DetectionSet, apart: bool = True) -> DetectionSet:
        """These images and then those of the others; with objects if all have them.

        Args:
            others: More images.
            apart: Whether `parts` says which are whose.
        """
        sets = (self, *others)
        objects = [images.objects for images in sets if images.objects is not None]
        sizes = [images.sizes or (None,) * len(images) for images in sets]
        return DetectionSet(
            self.images.join(*(images.images for images in others), apart=apart),
            tuple(itertools.chain(*objects)) if len(objects) == len(sets) else None,
            tuple(itertools.chain(*sizes)) if any(images.sizes for images in sets) else None,
        )

    def relabelled(self, names: Sequence[str], labels: Sequence[str]) -> DetectionSet:
        """The same images with the objects whose class is among `labels`, numbered by it; no image is dropped.

        Args:
            names: Class names by which the objects are numbered now.
            labels: Class names by which they are numbered then.
        """
        assert self.objects is not None
        index = torch.tensor([labels.index(name) if name in labels else -1 for name in names] or [-1])
        found = []
        for entry in self.objects:
            renumbered = Objects(entry.boxes, index[entry.labels], entry.ignored)
            found.append(renumbered.where(renumbered.labels >= 0))
        return DetectionSet(self.images, tuple(found), self.sizes)
