"""Pictures of images with boxes.

Boxes and names are black and white whatever the class, so that no colour says something about it: a class may be called
"red". The name stands at the box.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from PIL import Image
from torch import Tensor

from ..data.objects import Objects
from ..evaluation.detection import Detections
from .boxes import Name, draw_boxes
from .sheets import canvas, resized, text_font, tile_size

__all__ = ["draw_before_after", "draw_objects"]

_MARGIN = 6
_HEIGHT, _WIDEST, _NARROWEST = 260, 520, 150
_NOTHING = "nothing found"


def draw_objects(
    image: Tensor, found: Detections, labels: Sequence[str], least_side: int = 0, nothing: str = _NOTHING
) -> Image.Image:
    """An image with boxes, class names and scores.

    No name covers another one: it goes above or below its box or, where there is no room, to a free place with a line
    to the box. Where the whole picture is full, the objects with the lowest scores have no name.

    Args:
        image: The image `(3, H, W)`, uint8.
        found: What was found in it.
        labels: Class names.
        least_side: Small images are enlarged until their shorter side has this many pixels, so that the names can be
            read.
        nothing: What the picture says where nothing was found.

    Returns:
        The picture.
    """
    scale = max(1.0, least_side / min(image.shape[1:]))
    height, width = image.shape[1:]
    size = round(height * scale), round(width * scale)
    return _drawn(image, size, found.boxes, _names(found, labels), nothing)


def draw_before_after(
    images: Sequence[Tensor],
    before: Sequence[Detections],
    after: Sequence[Detections],
    labels: Sequence[str],
    truth: Sequence[Objects] | None = None,
    threshold: float | None = None,
) -> Image.Image:
    """Rows of the same images: what was found before and after, and where it is known what is there.

    Args:
        images: Images `(3, H, W)`, uint8.
        before: What was found in each before.
        after: What was found in each after.
        labels: Class names.
        truth: The objects of each image; None where they are not known.
        threshold: Least score of what was found, for the headings.

    Returns:
        The picture.
    """
    least = "" if threshold is None else f", score {threshold:g} or more"
    nothing = _NOTHING if threshold is None else f"nothing at {threshold:g} or more"
    rows = [
        (f"{word} adaptation{least}", [(found.boxes, _names(found, labels)) for found in side], nothing)
        for word, side in (("Before", before), ("After", after))
    ]
    if truth is not None:
        there = [(objects.boxes, [(labels[n], "") for n in objects.labels.tolist()]) for objects in truth]
        rows.append(("Ground truth", there, "no object"))
    sizes = [tile_size(image, _HEIGHT, _WIDEST) for image in images]
    widths = [max(_NARROWEST, width) for _, width in sizes]
    title, font = 28, text_font(16)
    wide = max(_MARGIN + sum(width + _MARGIN for width in widths), 360)
    sheet, draw = canvas(wide, len(rows) * (title + _HEIGHT + _MARGIN) + _MARGIN)
    y = _MARGIN
    for heading, row, none in rows:
        draw.text((_MARGIN, y), heading, fill="black", font=font)
        x = _MARGIN
        for image, (boxes, names), size, width in zip(images, row, sizes, widths, strict=True):
            sheet.paste(_drawn(image, size, boxes, names, none, width), (x, y + title))
            x += width + _MARGIN
        y += title + _HEIGHT + _MARGIN
    return sheet


def _names(found: Detections, labels: Sequence[str]) -> list[Name]:
    pairs = zip(found.labels.tolist(), found.scores.tolist(), strict=True)
    return [(labels[label], f" {score:.2f}") for label, score in pairs]


def _drawn(
    image: Tensor, size: tuple[int, int], boxes: Tensor, names: Sequence[Name], nothing: str, least_width: int = 0
) -> Image.Image:
    """The image in the given height and width with boxes; a narrow one with white beside it, for the names."""
    height, width = size
    picture = Image.new("RGB", (max(width, least_width), height), "white")
    picture.paste(resized(image, size), (0, 0))
    scaled = boxes * torch.tensor([width / image.shape[2], height / image.shape[1]]).repeat(2)
    draw_boxes(picture, [_inside(box, width, height) for box in scaled.tolist()], names, nothing)
    return picture


def _inside(box: Sequence[float], width: int, height: int) -> tuple[float, float, float, float]:
    """The part of a box that lies in the picture, at least a pixel."""
    left, top = min(max(box[0], 0.0), width - 2.0), min(max(box[1], 0.0), height - 2.0)
    return left, top, min(max(box[2], left + 1), width - 1.0), min(max(box[3], top + 1), height - 1.0)
