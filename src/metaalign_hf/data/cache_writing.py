"""Computes what a frozen backbone gives, and writes the file that `cached_features` describes.

It is written from its beginning to its end, so that whoever was stopped goes on where the file ends; facts, whose place
is known beforehand, come before the features.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ..disk import flush_to_disk, writing
from ..errors import UserError
from ..progress import stage
from .bad_images import name_of
from .cached_features import CachePlan

__all__ = ["write_cache"]

_DTYPES = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16", torch.float64: "F64"}
_FACT = 4
"""Bytes of a number beside the features."""


@dataclass(frozen=True)
class _Batches(Dataset):
    """Batches of views by number: their pixel values and facts, and what could not be read."""

    plan: CachePlan
    size: int

    def __len__(self) -> int:
        return -(-len(self.plan.units) // self.size)

    def __getitem__(self, number: int) -> tuple[list[Tensor], list[Tensor], dict[int, str]]:
        pixels: list[Tensor] = []
        facts: list[Tensor] = []
        unreadable: dict[int, str] = {}
        last: tuple[Any, Any] = (None, None)
        for place, (name, index, view) in enumerate(self.plan.units[number * self.size : (number + 1) * self.size]):
            try:
                if last[0] != (name, index):
                    last = (name, index), getattr(self.plan.pair, name)[index]
                made = last[1].make(view)
            except UserError as error:
                unreadable[place] = str(error)
                continue
            values, numbers = (made, torch.empty(0)) if self.plan.facts is None else self.plan.facts.pack(made)
            pixels.append(values)
            facts.append(numbers)
        return pixels, facts, unreadable


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
    header = _header(plan, first[0])
    row_bytes, total = first[0][0].numel() * first[0].element_size(), len(plan.units)
    before = len(header) + total * plan.width * _FACT  # where the features begin
    size = before + total * row_bytes
    if size > gigabytes * 1e9:
        raise UserError(
            f"data.cache_gigabytes: the features of {total} images and views take {size / 1e9:.2f} GB, more than "
            f"{gigabytes:g}; {_what_fits(plan, row_bytes + plan.width * _FACT, gigabytes)}"
        )
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        done = _begun(partial, header, before, row_bytes * batch_size)
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
            for number, batch in zip(numbers, loader, strict=True):
                rows, facts = first if number == 0 else _computed(batch, compute, plan, number, batch_size, unreadable)
                file.seek(len(header) + number * batch_size * plan.width * _FACT)
                file.write(_bytes(facts))
                file.seek(0, 2)  # the features last: a batch that has them has its facts
                file.write(_bytes(rows))
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
    batch: tuple[list[Tensor], list[Tensor], dict[int, str]],
    compute: Callable[[Tensor], Tensor],
    plan: CachePlan,
    number: int,
    batch_size: int,
    unreadable: Callable[[str, str, str], None] | None,
) -> tuple[Tensor, Tensor]:
    """The rows of a batch, and their facts."""
    pixels, facts, bad = batch
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
        raise UserError("model: the backbone's features of some images are not finite; use training.mixed_precision no")
    kept = torch.stack(facts)
    if not bad:
        return found, kept
    good = [place for place in range(len(units)) if place not in bad]
    rows, numbers = (values.new_full((len(units), *values.shape[1:]), float("nan")) for values in (found, kept))
    rows[good], numbers[good] = found, kept
    return rows, numbers


def _header(plan: CachePlan, rows: Tensor) -> bytes:
    """What a file of safetensors begins with: the length of a description, and the description."""
    described: dict[str, Any] = {"__metadata__": plan.checksums}
    end = 0
    for name, dtype, width, size in (
        ("facts", torch.float32, plan.width, _FACT),
        ("features", rows.dtype, rows.shape[1], rows.element_size()),
    ):
        shape, begin = [len(plan.units), width], end
        end += shape[0] * width * size
        if name == "features" or width:
            described[name] = {"dtype": _DTYPES[dtype], "shape": shape, "data_offsets": [begin, end]}
    text = json.dumps(described, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _begun(partial: Path, header: bytes, before: int, batch_bytes: int) -> int:
    """How many whole batches a file holds that was begun with this header; else it is begun.

    Args:
        partial: The file.
        header: What it begins with.
        before: Where its features begin.
        batch_bytes: Size of the features of a batch.
    """
    if partial.exists():
        with partial.open("r+b") as file:
            if file.read(len(header)) == header:
                done = max(0, partial.stat().st_size - before) // batch_bytes
                file.truncate(before + done * batch_bytes)
                return done
    with partial.open("wb") as file:
        file.write(header)
        file.truncate(before)
    return 0


def _bytes(values: Tensor) -> bytes:
    return values.contiguous().view(torch.uint8).numpy().tobytes()
