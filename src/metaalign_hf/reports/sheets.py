"""Helpers for pictures with text: fonts, text lengths, tiles of one height."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import torch.nn.functional as F
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor
from torchvision.transforms.v2.functional import to_pil_image

__all__ = ["canvas", "fitted", "fitted_end", "resized", "text_font", "tile_size"]


@cache
def text_font(size: int) -> ImageFont.FreeTypeFont:
    """DejaVu Sans of matplotlib, which has the letters of many more languages than Pillow's own font."""
    import matplotlib

    return ImageFont.truetype(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf", size)


def fitted(text: str, font: ImageFont.FreeTypeFont, width: float, tail: str = "") -> str:
    """The text cut to fit the width in pixels, followed by the tail."""
    if font.getlength(text + tail) <= width:
        return text + tail
    while text and font.getlength(f"{text}…{tail}") > width:
        text = text[:-1]
    return f"{text}…{tail}"


def fitted_end(text: str, font: ImageFont.FreeTypeFont, width: float) -> str:
    """The text or its last letters, because file names differ at their ends."""
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(f"…{text}") > width:
        text = text[1:]
    return f"…{text}"


def tile_size(image: Tensor, most_high: int, most_wide: int) -> tuple[int, int]:
    """Height and width of an image `(3, H, W)` as large as a place allows, its shape kept."""
    height, width = image.shape[1:]
    scale = min(most_high / height, most_wide / width)
    return max(1, round(height * scale)), max(1, round(width * scale))


def resized(image: Tensor, size: tuple[int, int]) -> Image.Image:
    """An image `(3, H, W)`, uint8, as a picture of the given height and width."""
    smaller = size[0] < image.shape[1]
    large = F.interpolate(image[None].float(), size=list(size), mode="bilinear", align_corners=False, antialias=smaller)
    return to_pil_image(large[0].round().clamp(0, 255).byte())


def canvas(width: int, height: int) -> tuple[Image.Image, ImageDraw.ImageDraw]:
    """An empty sheet."""
    sheet = Image.new("RGB", (width, height), "white")
    return sheet, ImageDraw.Draw(sheet)
