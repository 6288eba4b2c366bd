"""Endless, reshuffling streams of batches; batch i is a pure function of the seed and i.

So a stream can start at any batch, and resuming has no state to restore.
"""

from __future__ import annotations

import itertools
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, get_worker_info
from transformers import BitImageProcessor

from ..errors import UserError, one_line
from .bad_images import name_of, read_replacing
from .blocks import Blocks, order_of
from .domains import AnnotatedImages
from .images import ImageSet, read_images
from .transforms import AUGMENTATIONS, augment, preprocess

__all__ = [
    "batch_indices",
    "endless",
    "evaluation_batches",
    "even_batch_indices",
    "training_stream",
]


def batch_indices(num_images: int, batch_size: int, seed: int, batch: int, blocks: Blocks | None = None) -> list[int]:
    """Indices of the images in a batch of the endless stream.

    The stream is one random order of all images after another; a batch may end one order and begin the next, so that no
    image is ever left out.

    Args:
        num_images: Number of images N.
        batch_size: Number of images in a batch, at most N.
        seed: Seed of the orders.
        batch: Number of the batch, from 0.
        blocks: The blocks of the images, where they are read in blocks; see `random_order`.

    Returns:
        `batch_size` indices in 0..N-1.
    """
    return _stream_indices(num_images, [seed], batch * batch_size, (batch + 1) * batch_size, blocks)


def even_batch_indices(
    sizes: Sequence[int], batch_size: int, seed: int, batch: int, blocks: Blocks | None = None
) -> list[int]:
    """Indices of the images in a batch that draws evenly from several sources, into their concatenation.

    Row p of the endless stream comes from source p modulo the number of sources; the rows of each source are a stream
    as in `batch_indices`. So no source is ever more than one image ahead, and each shows all its images before it
    repeats one.

    Args:
        sizes: Number of images of each source.
        batch_size: Number of images in a batch.
        seed: Seed of the orders.
        batch: Number of the batch, from 0.
        blocks: The blocks of the concatenation, where images are read in blocks.

    Returns:
        `batch_size` indices.
    """
    count = len(sizes)
    first, last = batch * batch_size, (batch + 1) * batch_size
    starts = [0, *itertools.accumulate(sizes)]
    own: Sequence[Blocks | None] = [None] * count if blocks is None else blocks.parts(sizes)
    rows: dict[int, int] = {}
    for source, size in enumerate(sizes):
        # The rows p of the batch with p % count == source are numbers begin..end-1 of this source's own stream.
        begin, end = ((edge - source + count - 1) // count for edge in (first, last))
        indices = _stream_indices(size, [seed, source + 1], begin, end, own[source]) if end > begin else []
        rows.update({number * count + source: starts[source] + i for number, i in enumerate(indices, begin)})
    return [rows[p] for p in range(first, last)]


def _stream_indices(
    num_images: int, seeds: list[int], first: int, last: int, blocks: Blocks | None = None
) -> list[int]:
    """Images number first..last-1 of the endless stream: one random order of all images after another."""
    found: list[int] = []
    for epoch in range(first // num_images, (last - 1) // num_images + 1):
        order = _order(num_images, (seeds[0], epoch, *seeds[1:]), blocks)
        start = epoch * num_images
        found += order[max(first - start, 0) : last - start].tolist()
    return found


@lru_cache(maxsize=8)  # to draw the order of a million images anew takes as long as to decode some of them
def _order(num_images: int, seed: tuple[int, ...], blocks: Blocks | None) -> np.ndarray:
    """A random order of all images, which nobody may change."""
    return order_of(num_images, blocks, seed).astype(np.int32)


_REFUSED, _DRAWN, _UNREADABLE = "refused", "drawn", "unreadable"
# Beside what a model takes, what a batch says of itself; taken off before anybody sees it.

Make = Callable[[Sequence[int], np.random.Generator], dict[str, Any]]
"""Makes a batch of the images with these indices; a data class rather than a function, so that workers can have it."""

Heard = Callable[[list[str], list[tuple[str, str, str]]], None]
"""Is told the images of a batch, see `endless`."""


@dataclass(frozen=True)
class _Batches(Dataset):
    """Training batches by number."""

    images: AnnotatedImages
    make: Make
    batch_size: int
    seed: int
    rank: int
    world_size: int
    even: bool

    def __getitem__(self, batch: int) -> dict[str, Any]:
        size, parts = self.batch_size * self.world_size, self.images.parts
        if self.even and len(parts) > 1:
            whole = even_batch_indices(parts, size, self.seed, batch, self.images.blocks)
        else:
            whole = batch_indices(len(self.images), size, self.seed, batch, self.images.blocks)
        mine = whole[self.rank * self.batch_size : (self.rank + 1) * self.batch_size]
        try:
            values = self.make(mine, np.random.default_rng([self.seed, 1, batch, self.rank]))
        except UserError as error:
            if get_worker_info() is None:
                raise
            return {_REFUSED: str(error)}  # an exception would come out of a worker with its traceback as its text
        values[_DRAWN] = mine
        if len(parts) > 1:
            ends = list(itertools.accumulate(parts))
            values["source_index"] = torch.tensor([bisect_right(ends, i) for i in mine])
        return values


def endless(
    images: AnnotatedImages,
    make: Make,
    *,
    batch_size: int,
    seed: int,
    start_batch: int = 0,
    num_workers: int = 0,
    rank: int = 0,
    world_size: int = 1,
    even: bool = True,
    heard: Heard | None = None,
) -> Iterator[dict[str, Any]]:
    """An endless stream of training batches; batch i depends on the seed and i alone.

    Args:
        images: The images.
        make: Makes a batch of some of them.
        batch_size: Images in a batch of this process. All processes together take `batch_size * world_size` images of
            the same order, each its own part.
        seed: Seed of order and augmentation.
        start_batch: Number of the first batch; the stream goes on as if it had started at 0.
        num_workers: Loader processes; the batches do not depend on it.
        rank: Number of this process.
        world_size: Number of processes.
        even: Of images that were joined from several domains, take as many from each; else in proportion to their size.
        heard: Called for every batch with the names of its images as they were drawn, and with domain, name and reason
            of each that could not be read and was replaced.

    Returns:
        An iterator over what `make` gives, for joined domains with `source_index` `(B,)`, the number of each row's
        domain.

    Raises:
        UserError: If the domain is smaller than a batch of all processes.
    """
    if batch_size * world_size > len(images):
        raise UserError(
            f"domain {images.name} has {len(images)} training images, fewer than a batch of {batch_size * world_size}; "
            "lower training.batch_size"
        )
    loader = DataLoader(
        _Batches(images, make, batch_size, seed, rank, world_size, even),
        batch_size=None,
        sampler=itertools.count(start_batch),
        num_workers=num_workers,
        persistent_workers=num_workers > 0,
        # A generator of its own: starting the loader must not draw from the random numbers of training.
        generator=torch.Generator().manual_seed(seed),
    )
    return _told(iter(loader), images, heard)


def _told(loader: Iterator[dict[str, Any]], images: AnnotatedImages, heard: Heard | None) -> Iterator[dict[str, Any]]:
    """The batches of a loader, without what they say of themselves."""
    while True:
        try:
            batch = next(loader)
        except (ConnectionError, EOFError, RuntimeError) as error:
            if isinstance(error, RuntimeError) and not is_dead_worker(error):
                raise
            raise dead_worker(error, f"domain {images.name}: ") from error
        if _REFUSED in batch:
            raise UserError(batch[_REFUSED])
        drawn, unreadable = batch.pop(_DRAWN), batch.pop(_UNREADABLE, ())
        if heard is not None:
            names = [name_of(images, index) for index in drawn]
            heard(names, [(images.name, name_of(images, index), reason) for index, reason in unreadable])
        yield batch


def is_dead_worker(error: BaseException) -> bool:
    """Whether an error is torch's of a data worker that died; it may come at any moment, wherever the program is."""
    return isinstance(error, RuntimeError) and "DataLoader worker" in str(error)


def dead_worker(error: BaseException, where: str = "") -> UserError:
    """What to say of it."""
    return UserError(
        f"{where}a data worker died ({one_line(error, first=True)}); if memory ran out, lower data.num_workers or "
        "training.batch_size"
    )


@contextmanager
def told_dead_worker() -> Iterator[None]:
    """Report a data worker that died in one line, wherever torch tells of it.

    Raises:
        UserError: In place of torch's error.
    """
    try:
        yield
    except RuntimeError as error:
        if not is_dead_worker(error):
            raise
        raise dead_worker(error) from error


def read_for_training(
    images: Any, indices: Sequence[int], replace: bool
) -> tuple[list[int], list[Any], dict[str, Any]]:
    """The images of a batch, or the views of each.

    Args:
        images: An `ImageSet` or a `DetectionSet`.
        indices: Indices into it.
        replace: Whether an image that cannot be read is replaced; else it stops the run.

    Returns:
        The indices that were read, their images, and what the batch says of itself.
    """
    if not replace:
        return list(indices), [images[index] for index in indices], {}
    kept, read, bad = read_replacing(images, indices)
    return kept, read, {_UNREADABLE: bad}


@dataclass(frozen=True)
class _Augmented:
    images: ImageSet
    processor: BitImageProcessor
    augmentation: str
    replace: bool

    def __call__(self, indices: Sequence[int], generator: np.random.Generator) -> dict[str, Any]:
        kept, read, said = read_for_training(self.images, indices, self.replace)
        pixel_values = augment(read, self.processor, self.augmentation, generator)
        if self.images.labels is None:
            return {"pixel_values": pixel_values, **said}
        return {"pixel_values": pixel_values, "labels": torch.tensor([self.images.labels[i] for i in kept]), **said}


def training_stream(
    images: ImageSet,
    processor: BitImageProcessor,
    *,
    augmentation: str = "crop_flip",
    replace: bool = False,
    **options: Any,
) -> Iterator[dict[str, Tensor]]:
    """An endless stream of training batches for a classifier.

    Args:
        images: The images; with labels the batches have labels.
        processor: The model's image processor.
        augmentation: As `augment` takes it.
        replace: Whether an image that cannot be read is replaced by another one of its domain; else it is an error.
        **options: As `endless` takes them: `batch_size` and `seed` at least.

    Returns:
        An iterator over dicts with `pixel_values` `(B, 3, S, S)`, for labelled images `labels` `(B,)`, and for joined
        domains `source_index` `(B,)`, the number of each row's domain.

    Raises:
        UserError: If the domain is smaller than a batch, or the augmentation is not one for classifiers.
    """
    if augmentation not in AUGMENTATIONS:
        raise UserError(f"data.augmentation: {augmentation} is for detectors; use {', '.join(AUGMENTATIONS)}")
    return endless(images, _Augmented(images, processor, augmentation, replace), **options)


def evaluation_batches(
    images: ImageSet,
    processor: Any,
    batch_size: int,
    *,
    rank: int = 0,
    world_size: int = 1,
    skip: Callable[[int, UserError], None] | None = None,
) -> Iterator[dict[str, Any]]:
    """All images in order, once; with several processes each takes every `world_size`-th.

    Args:
        images: The images.
        processor: The model's image processor.
        batch_size: Images in a batch.
        rank: Number of this process.
        world_size: Number of processes.
        skip: Called with the number of an image that cannot be read, and why; the image is then left out. By default
            it stops the iteration.

    Returns:
        An iterator over dicts with `pixel_values`, `index`, a list with the number of each image, and, for labelled
        images, `labels`.
    """
    mine = range(rank, len(images), world_size)
    for start in range(0, len(mine), batch_size):
        indices, read = read_images(images, mine[start : start + batch_size], skip)
        if not indices:
            continue
        values: dict[str, Any] = {"pixel_values": preprocess(read, processor), "index": indices}
        if images.labels is not None:
            values["labels"] = torch.tensor([images.labels[i] for i in indices])
        yield values
