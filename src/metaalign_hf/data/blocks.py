"""Images that are read in blocks, and random orders that have only some blocks open at a time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

__all__ = ["Blocks", "joined", "order_of", "random_order"]


@dataclass(frozen=True)
class Blocks:
    """How a set of images is cut into blocks, each of which is read as a whole.

    Attributes:
        sizes: Number of images in each block, in order.
        buffer: Among as many images a random order mixes at a time.
    """

    sizes: tuple[int, ...]
    buffer: int

    def subset(self, kept: Sequence[int]) -> Blocks | None:
        """The blocks of some of the images; None where they are no longer in the order of the blocks."""
        indices = np.asarray(kept, dtype=np.int64)
        if (np.diff(indices) <= 0).any():
            return None
        found = np.searchsorted(np.cumsum(self.sizes), indices, side="right")
        counts = np.bincount(found, minlength=len(self.sizes))
        return Blocks(tuple(counts[counts > 0].tolist()), self.buffer)

    def parts(self, sizes: Sequence[int]) -> list[Blocks]:
        """The blocks of each of several sets that were joined.

        Args:
            sizes: Number of images of each.
        """
        ends = np.searchsorted(np.cumsum(self.sizes), np.cumsum(sizes)) + 1
        starts = [0, *ends[:-1].tolist()]
        return [Blocks(self.sizes[a:b], self.buffer) for a, b in zip(starts, ends.tolist(), strict=True)]


def joined(sets: Sequence[tuple[int, Blocks | None]]) -> Blocks | None:
    """The blocks of several sets, one after another, each given by its size; None where none has any."""
    buffers = [blocks.buffer for _, blocks in sets if blocks is not None]
    if not buffers:
        return None
    sizes = [(1,) * size if blocks is None else blocks.sizes for size, blocks in sets]
    return Blocks(tuple(size for part in sizes for size in part), max(buffers))


class InBlocks(Protocol):
    """A set of images, perhaps in blocks."""

    @property
    def blocks(self) -> Blocks | None:
        """The blocks; None where each image can be read for itself."""

    def __len__(self) -> int: ...


def random_order(images: InBlocks, seed: Sequence[int] | int) -> np.ndarray:
    """A random order of all images.

    In blocks it is one in which about `buffer` images are open at a time: with blocks in a random order at p = 0..P-1,
    each of its images is drawn a place p + S * u modulo P, where u is uniform in [0, 1) and S is the number of blocks
    that hold `buffer` images. With S = P, or blocks of one image, it is a uniform random order.

    Args:
        images: The images.
        seed: Seed of the order.

    Returns:
        Indices `(N,)`.
    """
    return order_of(len(images), images.blocks, seed)


def order_of(size: int, blocks: Blocks | None, seed: Sequence[int] | int) -> np.ndarray:
    """As `random_order`, for so many images in these blocks."""
    generator = np.random.default_rng(seed)
    if blocks is None:
        return generator.permutation(size)
    count = len(blocks.sizes)
    span = min(count, max(2, -(-blocks.buffer * count // max(size, 1))))
    places = np.repeat(generator.permutation(count), blocks.sizes) + span * generator.random(size)
    return np.argsort(places % count, kind="stable")
