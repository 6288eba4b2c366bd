"""Augmentation of whole images with their boxes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F

from ..errors import UserError
from .objects import Objects

__all__ = [
    "DETECTION_AUGMENTATIONS",
    "augment_objects",
    "check_augmentation",
    "distort_color",
    "weak_augmentation",
]

_TRIES = 10
DETECTION_AUGMENTATIONS = ("none", "crop", "flip", "crop_flip", "crop_flip_color", "strong", "crop_flip_strong")


def augment_objects(
    image: Tensor, objects: Objects | None, augmentation: str, seed: int
) -> tuple[Tensor, Objects | None]:
    """An image and its objects, augmented for training.

    `flip` mirrors half of the images. `crop` takes a window of half to all of each side and keeps the objects whose
    centre stays inside, of which there must be one where there are any. `crop_flip` does both, and `crop_flip_color`
    also shrinks half of the images onto a larger grey canvas and distorts brightness, contrast, saturation and hue.
    `crop_flip_strong` adds to that grey, blurred and noisy images and patches that are cut out. `strong` is what of
    this leaves every object in its place. On an image without known objects any window will do: nothing about the
    target's objects is used.

    Args:
        image: The image `(3, H, W)`, uint8.
        objects: Its objects; None where they are not known.
        augmentation: One of `DETECTION_AUGMENTATIONS`.
        seed: Seed of everything random.

    Returns:
        The image and its objects, those outside dropped and the others clipped.

    Raises:
        UserError: If the augmentation is not one for detectors.
    """
    check_augmentation(augmentation)
    if augmentation == "none":
        return image, objects
    height, width = image.shape[1:]
    known = objects is not None and len(objects) > 0
    boxes = objects.boxes if known and objects is not None else torch.tensor([[0.0, 0.0, width, height]])
    sample = {
        "image": tv_tensors.Image(image),
        "boxes": tv_tensors.BoundingBoxes(boxes, format="XYXY", canvas_size=(height, width)),
        "index": torch.arange(len(boxes)),
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if augmentation == "strong":
            sample = _DISTORT_COLOR(sample)
        elif "color" in augmentation or "strong" in augmentation:
            sample = _DISTORT(sample)
        if "strong" in augmentation:
            sample["image"] = tv_tensors.Image(_strong_colors(sample["image"]))
        if "crop" in augmentation:
            sample = _crop(sample, known)
        if "flip" in augmentation:
            sample = _FLIP(sample)
        sample = _CLEAN(sample)
    if objects is None:
        return sample["image"].as_subclass(Tensor), None
    if not known:
        return sample["image"].as_subclass(Tensor), objects
    index = sample["index"]
    kept = Objects(sample["boxes"].as_subclass(Tensor), objects.labels[index], objects.ignored[index])
    return sample["image"].as_subclass(Tensor), kept


def check_augmentation(name: str) -> None:
    """Refuse an augmentation that is not one for detectors.

    Raises:
        UserError: If it is none.
    """
    if name not in DETECTION_AUGMENTATIONS:
        raise UserError(f"data.augmentation: {name} is not for detectors; use {', '.join(DETECTION_AUGMENTATIONS)}")


_DISTORT_COLOR = v2.RandomPhotometricDistort(p=0.8)
_DISTORT = v2.Compose([_DISTORT_COLOR, v2.RandomZoomOut(fill=114, side_range=(1.0, 2.0), p=0.5)])
_BLUR = v2.Compose([v2.RandomGrayscale(0.2), v2.RandomApply([v2.GaussianBlur(9, (0.1, 2.0))], p=0.5)])
_NOISE = v2.RandomApply([v2.GaussianNoise(sigma=0.05)], p=0.5)
_CUT_OUT = v2.Compose([v2.RandomErasing(p, (0.02, 0.1), value="random") for p in (0.5, 0.3)])
_COLOR = v2.RandomPhotometricDistort(p=1.0)
_FLIP = v2.RandomHorizontalFlip(0.5)
_CLEAN = v2.Compose(
    [v2.ClampBoundingBoxes(), v2.SanitizeBoundingBoxes(min_size=2, labels_getter=lambda sample: sample["index"])]
)


def distort_color(image: Tensor, seed: int) -> Tensor:
    """The image `(3, H, W)`, uint8, with other brightness, contrast, saturation and hue; objects stay in place."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return _COLOR(image)


def _strong_colors(image: Tensor) -> Tensor:
    """The image `(3, H, W)`, uint8, perhaps grey, blurred, noisy and with patches cut out."""
    values = _CUT_OUT(_NOISE(F.to_dtype(_BLUR(image), torch.float32, scale=True)))
    return F.to_dtype(values.clamp(0, 1), torch.uint8, scale=True)


def weak_augmentation(name: str) -> str:
    """The augmentation without what the strong ones add: for images on which a teacher looks for objects."""
    return "none" if name == "strong" else name.removesuffix("_strong")


def _crop(sample: dict[str, Any], known: bool) -> dict[str, Any]:
    """A random window; with known objects one that holds the centre of at least one, or else the whole image.

    Not `v2.RandomIoUCrop`, whose search takes as long for one image as everything else for the batch.
    """
    height, width = sample["image"].shape[-2:]
    boxes = sample["boxes"].as_subclass(Tensor)
    centres = (boxes[:, :2] + boxes[:, 2:]) / 2
    for scale_y, scale_x, down, right in torch.rand(_TRIES, 4).tolist():
        tall, wide = round(height * (0.5 + 0.5 * scale_y)), round(width * (0.5 + 0.5 * scale_x))
        top, left = round((height - tall) * down), round((width - wide) * right)
        low, high = torch.tensor([left, top]), torch.tensor([left + wide, top + tall])
        inside = ((centres >= low) & (centres < high)).all(1)
        if known and not bool(inside.any()):
            continue
        kept = inside if known else torch.ones_like(inside)
        found = tv_tensors.wrap(boxes[kept], like=sample["boxes"])
        return {
            "image": F.crop(sample["image"], top, left, tall, wide),
            "boxes": F.crop(found, top, left, tall, wide),
            "index": sample["index"][kept],
        }
    return sample
