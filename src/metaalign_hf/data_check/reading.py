"""One pass over the images of a domain: what cannot be read, sizes, and what is needed to find copies."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as F

from ..data import Domain
from ..data.bad_images import name_of
from ..data.blocks import random_order
from ..errors import UserError
from ..progress import track

__all__ = ["THUMBNAIL", "DomainImages", "SeenImages", "all_images", "read_all"]

THUMBNAIL = 32
"""Side of the thumbnails, in pixels."""


@dataclass(frozen=True)
class DomainImages:
    """All images of a domain.

    Attributes:
        name: Display name.
        role: What it is in the run: `source`, `target` or `target_labeled`.
        images: Training and then test images, each file once.
        is_test: For every image whether it is a test image; one that is both counts as a test image.
    """

    name: str
    role: str
    images: Any
    is_test: np.ndarray


@dataclass(frozen=True)
class SeenImages:
    """What a pass over the images of a domain found.

    Attributes:
        domain: The domain.
        indices: Which of its images were read, as numbers into `domain.images`.
        sizes: Width and height of each `(n, 2)`.
        thumbnails: Each in grey `(n, 32, 32)`, uint8: a kilobyte an image.
        digests: A digest of the pixels of each; equal for equal images.
        unreadable: Names of the images that could not be read, each with the reason.
        seconds: How long the pass took.
        threads: Threads that it used.
    """

    domain: DomainImages
    indices: list[int]
    sizes: np.ndarray
    thumbnails: Tensor
    digests: list[bytes]
    unreadable: list[tuple[str, str]]
    seconds: float
    threads: int

    @property
    def images_per_second(self) -> float:
        """Images decoded in a second, all threads together."""
        return (len(self.indices) + len(self.unreadable)) / max(self.seconds, 1e-9)


def all_images(domain: Domain[Any], role: str) -> DomainImages:
    """Training and test images of a domain in one set; where both are the same files, each is there once.

    Args:
        domain: The domain.
        role: What it is in the run.
    """
    joined = domain.train.join(domain.test, apart=False)
    is_test = np.arange(len(joined)) >= len(domain.train)
    places: dict[Path, int] = {}
    for index, path in enumerate(getattr(joined, "images", joined).paths):
        first = places.setdefault(path, index)
        is_test[first] |= is_test[index]
    if places and len(places) < len(joined):
        kept = list(places.values())
        joined, is_test = joined.subset(kept), is_test[kept]
    return DomainImages(domain.name, role, joined, is_test)


def read_all(domain: DomainImages, most: int | None) -> SeenImages:
    """Read the images of a domain, on several threads.

    Args:
        domain: The domain.
        most: As many are read at most, evenly a random choice; None reads all.
    """
    total = len(domain.images)
    indices: Sequence[int] = range(total)
    if most is not None and total > most:
        indices = sorted(random_order(domain.images, 0)[:most].tolist())
    threads = min(8, os.cpu_count() or 1)
    kept: list[int] = []
    unreadable: list[tuple[str, str]] = []
    sizes: list[tuple[int, int]] = []
    thumbnails: list[Tensor] = []
    digests: list[bytes] = []
    started = time.perf_counter()
    with ThreadPoolExecutor(threads) as pool:
        title = f"reading {domain.role.replace('_', ' ')} {domain.name}"
        for index, found in track(_in_order(pool, domain.images, indices), title, len(indices)):
            if isinstance(found, UserError):
                unreadable.append((name_of(domain.images, index), str(found)))
                continue
            kept.append(index)
            sizes.append(found[0])
            thumbnails.append(found[1])
            digests.append(found[2])
    return SeenImages(
        domain,
        kept,
        np.array(sizes, dtype=np.int64).reshape(-1, 2),
        torch.stack(thumbnails) if thumbnails else torch.empty(0, THUMBNAIL, THUMBNAIL, dtype=torch.uint8),
        digests,
        unreadable,
        time.perf_counter() - started,
        threads,
    )


def _in_order(pool: ThreadPoolExecutor, images: Any, indices: Sequence[int]) -> Iterator[tuple[int, Any]]:
    """What `_look` says of each image; a few hundred are on their way at a time, so that memory stays small."""
    for start in range(0, len(indices), 256):
        part = indices[start : start + 256]
        yield from zip(part, pool.map(lambda index: _look(images, index), part), strict=True)


def _look(images: Any, index: int) -> tuple[tuple[int, int], Tensor, bytes] | UserError:
    try:
        image = images[index]
    except UserError as error:
        return error
    digest = hashlib.blake2b(image.contiguous().numpy(), digest_size=16, key=str(tuple(image.shape)).encode())
    small = F.resize(F.rgb_to_grayscale(image), [THUMBNAIL, THUMBNAIL], antialias=True)[0]
    return (image.shape[2], image.shape[1]), small, digest.digest()
