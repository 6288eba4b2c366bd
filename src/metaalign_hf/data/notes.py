"""Notes on images that are used differently from what one might expect."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import cast

from ..paths import printable
from .images import transparent_images
from .remote_path import KEPT, RemotePath

__all__ = ["room_notes", "transparency_notes"]


def room_notes(name: str, paths: Iterable[Path]) -> list[str]:
    """A note where the images at an address are more than this disk has room for."""
    remote = [cast(RemotePath, path) for path in set(paths) if isinstance(path, RemotePath)]
    if not remote:
        return []
    folder = KEPT.folder.parent
    free = shutil.disk_usage(next(place for place in folder.absolute().parents if place.exists())).free
    if sum(path.size for path in remote) <= free:
        return []
    missing = sum(path.size for path in remote if not path.is_kept)
    if missing <= free:
        return []
    return [
        f"{name}: images of {missing / 1e9:.1f} GB are still to be fetched to {folder}, where they stay and "
        f"{free / 1e9:.1f} GB are free: set HF_HOME to a folder of a larger disk, or store them as parquet for "
        "streaming: true."
    ]


def transparency_notes(name: str, paths: Sequence[Path]) -> list[str]:
    """A note where images have transparent pixels, of which a viewer shows something else than a model sees.

    Images at an address are not looked at: they would be fetched.
    """
    if paths and isinstance(paths[0], RemotePath):
        return []
    looked_at, found = transparent_images(paths)
    if not found:
        return []
    return [
        f"{name}: {len(found)} of {looked_at} images looked at have transparent pixels, e.g. "
        f"{printable(found[0].name)}; the alpha channel is dropped, as pipeline of transformers does, and the "
        "colours stored beneath it are used."
    ]
