"""Images of two domains side by side, class by class."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image

from .sheets import canvas, fitted, text_font

__all__ = ["SheetRow", "draw_contact_sheet"]

_MARGIN, _GAP = 8, 28


@dataclass(frozen=True)
class SheetRow:
    """Images of both domains.

    Attributes:
        titles: What stands above the images of each domain, such as a class and its number of images.
        images: The images of each domain, each no larger than a tile.
    """

    titles: tuple[str, str]
    images: tuple[Sequence[Image.Image], Sequence[Image.Image]]


def draw_contact_sheet(names: tuple[str, str], rows: Sequence[SheetRow], tile: int = 96) -> Image.Image:
    """Two columns of images, with a line between them.

    Args:
        names: What stands above each column.
        rows: The images, row by row.
        tile: Side of a tile, in pixels.

    Returns:
        The picture.
    """
    large, small = text_font(16), text_font(12)
    columns = max([3, *(len(images) for row in rows for images in row.images)])
    width = columns * (tile + _MARGIN) - _MARGIN
    starts = (_MARGIN, _MARGIN + width + _GAP)
    top = _MARGIN + 26
    heights = [18 + max([18, *(image.height for images in row.images for image in images)]) + _MARGIN for row in rows]
    sheet, draw = canvas(starts[1] + width + _MARGIN, top + sum(heights))
    for name, x in zip(names, starts, strict=True):
        draw.text((x, _MARGIN), fitted(name, large, width), fill="black", font=large)
    middle = starts[1] - _GAP // 2
    draw.line((middle, _MARGIN, middle, sheet.height - _MARGIN), fill="#bbbbbb")
    for row, height in zip(rows, heights, strict=True):
        for x, title, images in zip(starts, row.titles, row.images, strict=True):
            draw.text((x, top), fitted(title, small, width), fill="#444444", font=small)
            if not images:
                draw.text((x, top + 18), "none", fill="#999999", font=small)
            for number, image in enumerate(images):
                sheet.paste(image, (x + number * (tile + _MARGIN), top + 18))
        top += height
    return sheet
