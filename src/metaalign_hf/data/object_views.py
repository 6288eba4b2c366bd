"""Images with objects in fixed views: each augmented version comes with the boxes as they are in it.

A view is a pair of an image `(3, H, W)`, uint8, and its objects, or where these are not known None. What a frozen
backbone gave for it, computed once, is a `ComputedView`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .cached_features import Facts
from .domain_pair import DomainPair
from .fixed_views import EVALUATED, TRAINED
from .object_augmentation import augment_objects
from .objects import DetectionSet, Objects
from .transforms import ImageViews

__all__ = ["ComputedView", "drawn_views", "facts_of", "with_object_views"]


@dataclass(frozen=True)
class ComputedView:
    """What a frozen backbone gave for a view, and what is known of it.

    Attributes:
        outputs: `(D,)`.
        frame: `(2,)`, as in `detection_batch`.
        labels: As in `detection_batch`; None where they are not known.
    """

    outputs: Tensor
    frame: Tensor
    labels: dict[str, Tensor] | None


@dataclass(frozen=True)
class ObjectViewLoader:
    """Loads images with objects in fixed views; a view depends on the numbers of set, image and view alone.

    Attributes:
        images: The images.
        augmentation: As `augment_objects` takes it.
        count: How many augmented views there are.
        number: Number of the image set.
    """

    images: DetectionSet
    augmentation: str
    count: int
    number: int

    @property
    def load(self) -> Callable[[int], Any]:
        """Loads the images."""
        return self.images.load

    def __call__(self, index: int) -> ImageViews:
        """The views of an image."""
        return ImageViews(partial(self._make, index, self.images[index]), self.count)

    def _make(self, index: int, image: Tensor, view: int) -> tuple[Tensor, Objects | None]:
        objects = None if self.images.objects is None else self.images.objects[index]
        if view == 0:
            return image, objects
        seed = int(np.random.default_rng([6, self.number, index, view]).integers(2**31))
        return augment_objects(image, objects, self.augmentation, seed)


def with_object_views(
    pair: DomainPair[DetectionSet], augmentation: str, target_augmentation: str, views: int
) -> DomainPair[DetectionSet]:
    """The same pair, of which every image is loaded as `ImageViews`.

    Args:
        pair: The pair.
        augmentation: As `augment_objects` takes it; with `none` there is one view only.
        target_augmentation: That of the unlabelled target images.
        views: How many augmented views each training image has.
    """
    found: dict[str, Any] = {}
    for number, name in enumerate((*EVALUATED, *TRAINED)):
        images = getattr(pair, name)
        if images is None:
            continue
        used = target_augmentation if name == "target_train" else augmentation
        count = views if name in TRAINED and used != "none" else 0
        # Evaluation compares with the objects as they were annotated, which the set itself has.
        seen = images if name in TRAINED else images.without_annotations()
        found[name] = images.loaded_by(ObjectViewLoader(seen, used, count, number))
    return replace(pair, **found)


def drawn_views(views: Sequence[ImageViews], generator: np.random.Generator) -> list[Any]:
    """Of each image one of its augmented views; where it has none, the image as it is evaluated."""
    if views[0].count == 0:
        return [image.make(0) for image in views]
    drawn = generator.integers(1, views[0].count + 1, size=len(views)).tolist()
    return [image.make(view) for image, view in zip(views, drawn, strict=True)]


def facts_of(pair: DomainPair[DetectionSet], batch_of: Callable[..., dict[str, Any]]) -> Facts:
    """How views are kept beside what a backbone gives for them: frame, number of objects, and class and box of each.

    Args:
        pair: The pair.
        batch_of: Makes a batch of a list of views, as `detection_batch` does.
    """
    trained = [images for name in TRAINED if (images := getattr(pair, name)) is not None]
    most = max((len(entry) for images in trained for entry in images.objects or ()), default=0)
    return Facts(3 + 5 * most, partial(_pack, batch_of, 3 + 5 * most), _unpack)


def _pack(batch_of: Callable[..., dict[str, Any]], width: int, view: Any) -> tuple[Tensor, Tensor]:
    batch = batch_of([view])
    facts = torch.zeros(width)
    facts[:2], facts[2] = batch["frames"][0], -1
    if "labels" in batch:
        labels = batch["labels"][0]
        count = facts[2] = len(labels["class_labels"])
        rows = torch.cat([labels["class_labels"][:, None].float(), labels["boxes"]], 1)
        facts[3 : 3 + 5 * int(count)] = rows.flatten()
    return batch["pixel_values"][0], facts


def _unpack(outputs: Tensor, facts: Tensor) -> ComputedView:
    count, labels = int(facts[2]), None
    if count >= 0:
        rows = facts[3 : 3 + 5 * count].reshape(count, 5)
        labels = {"class_labels": rows[:, 0].long(), "boxes": rows[:, 1:].clone()}
    return ComputedView(outputs, facts[:2].clone(), labels)
