"""Notes on images that are used differently from what one might expect."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ..paths import printable
from .images import transparent_images
from .remote_path import RemotePath

__all__ = ["transparency_notes"]


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
