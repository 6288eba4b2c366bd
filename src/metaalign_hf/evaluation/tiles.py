"""Sliced inference: objects that are small in a large image are looked for in tiles of it.

An image larger than a tile is seen as a whole and in tiles that overlap. A box that ends where its tile was cut is left
out: the object is whole in the next tile, or, if it is larger than the overlap, in the whole image. What remains is
merged class by class; a detector whose queries each have one class says one class of an object in tiles too.

Source: Akyon, Altinuc and Temizel, "Slicing Aided Hyper Inference and Fine-Tuning for Small Object Detection", ICIP
2022 (SAHI), which merges cut boxes instead of leaving them out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torchvision.ops import batched_nms, box_iou

from ..data import DetectionSet, ImageSet, Objects, detection_batches
from ..data.images import read_images
from ..errors import UserError
from .detection import Detections, predict_objects

__all__ = ["Window", "merged", "predict_in_tiles", "windows"]

_OVERLAP = 0.25
_SAME_OBJECT = 0.5
_MARGIN = 2.0


class Window(NamedTuple):
    """A part of an image, in pixels."""

    top: int
    left: int
    height: int
    width: int


def windows(height: int, width: int, tile: int) -> list[Window]:
    """The whole image, and where it is larger than a tile, tiles that cover it, evenly spaced.

    Args:
        height: Height of the image.
        width: Width of the image.
        tile: Side of a tile; neighbours overlap by at least a quarter of it.
    """
    whole = [Window(0, 0, height, width)]
    if max(height, width) <= tile:
        return whole
    places = [
        Window(top, left, min(tile, height), min(tile, width))
        for top in _starts(height, tile)
        for left in _starts(width, tile)
    ]
    return whole + places


def _starts(length: int, tile: int) -> list[int]:
    if length <= tile:
        return [0]
    step = tile * (1 - _OVERLAP)
    gaps = max(1, int(-(-(length - tile) // step)))
    return [round(number * (length - tile) / gaps) for number in range(gaps + 1)]


def merged(
    found: Sequence[tuple[Window, Detections]], height: int, width: int, most: int = 100, one_class: bool = False
) -> Detections:
    """What was found in the parts of an image, in the pixels of the image.

    A box is left out where a surer one of its class covers it (IoU above one half).

    Args:
        found: The parts, and what was found in each, in pixels of the part.
        height: Height of the image.
        width: Width of the image.
        most: Most objects in the image.
        one_class: Whether each query of the detector has one class. Then a box is also left out where a surer one of
            another class, from another part, covers it: the image as a whole would have one of the two. Boxes of one
            part are never compared across classes, since they are of different queries.
    """
    boxes, scores, labels, parts = [], [], [], []
    for number, ((top, left, tall, wide), part) in enumerate(found):
        place = part.boxes + torch.tensor([left, top, left, top], dtype=part.boxes.dtype)
        cut = torch.zeros(len(place), dtype=torch.bool)
        for column, edge, end in ((0, left, 0), (1, top, 0), (2, left + wide, width), (3, top + tall, height)):
            if edge != end:
                cut |= (place[:, column] - edge).abs() < _MARGIN
        boxes.append(place[~cut])
        scores.append(part.scores[~cut])
        labels.append(part.labels[~cut])
        parts.append(torch.full_like(labels[-1], number))
    place, score, label = torch.cat(boxes), torch.cat(scores), torch.cat(labels)
    if len(found) == 1:  # within a part a detector of this family says each object once
        return Detections(place, score, label)
    kept = batched_nms(place.float(), score.float(), label, _SAME_OBJECT)
    if one_class:
        kept = kept[_surest(place[kept], torch.cat(parts)[kept], most)]
    kept = kept[:most]
    return Detections(place[kept], score[kept], label[kept])


def _surest(boxes: Tensor, parts: Tensor, most: int) -> list[int]:
    """Of boxes, the surest first, the first `most` that no box kept before them, from another part, covers."""
    kept: list[int] = []
    for index in range(len(boxes)):
        if len(kept) == most:
            break
        others = [other for other in kept if parts[other] != parts[index]]
        if not others or not bool((box_iou(boxes[index, None], boxes[others]) > _SAME_OBJECT).any()):
            kept.append(index)
    return kept


@dataclass(frozen=True)
class _Part:
    """Reads parts of one image that is decoded already."""

    image: Tensor
    places: tuple[Window, ...]

    def __call__(self, index: int) -> Tensor:
        """The part with this number `(3, h, w)`, uint8."""
        top, left, height, width = self.places[index]
        return self.image[:, top : top + height, left : left + width]


def predict_in_tiles(
    model: nn.Module,
    probabilities: Any,
    images: DetectionSet,
    processor: Any,
    boxes_relative_to_image: bool,
    batch_size: int,
    tile: int,
    *,
    threshold: float = 0.0,
    skip: Callable[[int, UserError], None] | None = None,
) -> Iterator[tuple[int, Detections, Objects | None]]:
    """As `predict_objects`, with every image seen as a whole and in tiles.

    Args:
        model: As `predict_objects` takes it.
        probabilities: As `predict_objects` takes it.
        images: The images.
        processor: The detector's image processor.
        boxes_relative_to_image: As `detection_batch` takes it.
        batch_size: Parts of an image in a batch.
        tile: Side of a tile in pixels.
        threshold: Least score of an object; 0 for average precision.
        skip: As `read_images` takes it.

    Yields:
        The number of the image, what was found, and its objects where they are known.
    """
    for index in range(len(images)):
        _, read = read_images(images, [index], skip)
        if not read:
            continue
        height, width = read[0].shape[1:]
        places = tuple(windows(height, width, tile))
        parts = DetectionSet(ImageSet(images.name, len(places), _Part(read[0], places)))
        batches = detection_batches(parts, processor, boxes_relative_to_image, batch_size)
        found = [
            (places[number], part)
            for number, part, _ in predict_objects(model, probabilities, batches, threshold=threshold)
        ]
        objects = None if images.objects is None else images.objects[index]
        yield index, merged(found, height, width, one_class=probabilities.one_class), objects
