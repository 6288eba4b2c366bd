"""From images to pixel values.

Training crops at random and may flip; everything else goes through the image processor that is saved with the model, so
that what is evaluated here is what `pipeline` computes elsewhere.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as F
from transformers import BitImageProcessor

__all__ = ["AUGMENTATIONS", "ImageViews", "augment", "preprocess"]

AUGMENTATIONS = ("none", "crop", "crop_flip")
_SMALL = 3 * 64 * 64
"""Values of an image below which one call that resizes all is faster than one for each; the pixels are the same."""


@dataclass(frozen=True)
class ImageViews:
    """An image in fixed views: view 0 is what the model is evaluated on, views 1.. are augmented.

    Attributes:
        make: Makes the view with this number: pixel values `(3, S, S)`, or features `(D,)` in their place; of an image
            with objects as `data.object_views` says.
        count: How many augmented views there are.
    """

    make: Callable[[int], Any]
    count: int = 0


def preprocess(images: Sequence[Any], processor: Any) -> Tensor:
    """Images as pixel values by the image processor, exactly as `pipeline` makes them of image files.

    Args:
        images: Images `(3, H, W)`, uint8, of any sizes; or `ImageViews`.
        processor: The image processor of an adapted model, or of any native one, timm's among them.

    Returns:
        Pixel values `(B, 3, S, S)`; of views the first one, which may be features `(B, D)`.
    """
    if isinstance(images[0], ImageViews):
        return torch.stack([views.make(0) for views in images])
    if isinstance(processor, BitImageProcessor):
        # Ours: it makes the same tensors of the images as they are, and needs not turn them around first.
        return processor(list(images), input_data_format="channels_first", return_tensors="pt")["pixel_values"]
    # Others need not know this layout, or resize PIL images otherwise than tensors; pipeline hands them PIL images.
    return processor([F.to_pil_image(image) for image in images], return_tensors="pt")["pixel_values"]


def augment(
    images: Sequence[Any], processor: BitImageProcessor, augmentation: str, generator: np.random.Generator
) -> Tensor:
    """Images as pixel values for training.

    Args:
        images: Images `(3, H, W)`, uint8, of any sizes; or `ImageViews`, of whose augmented ones each image takes one.
        processor: The model's image processor, whose sizes and normalisation are used.
        augmentation: `none` (as the processor does), `crop` or `crop_flip`.
        generator: Where every random number comes from.

    Returns:
        Pixel values `(B, 3, S, S)`.
    """
    if augmentation == "none":
        return preprocess(images, processor)
    if isinstance(images[0], ImageViews):
        drawn = generator.integers(1, images[0].count + 1, size=len(images)).tolist()
        return torch.stack([views.make(view) for views, view in zip(images, drawn, strict=True)])
    side, crop = processor.size["height"], processor.crop_size["height"]
    squares: Iterable[Tensor]
    if len({image.shape for image in images}) == 1 and images[0].numel() < _SMALL:
        squares = F.resize(torch.stack(list(images)), [side, side], antialias=True)
    else:
        squares = (F.resize(image, [side, side], antialias=True) for image in images)
    corners = generator.integers(side - crop + 1, size=(len(images), 2)).tolist()
    flips = generator.random(len(images)) < (0.5 if augmentation == "crop_flip" else 0.0)
    batch = torch.empty(len(images), 3, crop, crop)
    # Image by image and in place, in the processor's cache: this is half of the time beside decoding.
    for values, square, (y, x), flip in zip(batch, squares, corners, flips, strict=True):
        part = square[:, y : y + crop, x : x + crop]
        values.copy_(part.flip(-1) if flip else part).div_(255)
        F.normalize(values, processor.image_mean, processor.image_std, inplace=True)
    return batch
