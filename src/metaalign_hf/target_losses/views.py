"""Views of target images for a student: strongly augmented ones, and ones with patches left out."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.transforms import v2

__all__ = ["masked_view", "normalisation", "strong_view"]


def normalisation(processor: Any) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation per channel by which an image processor normalises; 0 and 1 where it does not."""
    if processor is None or not processor.do_normalize:
        return (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
    return tuple(processor.image_mean), tuple(processor.image_std)


def strong_view(
    pixel_values: Tensor, mean: tuple[float, ...], std: tuple[float, ...], operations: int = 2, magnitude: int = 10
) -> Tensor:
    """The same images after RandAugment, each at random by torch's global numbers.

    Source: Cubuk et al., "RandAugment: Practical automated data augmentation with a reduced search space", NeurIPS
    2020; the implementation is torchvision's.

    Args:
        pixel_values: Images `(B, 3, H, W)`, normalised.
        mean: Mean per channel by which they were normalised, in 0..1.
        std: The same for the standard deviation.
        operations: How many operations, one after the other.
        magnitude: How strong they are, 0..30.

    Returns:
        Images `(B, 3, H, W)`, normalised; what an operation moves in from outside is of the mean colour.
    """
    shift, scale = (pixel_values.new_tensor(values).view(3, 1, 1) for values in (mean, std))
    plain = ((pixel_values * scale + shift) * 255).round().clamp(0, 255).to(torch.uint8)
    augment = v2.RandAugment(operations, magnitude, fill=[255 * value for value in mean])
    strong = torch.stack([augment(image) for image in plain])
    return (strong.to(pixel_values.dtype) / 255 - shift) / scale


def masked_view(pixel_values: Tensor, size: int, ratio: float) -> Tensor:
    """The same images with square patches set to the mean colour, at random by torch's global numbers.

    With u uniform in 0..1 for each patch, as in MIC (Hoyer et al., CVPR 2023, equation 3)::

        M = [u > ratio] for each patch of size x size pixels,    x' = M x

    Args:
        pixel_values: Images `(B, 3, H, W)`, normalised.
        size: Side of a patch, in pixels.
        ratio: Share of the patches that is masked, 0..1.

    Returns:
        Images `(B, 3, H, W)`.
    """
    count, _, height, width = pixel_values.shape
    grid = torch.rand(count, 1, -(-height // size), -(-width // size), device=pixel_values.device) > ratio
    kept = F.interpolate(grid.to(pixel_values.dtype), scale_factor=size, mode="nearest")
    return pixel_values * kept[:, :, :height, :width]
