"""From images with objects to batches for a detector.

One rule: augmentation works on whole images with their boxes; then the detector's own image processor makes pixel
values, exactly as it does in `pipeline`; the boxes are computed here. The processors of DETR and related models would
write boxes relative to the *padded* canvas, so that the same box has other numbers in another batch, whereas these
detectors, which read the mask, were trained to give boxes relative to the image. A detector that reads no mask can only
mean the whole canvas. `frames` says for each image what 0..1 spans, in pixels of the original image, for the way back.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchvision import tv_tensors
from torchvision.ops import box_convert
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F

from ..errors import UserError
from .images import read_images
from .objects import DetectionSet, Objects
from .streams import endless, read_for_training

__all__ = [
    "DETECTION_AUGMENTATIONS",
    "augment_objects",
    "detection_batch",
    "detection_batches",
    "detection_stream",
    "distort_color",
    "weak_augmentation",
]

_TRIES = 10
DETECTION_AUGMENTATIONS = ("none", "crop", "flip", "crop_flip", "crop_flip_color", "strong", "crop_flip_strong")


def detection_batch(
    images: Sequence[Tensor], objects: Sequence[Objects] | None, processor: Any, boxes_relative_to_image: bool
) -> dict[str, Any]:
    """Images and their objects as a detector takes them.

    Args:
        images: Images `(3, H, W)`, uint8, of any sizes.
        objects: The objects of each, or None.
        processor: The detector's image processor.
        boxes_relative_to_image: Whether the detector reads `pixel_mask` (else its boxes span the whole canvas).

    Returns:
        `pixel_values` `(B, 3, H, W)`; `pixel_mask` `(B, H, W)` where something is padded; `frames` `(B, 2)`, height and
        width that a box coordinate of 1 stands for, in pixels of the original image; with objects also `labels`, for
        each image a dict of `class_labels` `(n,)` and `boxes` `(n, 4)` as cx, cy, w, h in 0..1, without ignored ones.

    Raises:
        UserError: If the processor gives images of different sizes without padding them.
    """
    try:
        made = processor(images=list(images), input_data_format="channels_first", return_tensors="pt")
    except ValueError as error:
        raise UserError(
            f"the image processor {type(processor).__name__} cannot put images of {images[0].shape[2]}x"
            f"{images[0].shape[1]} pixels and others into one batch; set data.detector_size"
        ) from error
    pixel_values = made["pixel_values"]
    canvas = torch.tensor(pixel_values.shape[-2:], dtype=torch.float32)
    mask = made.get("pixel_mask")
    if mask is not None and bool(mask.bool().all()):
        mask = None
    frames = torch.tensor([image.shape[1:] for image in images], dtype=torch.float32)
    if mask is not None and not boxes_relative_to_image:
        shown = torch.stack([mask.any(2).sum(1), mask.any(1).sum(1)], 1).float()
        frames = frames * canvas / shown
    batch: dict[str, Any] = {"pixel_values": pixel_values, "frames": frames}
    if mask is not None:
        batch["pixel_mask"] = mask
    if objects is not None:
        batch["labels"] = [_labels(entry, frame) for entry, frame in zip(objects, frames, strict=True)]
    return batch


def _labels(objects: Objects, frame: Tensor) -> dict[str, Tensor]:
    kept = objects.where(~objects.ignored)
    boxes = box_convert(kept.boxes, "xyxy", "cxcywh") / frame.flip(0).repeat(2)
    return {"class_labels": kept.labels, "boxes": boxes}


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
    _check_augmentation(augmentation)
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


def _check_augmentation(name: str) -> None:
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


@dataclass(frozen=True)
class _Augmented:
    images: DetectionSet
    processor: Any
    boxes_relative_to_image: bool
    augmentation: str
    replace: bool

    def __call__(self, indices: Sequence[int], generator: np.random.Generator) -> dict[str, Any]:
        known = self.images.objects
        kept_indices, read, said = read_for_training(self.images, indices, self.replace)
        pairs = [
            augment_objects(
                image,
                None if known is None else known[index],
                self.augmentation,
                int(generator.integers(2**31)),
            )
            for index, image in zip(kept_indices, read, strict=True)
        ]
        objects = None if known is None else [kept for _, kept in pairs if kept is not None]
        batch = detection_batch([image for image, _ in pairs], objects, self.processor, self.boxes_relative_to_image)
        return {**batch, **said}


def detection_stream(
    images: DetectionSet,
    processor: Any,
    boxes_relative_to_image: bool,
    *,
    augmentation: str = "crop_flip",
    replace: bool = False,
    **options: Any,
) -> Iterator[dict[str, Any]]:
    """An endless stream of training batches for a detector.

    Args:
        images: The images; with objects the batches have labels.
        processor: The detector's image processor.
        boxes_relative_to_image: As `detection_batch` takes it.
        augmentation: One of `DETECTION_AUGMENTATIONS`.
        replace: Whether an image that cannot be read is replaced by another one of its domain; else it is an error.
        **options: As `endless` takes them: `batch_size` and `seed` at least.

    Returns:
        An iterator over batches as `detection_batch` makes them.

    Raises:
        UserError: If the domain is smaller than a batch, or the augmentation is not one for detectors.
    """
    _check_augmentation(augmentation)
    return endless(images, _Augmented(images, processor, boxes_relative_to_image, augmentation, replace), **options)


def detection_batches(
    images: DetectionSet,
    processor: Any,
    boxes_relative_to_image: bool,
    batch_size: int,
    *,
    rank: int = 0,
    world_size: int = 1,
    skip: Callable[[int, UserError], None] | None = None,
) -> Iterator[dict[str, Any]]:
    """All images in order, once; with several processes each takes every `world_size`-th.

    A batch ends where the next image comes out in another shape: with padding a detector finds other boxes than in the
    image alone, as `pipeline` gives it.

    Args:
        images: The images.
        processor: The detector's image processor.
        boxes_relative_to_image: As `detection_batch` takes it.
        batch_size: Images in a batch.
        rank: Number of this process.
        world_size: Number of processes.
        skip: Called with the number of an image that cannot be read, and why; the image is then left out. By default
            it stops the iteration.

    Returns:
        An iterator over batches as `detection_batch` makes them, but with `objects`, as they were annotated, in place
        of `labels`, and `index`, the number of each image.
    """
    mine = range(rank, len(images), world_size)
    kept: list[dict[str, Any]] = []
    for index in mine:
        _, read = read_images(images, [index], skip)
        if not read:
            continue
        batch = detection_batch(read, None, processor, boxes_relative_to_image)
        batch["index"] = [index]
        if images.objects is not None:
            batch["objects"] = [images.objects[index]]
        if kept and (len(kept) == batch_size or _shapes(kept[0]) != _shapes(batch)):
            yield _joined(kept)
            kept = []
        kept.append(batch)
    if kept:
        yield _joined(kept)


def _shapes(batch: dict[str, Any]) -> dict[str, Any]:
    return {key: value.shape for key, value in batch.items() if isinstance(value, Tensor)}


def _joined(batches: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Several batches, whose tensors have equal shapes, as one."""
    return {
        key: torch.cat([batch[key] for batch in batches])
        if isinstance(value, Tensor)
        else [entry for batch in batches for entry in batch[key]]
        for key, value in batches[0].items()
    }
