"""One rule of preprocessing: resize to a square, crop a square, normalise.

Training crops at random and may flip; everything else goes through the image processor that is saved with the model, so
that what is evaluated here is what `pipeline` computes elsewhere.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as F
from transformers import BitImageProcessor

from ..errors import UserError

__all__ = ["AUGMENTATIONS", "augment", "build_image_processor", "preprocess"]

AUGMENTATIONS = ("none", "crop", "crop_flip")


def build_image_processor(
    image_size: int, resize_size: int, image_mean: Sequence[float], image_std: Sequence[float]
) -> BitImageProcessor:
    """The image processor of a model: resize to a square, centre crop, rescale to 0..1, normalise.

    Args:
        image_size: Side of the crop, in pixels.
        resize_size: Side of the square before the crop, in pixels.
        image_mean: Mean per channel, in 0..1.
        image_std: Standard deviation per channel, in 0..1.

    Returns:
        The processor; it takes images of any size.

    Raises:
        UserError: If the crop does not fit.
    """
    if not 1 <= image_size <= resize_size:
        raise UserError(
            f"data.image_size is {image_size} and data.resize_size {resize_size}: the crop must fit into the square"
        )
    return BitImageProcessor(
        do_resize=True,
        size={"height": resize_size, "width": resize_size},
        resample=2,  # bilinear
        do_center_crop=True,
        crop_size={"height": image_size, "width": image_size},
        do_rescale=True,
        do_normalize=True,
        image_mean=list(image_mean),
        image_std=list(image_std),
        do_convert_rgb=True,
    )


def preprocess(images: Sequence[Tensor], processor: BitImageProcessor) -> Tensor:
    """Images `(3, H, W)`, uint8, of any sizes, as pixel values `(B, 3, S, S)`, by the image processor."""
    return processor(list(images), input_data_format="channels_first", return_tensors="pt")["pixel_values"]


def augment(
    images: Sequence[Tensor], processor: BitImageProcessor, augmentation: str, generator: np.random.Generator
) -> Tensor:
    """Images as pixel values for training.

    Args:
        images: Images `(3, H, W)`, uint8, of any sizes.
        processor: The model's image processor, whose sizes and normalisation are used.
        augmentation: `none` (as the processor does), `crop` or `crop_flip`.
        generator: Where every random number comes from.

    Returns:
        Pixel values `(B, 3, S, S)`.
    """
    if augmentation == "none":
        return preprocess(images, processor)
    side, crop = processor.size["height"], processor.crop_size["height"]
    if len({image.shape for image in images}) == 1:
        squares = F.resize(torch.stack(list(images)), [side, side], antialias=True)  # one call for all is much faster
    else:
        squares = torch.stack([F.resize(image, [side, side], antialias=True) for image in images])
    corners = generator.integers(side - crop + 1, size=(len(images), 2)).tolist()
    flips = generator.random(len(images)) < (0.5 if augmentation == "crop_flip" else 0.0)
    crops = [square[:, y : y + crop, x : x + crop] for square, (y, x) in zip(squares, corners, strict=True)]
    batch = torch.stack([c.flip(-1) if flip else c for c, flip in zip(crops, flips, strict=True)])
    return F.normalize(batch.float() / 255, processor.image_mean, processor.image_std)
