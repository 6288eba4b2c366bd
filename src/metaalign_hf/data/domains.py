"""What images with labels and images with objects have in common, and a domain of either."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Generic, Protocol, Self, TypeVar

from torch import Tensor

from .blocks import Blocks

__all__ = ["AnnotatedImages", "Domain", "RawDomain", "S"]


class AnnotatedImages(Protocol):
    """Images of a domain, `(3, H, W)`, uint8, with or without annotations: an `ImageSet` or a `DetectionSet`."""

    @property
    def name(self) -> str:
        """Name of the domain, for errors."""

    @property
    def parts(self) -> tuple[int, ...]:
        """Number of images of each domain, in order, where several were joined; else empty."""

    @property
    def blocks(self) -> Blocks | None:
        """How they are cut into blocks that are read together; None where each is read for itself."""

    @property
    def annotations(self) -> int:
        """How many labels or objects there are."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Tensor: ...

    def absent(self, labels: Sequence[str]) -> list[str]:
        """Those of the class names by which the annotations are numbered that no annotation has."""

    def subset(self, indices: Sequence[int]) -> Self:
        """The images with these indices, and their annotations."""

    def relabelled(self, names: Sequence[str], labels: Sequence[str]) -> Self:
        """Only annotations whose class is among `labels`, numbered by it; `names` is how they are numbered now."""

    def without_annotations(self) -> Self:
        """The same images with no way back to their annotations."""

    def join(self, *others: Self, apart: bool = True) -> Self:
        """These images and then those of the others, annotated if all are.

        Args:
            others: More images of the same kind.
            apart: Whether `parts` says which are whose.
        """


S = TypeVar("S", bound=AnnotatedImages)


@dataclass(frozen=True)
class RawDomain(Generic[S]):
    """A domain as it was read.

    Attributes:
        name: Display name.
        labels: Class names in the order of the class indices; None where there are no annotations.
        train: Training images, with annotations where there are any.
        test: Test images of their own; None where they are to be held out of `train`.
        notes: Data that is not used, or used differently from what one might expect.
        held_out: Indices of `train` to train and to test on, where the domain brings its own fixed split.
    """

    name: str
    labels: list[str] | None
    train: S
    test: S | None = None
    notes: list[str] = field(default_factory=list)
    held_out: tuple[list[int], list[int]] | None = None


@dataclass(frozen=True)
class Domain(Generic[S]):
    """A domain with its split.

    Attributes:
        name: Display name.
        labels: Class names in the order of the class indices; None without annotations.
        train: Training images.
        test: Test images.
        notes: Data that is not used, or used differently from what one might expect.
    """

    name: str
    labels: list[str] | None
    train: S
    test: S
    notes: list[str] = field(default_factory=list)
