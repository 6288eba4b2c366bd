"""JPEG files by torchvision's decoder, which is faster than Pillow's and gives the same pixels."""

from __future__ import annotations

from functools import lru_cache
from io import BytesIO

import numpy as np
import torch
import torchvision.io
from PIL import ExifTags, Image
from torch import Tensor
from torchvision.transforms.v2 import functional as F

__all__ = ["decoded_jpeg"]


def decoded_jpeg(image: Image.Image) -> Tensor | None:
    """The pixels of a JPEG file that Pillow has opened and not yet decoded.

    Both decoders are libjpeg-turbo with the same settings. Whether the two that are installed agree bit for bit is
    tried once; where they do not, and for what only Pillow knows (turned or CMYK images, damaged files and what to say
    of them), Pillow does it.

    Args:
        image: The opened file.

    Returns:
        The image `(3, H, W)`, uint8, as Pillow would decode and convert it to RGB; None where Pillow must.
    """
    file = getattr(image, "fp", None)
    if file is None or image.format != "JPEG" or image.mode not in ("RGB", "L") or not decoders_agree():
        return None
    if image.getexif().get(ExifTags.Base.Orientation, 1) != 1:
        return None
    file.seek(0)
    return _decode(bytearray(file.read()))


def _decode(data: bytearray) -> Tensor | None:
    try:
        return torchvision.io.decode_jpeg(torch.frombuffer(data, dtype=torch.uint8), torchvision.io.ImageReadMode.RGB)
    except RuntimeError:
        return None
    except (AttributeError, DeprecationWarning):  # torchvision means to drop its decoder one day
        return None


@lru_cache(maxsize=1)
def decoders_agree() -> bool:
    """Whether torchvision and Pillow decode a coloured and a grey JPEG, with subsampled and full colours, alike."""
    pixels = np.random.default_rng(0).integers(256, size=(9, 13, 3), dtype=np.uint8)
    drawn = Image.fromarray(pixels).resize((53, 37), Image.Resampling.BICUBIC)
    for picture, subsampling in ((drawn, 2), (drawn, 1), (drawn, 0), (drawn.convert("L"), 0)):
        file = BytesIO()
        picture.save(file, "JPEG", quality=85, subsampling=subsampling)
        ours = _decode(bytearray(file.getvalue()))
        if ours is None or not torch.equal(ours, F.pil_to_tensor(Image.open(file).convert("RGB"))):
            return False
    return True
