"""Notes on images that are used differently from what one might expect."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from .images import transparent_images

__all__ = ["shown", "transparency_notes"]


def transparency_notes(name: str, paths: Sequence[Path]) -> list[str]:
    """A note where images have transparent pixels, of which a viewer shows something else than a model sees."""
    looked_at, found = transparent_images(paths)
    if not found:
        return []
    return [
        f"{name}: {len(found)} of {looked_at} images looked at have transparent pixels, e.g. {shown(found[0])}; the "
        "alpha channel is dropped, as pipeline of transformers does, and the colours stored beneath it are used."
    ]


def shown(path: Path) -> str:
    """Name of a file for the notes; bytes that are not UTF-8 are escaped."""
    return path.name.encode(errors="backslashreplace").decode()
