"""Endless, reshuffling streams of batches; batch i is a pure function of the seed and i.

So a stream can start at any batch, and resuming has no state to restore.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from transformers import BitImageProcessor

from ..errors import UserError
from .images import ImageSet
from .transforms import augment, preprocess

__all__ = ["batch_indices", "evaluation_batches", "training_stream"]


def batch_indices(num_images: int, batch_size: int, seed: int, batch: int) -> list[int]:
    """Indices of the images in a batch of the endless stream.

    The stream is one random order of all images after another; a batch may end one order and begin the next, so that no
    image is ever left out.

    Args:
        num_images: Number of images N.
        batch_size: Number of images in a batch, at most N.
        seed: Seed of the orders.
        batch: Number of the batch, from 0.

    Returns:
        `batch_size` indices in 0..N-1.
    """
    first, last = batch * batch_size, (batch + 1) * batch_size
    found: list[int] = []
    for epoch in range(first // num_images, (last - 1) // num_images + 1):
        order = np.random.default_rng([seed, epoch]).permutation(num_images)
        start = epoch * num_images
        found += order[max(first - start, 0) : last - start].tolist()
    return found


@dataclass(frozen=True)
class _Batches(Dataset):
    """Training batches by number."""

    images: ImageSet
    processor: BitImageProcessor
    augmentation: str
    batch_size: int
    seed: int
    rank: int
    world_size: int

    def __getitem__(self, batch: int) -> dict[str, Tensor]:
        whole = batch_indices(len(self.images), self.batch_size * self.world_size, self.seed, batch)
        mine = whole[self.rank * self.batch_size : (self.rank + 1) * self.batch_size]
        generator = np.random.default_rng([self.seed, 1, batch, self.rank])
        pixel_values = augment([self.images[i] for i in mine], self.processor, self.augmentation, generator)
        values = {"pixel_values": pixel_values}
        if self.images.labels is not None:
            values["labels"] = torch.tensor([self.images.labels[i] for i in mine])
        return values


def training_stream(
    images: ImageSet,
    processor: BitImageProcessor,
    *,
    batch_size: int,
    seed: int,
    augmentation: str = "crop_flip",
    start_batch: int = 0,
    num_workers: int = 0,
    rank: int = 0,
    world_size: int = 1,
) -> Iterator[dict[str, Tensor]]:
    """An endless stream of training batches.

    Args:
        images: The images; with labels the batches have labels.
        processor: The model's image processor.
        batch_size: Images in a batch of this process. All processes together take `batch_size * world_size` images of
            the same order, each its own part.
        seed: Seed of order and augmentation.
        augmentation: As `augment` takes it.
        start_batch: Number of the first batch; the stream goes on as if it had started at 0.
        num_workers: Loader processes; the batches do not depend on it.
        rank: Number of this process.
        world_size: Number of processes.

    Returns:
        An iterator over dicts with `pixel_values` `(B, 3, S, S)` and, for labelled images, `labels` `(B,)`.

    Raises:
        UserError: If the domain is smaller than a batch.
    """
    if batch_size * world_size > len(images):
        raise UserError(
            f"domain {images.name} has {len(images)} training images, fewer than a batch of {batch_size * world_size}; "
            "lower training.batch_size"
        )
    batches = _Batches(images, processor, augmentation, batch_size, seed, rank, world_size)
    loader = DataLoader(
        batches,
        batch_size=None,
        sampler=itertools.count(start_batch),
        num_workers=num_workers,
        persistent_workers=num_workers > 0,
        # A generator of its own: starting the loader must not draw from the random numbers of training.
        generator=torch.Generator().manual_seed(seed),
    )
    return iter(loader)


def evaluation_batches(
    images: ImageSet, processor: BitImageProcessor, batch_size: int, *, rank: int = 0, world_size: int = 1
) -> Iterator[dict[str, Tensor]]:
    """All images in order, once; with several processes each takes every `world_size`-th.

    Args:
        images: The images.
        processor: The model's image processor.
        batch_size: Images in a batch.
        rank: Number of this process.
        world_size: Number of processes.

    Returns:
        An iterator over dicts with `pixel_values` and, for labelled images, `labels`.
    """
    mine = range(rank, len(images), world_size)
    for start in range(0, len(mine), batch_size):
        indices = mine[start : start + batch_size]
        values = {"pixel_values": preprocess([images[i] for i in indices], processor)}
        if images.labels is not None:
            values["labels"] = torch.tensor([images.labels[i] for i in indices])
        yield values
