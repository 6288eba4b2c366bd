"""A domain pair whose images are seen in fixed views only, so that what is computed of one need be computed once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
from torch import Tensor
from transformers import BitImageProcessor

from .domain_pair import DomainPair
from .images import ImageSet
from .transforms import ImageViews, augment, preprocess

__all__ = ["EVALUATED", "TRAINED", "ViewLoader", "with_fixed_views"]

EVALUATED = ("source_test", "target_test_images", "target_evaluation")
"""Image sets of a pair that are seen as evaluated, and no other way."""

TRAINED = ("source_train", "target_train", "target_labeled")
"""Those that are trained on, which have augmented views as well."""


@dataclass(frozen=True)
class ViewLoader:
    """Loads images in fixed views; a view depends on the numbers of set, image and view alone.

    Attributes:
        load: Loads the images.
        processor: The model's image processor.
        augmentation: As `augment` takes it.
        count: How many augmented views there are.
        number: Number of the image set.
    """

    load: Callable[[int], Tensor]
    processor: BitImageProcessor
    augmentation: str
    count: int
    number: int

    def __call__(self, index: int) -> ImageViews:
        """The views of an image."""
        return ImageViews(partial(self._make, index, self.load(index)), self.count)

    def _make(self, index: int, image: Tensor, view: int) -> Tensor:
        if view == 0:
            return preprocess([image], self.processor)[0]
        generator = np.random.default_rng([6, self.number, index, view])
        return augment([image], self.processor, self.augmentation, generator)[0]


def with_fixed_views(
    pair: DomainPair[ImageSet], processor: BitImageProcessor, augmentation: str, views: int
) -> DomainPair[ImageSet]:
    """The same pair, of which every image is loaded as `ImageViews`.

    Args:
        pair: The pair.
        processor: The model's image processor.
        augmentation: As `augment` takes it; with `none` there is one view only.
        views: How many augmented views each training image has.
    """
    found: dict[str, Any] = {}
    for number, name in enumerate((*EVALUATED, *TRAINED)):
        images = getattr(pair, name)
        if images is not None:
            count = views if name in TRAINED and augmentation != "none" else 0
            found[name] = images.loaded_by(ViewLoader(images.load, processor, augmentation, count, number))
    return replace(pair, **found)
