"""What a frozen backbone or its frozen stages give, computed once for each image and view, in a memory-mapped file.

The file is one of safetensors, with a tensor `features` `(R, D)`: a row for each view of each image. It is written from
its beginning to its end, so that whoever was stopped goes on where the file ends.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ..disk import flush_to_disk, writing
from ..errors import UserError, one_line
from ..progress import stage
from .bad_images import name_of
from .domain_pair import DomainPair
from .fixed_views import EVALUATED, TRAINED, ViewLoader
from .images import ImageSet, _Subset
from .transforms import ImageViews

__all__ = ["CachePlan", "open_cache", "plan_cache", "with_features", "write_cache"]

_DTYPES = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16", torch.float64: "F64"}
_SAMPLED = 256


@dataclass(frozen=True)
class CachePlan:
    """What is computed, row by row.

    Attributes:
        pair: The pair in fixed views.
        units: For each row its image set, the index of the image in it, and the view.
        rows: By image set, the row of each image and view, `(N, 1 + count)`; -1 for what is never asked for.
        checksums: Of what the features depend on.
    """

    pair: DomainPair[ImageSet]
    units: list[tuple[str, int, int]]
    rows: dict[str, Tensor]
    checksums: dict[str, str]


def plan_cache(pair: DomainPair[ImageSet], checksums: dict[str, str]) -> CachePlan:
    """Plan the rows. An image that several sets hold has one row as evaluated.

    Args:
        pair: The pair, as `with_fixed_views` returns it.
        checksums: Of the model and what else the features depend on, by name; those of the images are added.
    """
    units: list[tuple[str, int, int]] = []
    rows: dict[str, Tensor] = {}
    known: dict[tuple[int, int], int] = {}
    digest = hashlib.sha256()
    for name in (*EVALUATED, *TRAINED):
        images = getattr(pair, name)
        if images is None:
            continue
        loader = images.load
        assert isinstance(loader, ViewLoader)
        digest.update(f"{name} {loader.augmentation} {loader.count} {_content(images)}\n".encode())
        found = rows[name] = torch.full((len(images), 1 + loader.count), -1)
        for index in range(len(images)):
            # Of the source's training images no view is asked for but the augmented ones.
            if name != "source_train" or loader.count == 0:
                key = _origin(loader.load, index)
                if key not in known:
                    known[key] = len(units)
                    units.append((name, index, 0))
                found[index, 0] = known[key]
            for view in range(1, 1 + loader.count):
                found[index, view] = len(units)
                units.append((name, index, view))
    return CachePlan(pair, units, rows, {**checksums, "images and views": digest.hexdigest()})


def _origin(load: Any, index: int) -> tuple[int, int]:
    """An image by what loads it, however many subsets it was chosen through."""
    while isinstance(load, _Subset):
        load, index = load.load, load.indices[index]
    return id(load), index


def _content(images: ImageSet) -> str:
    """Checksum of a set: path, size and time of every file; of images without files the pixels of some of them."""
    digest = hashlib.sha256(str(len(images)).encode())
    for path in images.paths:
        try:
            found = path.stat()
            digest.update(f"{path.absolute()} {found.st_size} {found.st_mtime_ns}\n".encode())
        except OSError as error:
            digest.update(f"{path} {error.errno}\n".encode())
    if not images.paths:
        for index in range(0, len(images), max(1, len(images) // _SAMPLED)):
            try:
                digest.update(images.load.load(index).numpy().tobytes())  # type: ignore[attr-defined]
            except UserError as error:
                digest.update(str(error).encode())
    return digest.hexdigest()


@dataclass(frozen=True)
class _Batches(Dataset):
    """Batches of views by number: their pixel values, and what could not be read."""

    plan: CachePlan
    size: int

    def __len__(self) -> int:
        return -(-len(self.plan.units) // self.size)

    def __getitem__(self, number: int) -> tuple[list[Tensor], dict[int, str]]:
        pixels: list[Tensor] = []
        unreadable: dict[int, str] = {}
        last: tuple[Any, Any] = (None, None)
        for place, (name, index, view) in enumerate(self.plan.units[number * self.size : (number + 1) * self.size]):
            try:
                if last[0] != (name, index):
                    last = (name, index), getattr(self.plan.pair, name)[index]
                pixels.append(last[1].make(view))
            except UserError as error:
                unreadable[place] = str(error)
        return pixels, unreadable


def write_cache(
    path: Path,
    plan: CachePlan,
    compute: Callable[[Tensor], Tensor],
    *,
    batch_size: int,
    gigabytes: float,
    num_workers: int = 0,
    unreadable: Callable[[str, str, str], None] | None = None,
    go_on: Callable[[], None] = lambda: None,
) -> None:
    """Compute all rows and write the file; a file that was begun is continued.

    Args:
        path: The file.
        plan: What is computed.
        compute: Features `(B, D)` of pixel values `(B, 3, S, S)`.
        batch_size: Images in a pass.
        gigabytes: Largest size of the file.
        num_workers: Loader processes.
        unreadable: Called with domain, name and reason of each image that cannot be read, whose rows are then not
            numbers; without it such an image is an error.
        go_on: Called after every batch; it raises where the work must stop.

    Raises:
        UserError: If the file would be too large, cannot be written, or an image cannot be read.
    """
    batches = _Batches(plan, batch_size)
    partial = path.with_name(f"{path.name}.partial")
    first = _computed(batches[0], compute, plan, 0, batch_size, unreadable)
    header = _header(plan, first)
    row_bytes, total = first[0].numel() * first.element_size(), len(plan.units)
    size = len(header) + total * row_bytes
    if size > gigabytes * 1e9:
        raise UserError(
            f"data.cache_gigabytes: the features of {total} images and views take {size / 1e9:.2f} GB, more than "
            f"{gigabytes:g}; {_what_fits(plan, row_bytes, gigabytes)}"
        )
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        done = _begun(partial, header, row_bytes * batch_size)
        left, free = size - done * row_bytes * batch_size, shutil.disk_usage(path.parent).free
        if left > free:
            raise UserError(f"{path} cannot be written: it takes {left / 1e9:.2f} GB, and {free / 1e9:.2f} are free")
        numbers = range(done, len(batches))
        loader = DataLoader(
            batches,
            batch_size=None,
            sampler=numbers,
            num_workers=num_workers,
            # A generator of its own: the loader must not draw from the random numbers of training.
            generator=torch.Generator(),
        )
        with (
            partial.open("r+b") as file,
            stage("computing features", total, "images", min(done * batch_size, total)) as shown,
        ):
            file.seek(0, 2)
            for number, batch in zip(numbers, loader, strict=True):
                rows = first if number == 0 else _computed(batch, compute, plan, number, batch_size, unreadable)
                file.write(rows.contiguous().view(torch.uint8).numpy().tobytes())
                file.flush()
                shown.advance(len(rows))
                go_on()
        flush_to_disk(partial)
        partial.replace(path)


def _what_fits(plan: CachePlan, row_bytes: int, gigabytes: float) -> str:
    """What to do where the file would be too large."""
    views = max(view for _, _, view in plan.units)
    once = sum(view < 2 for _, _, view in plan.units) * row_bytes  # with one augmented view
    more = sum(view == 1 for _, _, view in plan.units) * row_bytes
    fitting = 0 if views == 0 or once > gigabytes * 1e9 else 1 + int((gigabytes * 1e9 - once) // more)
    if fitting:
        return f"raise it, or set data.views to {fitting}, which fits"
    least = f" (data.views 1 takes {once / 1e9:.2f})" if views > 1 else ""
    return f"raise it{least}, or set data.cache_features to never"


def _computed(
    batch: tuple[list[Tensor], dict[int, str]],
    compute: Callable[[Tensor], Tensor],
    plan: CachePlan,
    number: int,
    batch_size: int,
    unreadable: Callable[[str, str, str], None] | None,
) -> Tensor:
    """The rows of a batch."""
    pixels, bad = batch
    units = plan.units[number * batch_size : (number + 1) * batch_size]
    for place, reason in bad.items():
        if unreadable is None:
            raise UserError(reason)
        name, index, _ = units[place]
        images = getattr(plan.pair, name)
        unreadable(images.name, name_of(images, index), reason)
    if not pixels:
        raise UserError(f"none of {len(units)} images in a row can be read; the last: {list(bad.values())[-1]}")
    found = compute(torch.stack(pixels)).cpu()
    if not bool(torch.isfinite(found).all()):
        raise UserError("model.backbone: its features of some images are not finite; use training.mixed_precision no")
    if not bad:
        return found
    rows = found.new_full((len(units), *found.shape[1:]), float("nan"))
    rows[[place for place in range(len(units)) if place not in bad]] = found
    return rows


def _header(plan: CachePlan, rows: Tensor) -> bytes:
    """What a file of safetensors begins with: the length of a description, and the description."""
    shape = [len(plan.units), rows.shape[1]]
    described = {
        "__metadata__": plan.checksums,
        "features": {
            "dtype": _DTYPES[rows.dtype],
            "shape": shape,
            "data_offsets": [0, shape[0] * shape[1] * rows.element_size()],
        },
    }
    text = json.dumps(described, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _begun(partial: Path, header: bytes, batch_bytes: int) -> int:
    """How many whole batches a file holds that was begun with this header; else it is begun."""
    if partial.exists():
        with partial.open("r+b") as file:
            if file.read(len(header)) == header:
                done = (partial.stat().st_size - len(header)) // batch_bytes
                file.truncate(len(header) + done * batch_bytes)
                return done
    partial.write_bytes(header)
    return 0


def open_cache(path: Path, plan: CachePlan) -> Tensor:
    """The features `(R, D)` of a file, memory-mapped.

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
    return load_file(path)["features"]


@dataclass(frozen=True)
class FeatureLoader:
    """Loads the features of images in the place of their pixels.

    Attributes:
        features: All features `(R, D)`, memory-mapped.
        rows: The row of each image and view.
        domain: Name of the domain, for errors.
        as_stored: Whether features of fewer bits than float32 stay so.
    """

    features: Tensor
    rows: Tensor
    domain: str
    as_stored: bool

    def __call__(self, index: int) -> ImageViews:
        """The views of an image, as features `(D,)`, in their type or in float32 or more."""
        rows: list[int] = self.rows[index].tolist()
        if bool(self.features[rows[-1], 0].isnan()):
            raise UserError(f"{self.domain}: image {index} could not be read when its features were computed")
        return ImageViews(_Rows(self.features, rows, self.as_stored), len(rows) - 1)


@dataclass(frozen=True)
class _Rows:
    features: Tensor
    rows: Sequence[int]
    as_stored: bool

    def __call__(self, view: int) -> Tensor:
        row = self.features[self.rows[view]]
        return row.float() if not self.as_stored and row.dtype in (torch.bfloat16, torch.float16) else row


def with_features(plan: CachePlan, features: Tensor, as_stored: bool = False) -> DomainPair[ImageSet]:
    """The pair of a plan, of which every image is loaded as features.

    Args:
        plan: What was computed.
        features: As `open_cache` returns them.
        as_stored: Whether features of fewer bits than float32 stay so.
    """
    return replace(plan.pair, **dict(_with_loaders(plan, features, as_stored)))


def _with_loaders(plan: CachePlan, features: Tensor, as_stored: bool) -> Iterator[tuple[str, Any]]:
    for name, rows in plan.rows.items():
        images = getattr(plan.pair, name)
        yield name, replace(images, load=FeatureLoader(features, rows, images.name, as_stored))
