"""Images that are there twice: equal pixels, or the same picture saved anew in another size or quality."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from .reading import SeenImages

__all__ = ["Copies", "find_copies", "near_pairs", "perceptual_hashes"]

RADIUS = 3
"""Bits of 64 by which the hashes of copies may differ. With four bands of 16 bits, at least one band is then equal."""

ALIKE = 0.985
"""Least correlation of the thumbnails of copies: hashes of drawings and digits are often alike by chance."""

_FLAT = 4.0
"""Grey levels by which the thumbnail of a picture must vary (standard deviation) to be told from another one."""


@dataclass(frozen=True)
class Copies:
    """Groups of images that are copies of each other.

    Attributes:
        groups: Each a list of (number of the domain, number of the image in it).
    """

    groups: list[list[tuple[int, int]]]

    def between(self, first: Sequence[tuple[int, int]], second: Sequence[tuple[int, int]]) -> set[tuple[int, int]]:
        """Those of the first images that have a copy, other than themselves, among the second."""
        one, two = set(first), set(second)
        found = set()
        for group in self.groups:
            others = [place for place in group if place in two]
            found |= {p for p in group if p in one and (len(others) > 1 or (others and others[0] != p))}
        return found


def perceptual_hashes(thumbnails: Tensor) -> np.ndarray:
    """Hashes of which few bits change when a picture is saved anew, resized or made brighter.

    Bit k says whether the k-th of the 64 lowest coefficients of the cosine transform of the grey thumbnail is above
    their median (Zauner, "Implementation and benchmarking of perceptual image hash functions", 2010, section 3.2.2).
    The constant coefficient, which is the brightness, always gives 0.

    Args:
        thumbnails: In grey `(n, 32, 32)`.

    Returns:
        `(n,)`, uint64.
    """
    grey = thumbnails.float()
    side = grey.shape[-1]
    place = torch.arange(side, dtype=torch.float32)
    waves = torch.cos(torch.pi / side * (place[None] + 0.5) * torch.arange(8, dtype=torch.float32)[:, None])
    low = (waves @ grey @ waves.T).flatten(1)
    above = (low > low[:, 1:].median(1, keepdim=True).values).numpy()
    above[:, 0] = False
    return np.packbits(above, axis=1).view(">u8").astype(np.uint64).reshape(-1)


def near_pairs(hashes: np.ndarray, thumbnails: Tensor) -> Iterator[tuple[int, int]]:
    """Pairs i < j of copies; pictures of one colour have none.

    Args:
        hashes: As `perceptual_hashes` gives them.
        thumbnails: The pictures they are of.
    """
    grey = thumbnails.float().flatten(1)
    grey = grey - grey.mean(1, keepdim=True)
    spread = grey.norm(dim=1) / grey.shape[1] ** 0.5
    unit = torch.nn.functional.normalize(grey, dim=1)
    usable = np.flatnonzero((spread >= _FLAT).numpy())
    seen: set[tuple[int, int]] = set()
    for band in range(4):
        part = (hashes[usable] >> np.uint64(16 * band)) & np.uint64(0xFFFF)
        order = np.argsort(part, kind="stable")
        ends = np.flatnonzero(np.diff(part[order])) + 1
        for bucket in np.split(usable[order], ends):
            for first, second in _close(hashes, np.sort(bucket)):
                if (first, second) not in seen and float(unit[first] @ unit[second]) >= ALIKE:
                    seen.add((first, second))
                    yield first, second


def _close(hashes: np.ndarray, bucket: np.ndarray) -> Iterator[tuple[int, int]]:
    """Pairs of a bucket whose hashes differ by few bits; a thousand rows at a time, so that memory stays small."""
    if len(bucket) < 2:
        return
    for start in range(0, len(bucket), 1000):
        rows = bucket[start : start + 1000]
        differing = np.bitwise_count(hashes[rows, None] ^ hashes[None, bucket])
        for row, column in np.argwhere(differing <= RADIUS):
            if rows[row] < bucket[column]:
                yield int(rows[row]), int(bucket[column])


def find_copies(seen: Sequence[SeenImages]) -> Copies:
    """Copies within and across domains.

    Turned, mirrored and cropped copies are not found.

    Args:
        seen: The images of every domain.
    """
    places = [(number, index) for number, part in enumerate(seen) for index in part.indices]
    digests = [digest for part in seen for digest in part.digests]
    groups = _Groups(len(places))
    first: dict[bytes, int] = {}
    for number, digest in enumerate(digests):
        groups.join(first.setdefault(digest, number), number)
    # Of equal images one is compared with the rest.
    alone = sorted(first.values())
    thumbnails = torch.cat([part.thumbnails for part in seen])[alone]
    for i, j in near_pairs(perceptual_hashes(thumbnails), thumbnails):
        groups.join(alone[i], alone[j])
    return Copies([[places[number] for number in group] for group in groups.found()])


class _Groups:
    """Disjoint sets of numbers."""

    def __init__(self, count: int) -> None:
        self.parent = list(range(count))

    def root(self, number: int) -> int:
        while self.parent[number] != number:
            self.parent[number] = number = self.parent[self.parent[number]]
        return number

    def join(self, first: int, second: int) -> None:
        one, two = sorted((self.root(first), self.root(second)))
        self.parent[two] = one

    def found(self) -> list[list[int]]:
        """Those with more than one number."""
        sets: dict[int, list[int]] = {}
        for number in range(len(self.parent)):
            sets.setdefault(self.root(number), []).append(number)
        return [members for members in sets.values() if len(members) > 1]
