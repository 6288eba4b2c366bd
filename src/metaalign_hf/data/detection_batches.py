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
from torchvision.ops import box_convert

from ..errors import UserError
from .images import read_images
from .object_augmentation import augment_objects, check_augmentation
from .object_views import ComputedView, drawn_views
from .objects import DetectionSet, Objects
from .streams import endless, read_for_training
from .transforms import ImageViews

__all__ = ["batch_of_views", "detection_batch", "detection_batches", "detection_stream"]


def detection_batch(
    images: Sequence[Any], objects: Sequence[Objects] | None, processor: Any, boxes_relative_to_image: bool
) -> dict[str, Any]:
    """Images and their objects as a detector takes them.

    Args:
        images: Images `(3, H, W)`, uint8, of any sizes; or `ImageViews`, of which it takes view 0.
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
    if isinstance(images[0], ImageViews):
        viewed = batch_of_views([views.make(0) for views in images], processor, boxes_relative_to_image)
        viewed.pop("labels", None)
        return viewed
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


def batch_of_views(views: Sequence[Any], processor: Any, boxes_relative_to_image: bool) -> dict[str, Any]:
    """Views of images, each with its objects, as a detector takes them.

    Args:
        views: Pairs of an image and its objects; or `ComputedView`s, whose outputs `(B, D)` are the `pixel_values`.
        processor: The detector's image processor.
        boxes_relative_to_image: As `detection_batch` takes it.

    Returns:
        As `detection_batch`.
    """
    if not isinstance(views[0], ComputedView):
        images, objects = zip(*views, strict=True)
        return detection_batch(images, None if objects[0] is None else objects, processor, boxes_relative_to_image)
    batch: dict[str, Any] = {
        "pixel_values": torch.stack([view.outputs for view in views]),
        "frames": torch.stack([view.frame for view in views]),
    }
    if views[0].labels is not None:
        batch["labels"] = [view.labels for view in views]
    return batch


def _labels(objects: Objects, frame: Tensor) -> dict[str, Tensor]:
    kept = objects.where(~objects.ignored)
    boxes = box_convert(kept.boxes, "xyxy", "cxcywh") / frame.flip(0).repeat(2)
    return {"class_labels": kept.labels, "boxes": boxes}


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
        if isinstance(read[0], ImageViews):
            views = drawn_views(read, generator)
            return {**batch_of_views(views, self.processor, self.boxes_relative_to_image), **said}
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
    check_augmentation(augmentation)
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
