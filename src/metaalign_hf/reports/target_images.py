"""A sheet of target images with what a classifier says of them; no label of theirs is read."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from PIL import Image
from torch import Tensor

from .sheets import canvas, fitted, fitted_end, resized, text_font, tile_size

__all__ = ["Prediction", "draw_target_images", "most_telling"]

_TILE, _MARGIN, _LINE = 150, 8, 18


@dataclass(frozen=True)
class Prediction:
    """What a classifier says of an image.

    Attributes:
        label: The class index.
        confidence: Its probability.
    """

    label: int
    confidence: float


def most_telling(
    before: Sequence[Prediction], after: Sequence[Prediction], most: int = 8
) -> tuple[list[int], list[int], list[int]]:
    """Numbers of the most confident images, of the least confident ones, and of those that changed class.

    Args:
        before: The predictions before adaptation.
        after: The predictions of the same images after it.
        most: Most images of each kind.

    Returns:
        The most confident first; the least confident first; of the changed ones, the most confident first. No image is
        among the most and the least confident.
    """
    order = sorted(range(len(after)), key=lambda n: (-after[n].confidence, n))
    changed = [n for n in order if before[n].label != after[n].label]
    unsure = min(most, len(order) // 2)
    return order[: min(most, len(order) - unsure)], order[::-1][:unsure], changed[:most]


def draw_target_images(
    load: Callable[[int], Tensor],
    before: Sequence[Prediction],
    after: Sequence[Prediction],
    labels: Sequence[str],
    names: Sequence[str] = (),
) -> Image.Image:
    """Rows of target images: the most confident, the least confident, and those that changed their class.

    Args:
        load: Reads the image `(3, H, W)`, uint8, with a number.
        before: The predictions before adaptation.
        after: The predictions of the same images after it.
        labels: Class names.
        names: Names of the images, such as those of their files.

    Returns:
        The picture.
    """
    surest, unsure, changed = most_telling(before, after)
    count = sum(b.label != a.label for b, a in zip(before, after, strict=True))
    rows = [
        ("Most confident after adaptation", surest),
        ("Least confident after adaptation", unsure),
        (f"Changed class by adaptation: {count} of the {len(after)} images looked at", changed),
    ]
    columns = max(4, *(len(numbers) for _, numbers in rows))
    high = 30 + _TILE + (3 if names else 2) * _LINE + 2 * _MARGIN
    empty = 30 + _LINE + _MARGIN
    height = _MARGIN + sum(high if numbers else empty for _, numbers in rows)
    sheet, draw = canvas(_MARGIN + columns * (_TILE + _MARGIN), height)
    large, small = text_font(16), text_font(12)

    def caption(prediction: Prediction, word: str) -> str:
        return fitted(word + labels[prediction.label], small, _TILE, f" {prediction.confidence:.2f}")

    y = _MARGIN
    for title, numbers in rows:
        draw.text((_MARGIN, y), title, fill="black", font=large)
        if not numbers:
            draw.text((_MARGIN, y + 30), "none", fill="black", font=small)
        for column, number in enumerate(numbers):
            x, top = _MARGIN + column * (_TILE + _MARGIN), y + 30
            image = load(number)
            size = tile_size(image, _TILE, _TILE)
            # Aligned to the bottom, next to its text.
            sheet.paste(resized(image, size), (x, top + _TILE - size[0]))
            new, old = after[number], before[number]
            lines = [caption(new, "")] if old.label == new.label else [caption(old, "was "), caption(new, "now ")]
            for line, text in enumerate(lines):
                draw.text((x, top + _TILE + 2 + line * _LINE), text, fill="black", font=small)
            if names:
                text = fitted_end(names[number], small, _TILE)
                draw.text((x, top + _TILE + 2 + len(lines) * _LINE), text, fill="#666666", font=small)
        y += high if numbers else empty
    return sheet
