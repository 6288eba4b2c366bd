"""What a frozen backbone or its frozen stages give, computed once for each image and view, in a memory-mapped file.

The file is one of safetensors, with a tensor `features` `(R, D)`: a row for each view of each image. Where a view is
more than its pixels there is another one, `facts` `(R, F)`, of the numbers that belong to it, such as the boxes in it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor

from ..errors import UserError, one_line
from .domain_pair import DomainPair
from .fixed_views import EVALUATED, TRAINED
from .images import _Subset
from .remote_path import RemotePath
from .transforms import ImageViews

__all__ = ["CachePlan", "Facts", "open_cache", "plan_cache", "with_features"]

_SAMPLED = 256


@dataclass(frozen=True)
class Facts:
    """How a view that is more than its pixels is kept.

    Attributes:
        width: How many numbers are kept beside its features.
        pack: Its pixel values `(3, H, W)` and those numbers `(F,)`, float32.
        unpack: What takes its place, from its features `(D,)` and the numbers.
    """

    width: int
    pack: Callable[[Any], tuple[Tensor, Tensor]]
    unpack: Callable[[Tensor, Tensor], Any]


@dataclass(frozen=True)
class CachePlan:
    """What is computed, row by row.

    Attributes:
        pair: The pair in fixed views.
        units: For each row its image set, the index of the image in it, and the view.
        rows: By image set, the row of each image and view, `(N, 1 + count)`; -1 for what is never asked for.
        checksums: Of what the features depend on.
        facts: How views are kept that are more than their pixels; None where all are pixels.
    """

    pair: DomainPair[Any]
    units: list[tuple[str, int, int]]
    rows: dict[str, Tensor]
    checksums: dict[str, str]
    facts: Facts | None = None

    @property
    def width(self) -> int:
        """Numbers beside the features of a view."""
        return 0 if self.facts is None else self.facts.width


def plan_cache(
    pair: DomainPair[Any],
    checksums: dict[str, str],
    facts: Facts | None = None,
    only_augmented: Sequence[str] = ("source_train",),
) -> CachePlan:
    """Plan the rows. An image that several sets hold has one row as evaluated.

    Args:
        pair: The pair, as `with_fixed_views` or `with_object_views` returns it.
        checksums: Of the model and what else the features depend on, by name; those of the images are added.
        facts: How views are kept that are more than their pixels.
        only_augmented: Image sets of which no view is asked for but the augmented ones, where there are any.
    """
    units: list[tuple[str, int, int]] = []
    rows: dict[str, Tensor] = {}
    known: dict[tuple[int, int, bool], int] = {}
    digest = hashlib.sha256()
    for name in (*EVALUATED, *TRAINED):
        images = getattr(pair, name)
        if images is None:
            continue
        loader: Any = images.load
        digest.update(f"{name} {loader.augmentation} {loader.count} {_content(images)}\n".encode())
        # Boxes are kept with the views that are trained on, and those alone.
        objects = getattr(images, "objects", None) if name in TRAINED else None
        for entry in objects or ():
            digest.update(b"".join(part.numpy().tobytes() for part in (entry.boxes, entry.labels, entry.ignored)))
        found = rows[name] = torch.full((len(images), 1 + loader.count), -1)
        for index in range(len(images)):
            if name not in only_augmented or loader.count == 0:
                key = (*_origin(loader.load, index), objects is not None)
                if key not in known:
                    known[key] = len(units)
                    units.append((name, index, 0))
                found[index, 0] = known[key]
            for view in range(1, 1 + loader.count):
                found[index, view] = len(units)
                units.append((name, index, view))
    return CachePlan(pair, units, rows, {**checksums, "images and views": digest.hexdigest()}, facts)


def _origin(load: Any, index: int) -> tuple[int, int]:
    """An image by what loads it, however many subsets it was chosen through."""
    while isinstance(load, _Subset):
        load, index = load.load, load.indices[index]
    return id(load), index


def _content(images: Any) -> str:
    """Checksum of a set: path, size and time of every file; of images without files the pixels of some of them."""
    digest = hashlib.sha256(str(len(images)).encode())
    for path in images.paths:
        if isinstance(path, RemotePath):
            digest.update(f"{path} {path.version}\n".encode())
            continue
        try:
            found = path.stat()
            digest.update(f"{path.absolute()} {found.st_size} {found.st_mtime_ns}\n".encode())
        except OSError as error:
            digest.update(f"{path} {error.errno}\n".encode())
    if not images.paths:
        for index in range(0, len(images), max(1, len(images) // _SAMPLED)):
            try:
                digest.update(images.load.load(index).numpy().tobytes())
            except UserError as error:
                digest.update(str(error).encode())
    return digest.hexdigest()


def open_cache(path: Path, plan: CachePlan) -> dict[str, Tensor]:
    """The features `(R, D)` of a file, and the facts `(R, F)` where it has any, memory-mapped.

    Raises:
        UserError: If the file is damaged, or of other images, another backbone or another image processor.
    """
    try:
        with safe_open(path, framework="pt") as file:
            found = file.metadata() or {}
            shape = file.get_slice("features").get_shape()
    except (SafetensorError, OSError, ValueError) as error:
        raise UserError(f"{path} is damaged ({one_line(error)}); delete it to compute the features anew") from error
    other = [name for name, value in plan.checksums.items() if found.get(name) != value]
    if other or shape[0] != len(plan.units):
        raise UserError(
            f"{path} holds features of another run: not the same {', '.join(other) or 'length'}; delete it to compute "
            "them anew, or name another data.cache_folder"
        )
    return load_file(path)


@dataclass(frozen=True)
class FeatureLoader:
    """Loads the features of images in the place of their pixels.

    Attributes:
        features: All features `(R, D)`, memory-mapped.
        facts: The numbers beside them `(R, F)`; None where there are none.
        unpack: As in `Facts`.
        rows: The row of each image and view.
        domain: Name of the domain, for errors.
        as_stored: Whether features of fewer bits than float32 stay so.
    """

    features: Tensor
    facts: Tensor | None
    unpack: Callable[[Tensor, Tensor], Any] | None
    rows: Tensor
    domain: str
    as_stored: bool

    def __call__(self, index: int) -> ImageViews:
        """The views of an image, as features `(D,)`, in their type or in float32 or more."""
        rows: list[int] = self.rows[index].tolist()
        if bool(self.features[rows[-1], 0].isnan()):
            raise UserError(f"{self.domain}: image {index} could not be read when its features were computed")
        return ImageViews(_Rows(self, rows), len(rows) - 1)


@dataclass(frozen=True)
class _Rows:
    loader: FeatureLoader
    rows: Sequence[int]

    def __call__(self, view: int) -> Any:
        loader, number = self.loader, self.rows[view]
        row = loader.features[number]
        if not loader.as_stored and row.dtype in (torch.bfloat16, torch.float16):
            row = row.float()
        return row if loader.unpack is None or loader.facts is None else loader.unpack(row, loader.facts[number])


def with_features(plan: CachePlan, kept: Mapping[str, Tensor], as_stored: bool = False) -> DomainPair[Any]:
    """The pair of a plan, of which every image is loaded as features.

    Args:
        plan: What was computed.
        kept: As `open_cache` returns it.
        as_stored: Whether features of fewer bits than float32 stay so.
    """
    return replace(plan.pair, **dict(_with_loaders(plan, kept, as_stored)))


def _with_loaders(plan: CachePlan, kept: Mapping[str, Tensor], as_stored: bool) -> Iterator[tuple[str, Any]]:
    unpack = None if plan.facts is None else plan.facts.unpack
    for name, rows in plan.rows.items():
        images = getattr(plan.pair, name)
        loader = FeatureLoader(kept["features"], kept.get("facts"), unpack, rows, images.name, as_stored)
        yield name, images.loaded_by(loader)
