"""What a check says of one domain."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from ..data import DetectionSet, Domain
from .reading import SeenImages

__all__ = ["ClassCount", "DomainFacts", "Sizes", "class_counts", "describe_domain", "proportions_apart"]


@dataclass(frozen=True)
class ClassCount:
    """Training and test images, or objects, of a class."""

    train: int
    test: int


@dataclass(frozen=True)
class Sizes:
    """Widths and heights of images, in pixels: the smallest, the median and the largest."""

    width: tuple[int, int, int]
    height: tuple[int, int, int]


@dataclass(frozen=True)
class DomainFacts:
    """What was found of a domain.

    Attributes:
        name: Display name.
        role: `source`, `target` or `target_labeled`.
        train_images: Number of training images.
        test_images: Number of test images.
        counted: What the classes count: `images` or `objects`.
        classes: By name; None without annotations.
        read: Images that were read.
        unreadable: Names of those that could not be, each with the reason.
        sizes: Of those that were read; None if none was.
        images_per_second: Images decoded in a second.
        threads: On so many threads.
        notes: Data that is not used, or used differently from what one might expect.
    """

    name: str
    role: str
    train_images: int
    test_images: int
    counted: str
    classes: dict[str, ClassCount] | None
    read: int
    unreadable: list[tuple[str, str]]
    sizes: Sizes | None
    images_per_second: float
    threads: int
    notes: list[str]

    @property
    def title(self) -> str:
        """Role and name."""
        return f"{self.role.replace('_', ' ')} {self.name}"


def describe_domain(domain: Domain[Any], seen: SeenImages) -> DomainFacts:
    """The facts of a domain.

    Args:
        domain: The domain.
        seen: What a pass over its images found.
    """
    return DomainFacts(
        domain.name,
        seen.domain.role,
        len(domain.train),
        len(domain.test),
        "objects" if isinstance(domain.train, DetectionSet) else "images",
        class_counts(domain),
        len(seen.indices),
        seen.unreadable,
        _sizes(seen.sizes),
        seen.images_per_second,
        seen.threads,
        list(domain.notes),
    )


def class_counts(domain: Domain[Any]) -> dict[str, ClassCount] | None:
    """Training and test images or objects of every class; None without annotations."""
    if domain.labels is None:
        return None
    train, test = (np.bincount(_labels(view), minlength=len(domain.labels)) for view in (domain.train, domain.test))
    return {name: ClassCount(int(train[i]), int(test[i])) for i, name in enumerate(domain.labels)}


def proportions_apart(first: dict[str, ClassCount], second: dict[str, ClassCount]) -> float:
    """Total variation distance of the classes' proportions in two training sets, 0..1, over the classes of both."""
    names = [name for name in first if name in second]
    shares = []
    for classes in (first, second):
        counts = np.array([classes[name].train for name in names], dtype=float)
        shares.append(counts / max(counts.sum(), 1.0))
    return float(0.5 * np.abs(shares[0] - shares[1]).sum())


def _labels(images: Any) -> np.ndarray:
    if isinstance(images, DetectionSet):
        parts = [objects.labels for objects in images.objects or ()]
        return (torch.cat(parts) if parts else torch.empty(0, dtype=torch.long)).numpy()
    return np.asarray(images.labels if images.labels is not None else [], dtype=np.int64)


def _sizes(sizes: np.ndarray) -> Sizes | None:
    if len(sizes) == 0:
        return None

    def three(values: np.ndarray) -> tuple[int, int, int]:
        return int(np.min(values)), int(np.median(values)), int(np.max(values))

    return Sizes(three(sizes[:, 0]), three(sizes[:, 1]))
