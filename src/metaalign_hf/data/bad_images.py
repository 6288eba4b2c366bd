"""Images that cannot be read: replaced in training, left out of the evaluation, and listed."""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

from torch import Tensor

from ..errors import UserError

__all__ = ["BadImages", "read_replacing", "readable"]

_MOST_IN_A_ROW = 50


class BadImages:
    """The list of images that were skipped.

    Attributes:
        found: By domain and number in it, why each could not be read.
    """

    def __init__(self) -> None:
        self.found: dict[tuple[str, str], str] = {}
        self._path: Path | None = None

    def add(self, domain: str, image: str, reason: str) -> None:
        """Take note of an image, once."""
        if (domain, image) in self.found:
            return
        self.found[domain, image] = reason
        if self._path is not None:
            self._append([(domain, image)])

    def open(self, path: Path) -> None:
        """From now on the list is kept in a file as well; what a run before it has found there counts.

        Args:
            path: The file, with a JSON object a line.
        """
        before = set()
        for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
            try:
                entry = json.loads(line)
                before.add((entry["domain"], entry["image"]))
                self.found.setdefault((entry["domain"], entry["image"]), entry["reason"])
            except (ValueError, KeyError, TypeError):
                continue  # the line that the run was killed in
        self._path = path
        self._append([key for key in self.found if key not in before])

    def _append(self, keys: Sequence[tuple[str, str]]) -> None:
        assert self._path is not None
        if keys:
            with self._path.open("a", encoding="utf-8") as file:
                for domain, image in keys:
                    entry = {"domain": domain, "image": image, "reason": self.found[domain, image]}
                    file.write(json.dumps(entry) + "\n")


def read_replacing(images: Any, indices: Sequence[int]) -> tuple[list[int], list[Tensor], list[tuple[int, str]]]:
    """The images with these indices, each that cannot be read replaced by the next one of its domain that can.

    It depends on nothing but the images, so that a resumed run replaces them alike.

    Args:
        images: An `ImageSet` or a `DetectionSet`.
        indices: Indices into it.

    Returns:
        The indices that were read, their images, and the indices that could not be read, each with the reason.

    Raises:
        UserError: If a whole row of images cannot be read: then the data are gone.
    """
    ends = list(accumulate(images.parts)) or [len(images)]
    kept, read, bad = [], [], []
    for wanted in indices:
        last = next(end for end in ends if wanted < end)
        first = max((end for end in ends if end <= wanted), default=0)
        size = last - first
        for tried in range(min(size, _MOST_IN_A_ROW)):
            index = first + (wanted - first + tried) % size
            try:
                image = images[index]
            except UserError as error:
                bad.append((index, str(error)))
                continue
            kept.append(index)
            read.append(image)
            break
        else:
            raise UserError(f"domain {images.name}: {len(bad)} images in a row cannot be read; the last: {bad[-1][1]}")
    return kept, read, bad


def readable(images: Any, bad: BadImages) -> Any:
    """The images without those that cannot be read; each is read once to find out.

    Args:
        images: An `ImageSet` or a `DetectionSet`.
        bad: Where the others are listed.

    Raises:
        UserError: If none can be read.
    """
    kept = []
    for index in range(len(images)):
        try:
            images[index]
        except UserError as error:
            bad.add(images.name, name_of(images, index), str(error))
        else:
            kept.append(index)
    if not kept:
        raise UserError(f"domain {images.name}: none of its {len(images)} test images can be read")
    return images if len(kept) == len(images) else images.subset(kept)


def name_of(images: Any, index: int) -> str:
    """The file of an image, or where there are no files its number."""
    paths = getattr(images, "images", images).paths
    return str(paths[index]) if paths else str(index)
