"""Pictures of images with boxes."""

from __future__ import annotations

import colorsys
from collections.abc import Sequence

import torch.nn.functional as F
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor
from torchvision.transforms.v2.functional import to_pil_image

from ..evaluation.detection import Detections

__all__ = ["draw_before_after", "draw_objects"]

_MARGIN = 6


def draw_objects(image: Tensor, found: Detections, labels: Sequence[str], least_side: int = 0) -> Image.Image:
    """An image with boxes, class names and scores.

    Args:
        image: The image `(3, H, W)`, uint8.
        found: What was found in it.
        labels: Class names.
        least_side: Small images are enlarged until their shorter side has so many pixels, so that the names can be
            read.

    Returns:
        The picture.
    """
    scale = max(1.0, least_side / min(image.shape[1:]))
    size = [round(side * scale) for side in image.shape[1:]]
    large = F.interpolate(image[None].float(), size=size, mode="bilinear", align_corners=False)[0]
    picture = to_pil_image(large.round().clamp(0, 255).byte())
    draw = ImageDraw.Draw(picture)
    line = max(2, min(size) // 150)
    font = ImageFont.load_default(size=max(12, min(size) // 18))
    # The best last, so that it lies on top.
    order = range(len(found.scores) - 1, -1, -1)
    for index in order:
        label = int(found.labels[index])
        colour = _colour(label, len(labels))
        left, top, right, bottom = (found.boxes[index] * scale).tolist()
        left, top = max(left, 0.0), max(top, 0.0)
        right, bottom = min(max(right, left + 1), size[1] - 1.0), min(max(bottom, top + 1), size[0] - 1.0)
        draw.rectangle((left, top, right, bottom), outline=colour, width=line)
        text = f"{labels[label]} {float(found.scores[index]):.2f}"
        _, _, wide, high = draw.textbbox((0, 0), text, font=font)
        x = min(left, max(size[1] - wide - 4, 0))
        y = top - high - 2 if top - high - 2 >= 0 else min(bottom, size[0] - high - 2)
        draw.rectangle((x, y, x + wide + 3, y + high + 2), fill=colour)
        draw.text((x + 2, y), text, fill="white", font=font)
    return picture


def draw_before_after(
    images: Sequence[Tensor], before: Sequence[Detections], after: Sequence[Detections], labels: Sequence[str]
) -> Image.Image:
    """Two rows of the same images: what was found before and after.

    Args:
        images: Images `(3, H, W)`, uint8.
        before: What was found in each before.
        after: What was found in each after.
        labels: Class names.

    Returns:
        The picture.
    """
    rows = [
        [draw_objects(image, found, labels, 240) for image, found in zip(images, side, strict=True)]
        for side in (before, after)
    ]
    height = 240
    rows = [[_to_height(picture, height) for picture in row] for row in rows]
    font = ImageFont.load_default(size=18)
    title = 28
    width = _MARGIN + sum(picture.width + _MARGIN for picture in rows[0])
    sheet = Image.new("RGB", (max(width, 200), 2 * (title + height + _MARGIN) + _MARGIN), "white")
    draw = ImageDraw.Draw(sheet)
    y = _MARGIN
    for name, row in zip(("before adaptation", "after adaptation"), rows, strict=True):
        draw.text((_MARGIN, y), name, fill="black", font=font)
        x = _MARGIN
        for picture in row:
            sheet.paste(picture, (x, y + title))
            x += picture.width + _MARGIN
        y += title + height + _MARGIN
    return sheet


def _to_height(picture: Image.Image, height: int) -> Image.Image:
    return picture.resize((max(1, round(picture.width * height / picture.height)), height))


def _colour(label: int, count: int) -> tuple[int, int, int]:
    """A colour of its own for each class, dark enough for white letters."""
    red, green, blue = colorsys.hsv_to_rgb((label / max(count, 1) + 0.6) % 1.0, 0.85, 0.75)
    return round(255 * red), round(255 * green), round(255 * blue)
