"""Boxes with their names, drawn such that no name covers another."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

from PIL import Image, ImageDraw

from .sheets import fitted, text_font

__all__ = ["Name", "Rectangle", "draw_boxes", "place_names"]

Name = tuple[str, str]
"""What stands at a box: a text that may be shortened, and what follows it."""

Rectangle = tuple[float, float, float, float]
"""Left, top, right, bottom."""


def draw_boxes(picture: Image.Image, boxes: Sequence[Rectangle], names: Sequence[Name], nothing: str) -> None:
    """Draw boxes with their names into a picture; black and white, whatever they are.

    Args:
        picture: The picture.
        boxes: The boxes, the most important first.
        names: The name of each.
        nothing: What is written where there are no boxes.
    """
    draw = ImageDraw.Draw(picture)
    side = min(picture.size)
    font = text_font(max(12, min(side // 24, 32)))
    most = min(picture.width - 8, max(150, picture.width // 2))  # a long name must not cover the box
    line = max(1, side // 200)
    for left, top, right, bottom in reversed(boxes):  # the first one last, so that it lies on top
        draw.rectangle((left, top, right, bottom), outline="black", width=3 * line)
        if min(right - left, bottom - top) > 6 * line:
            draw.rectangle((left + line, top + line, right - line, bottom - line), outline="white", width=line)
    texts = [fitted(text, font, most, tail) for text, tail in names] or [fitted(nothing, font, most)]
    ascent, descent = font.getmetrics()
    sizes = [(font.getlength(text) + 6, float(ascent + descent + 2)) for text in texts]
    places = place_names(boxes, sizes, picture.size) if boxes else [(4.0, 4.0, 4 + sizes[0][0], 4 + sizes[0][1])]
    for box, place in zip(boxes, places, strict=False):
        if place is not None and _apart(box, place):
            start = (place[0] + place[2]) / 2, (place[1] + place[3]) / 2
            end = min(max(start[0], box[0]), box[2]), min(max(start[1], box[1]), box[3])
            draw.line((*start, *end), fill="white", width=3)
            draw.line((*start, *end), fill="black", width=1)
    for text, place in zip(texts, places, strict=True):
        if place is not None:
            draw.rectangle(place, fill="black", outline="white")
            draw.text((place[0] + 3, place[1] + 1), text, fill="white", font=font)


def place_names(
    boxes: Sequence[Rectangle], sizes: Sequence[tuple[float, float]], picture: tuple[int, int]
) -> list[Rectangle | None]:
    """Where the names of boxes go: next to their box where there is room, and never one on another.

    Args:
        boxes: The boxes, the most important first.
        sizes: Width and height of each name.
        picture: Width and height of the picture.

    Returns:
        The place of each name; None where the picture is full.
    """
    taken: list[Rectangle] = []
    found: list[Rectangle | None] = []
    for box, (width, height) in zip(boxes, sizes, strict=True):
        place = next(
            (p for p in _candidates(box, width, height, picture) if not any(_overlap(p, other) for other in taken)),
            None,
        )
        found.append(place)
        taken += [place] if place is not None else []
    return found


def _candidates(box: Rectangle, width: float, height: float, picture: tuple[int, int]) -> Iterator[Rectangle]:
    """Places inside the picture: above the box, below it, in it, and then all others, the nearest first."""
    left, top, right, bottom = box
    room_x, room_y = picture[0] - 1 - width, picture[1] - 1 - height
    if room_x < 0 or room_y < 0:
        return
    beside = itertools.product((top - height - 1, bottom + 1, top + 2, bottom - height - 2), (left, right - width))
    near = [(x, y) for y, x in beside if 0 <= y <= room_y]
    columns = [room_x * n / 8 for n in range(9)]
    rows = [room_y * n / (room_y // height + 1) for n in range(int(room_y // height) + 2)]
    far = sorted(itertools.product(columns, rows), key=lambda p: (p[0] - left) ** 2 + (p[1] - top) ** 2)
    for x, y in [*near, *far]:
        x = min(max(x, 0.0), room_x)
        yield x, y, x + width, y + height


def _overlap(first: Rectangle, second: Rectangle) -> bool:
    return first[0] <= second[2] and second[0] <= first[2] and first[1] <= second[3] and second[1] <= first[3]


def _apart(box: Rectangle, place: Rectangle) -> bool:
    """Whether a name is more than a pixel or two away from its box."""
    left, top, right, bottom = box
    return not _overlap((left - 3, top - 3, right + 3, bottom + 3), place)
