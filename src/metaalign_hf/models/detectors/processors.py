"""The image processor of a detector."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import transformers
from transformers import AutoImageProcessor

from ...errors import UserError
from . import detector_adapter

__all__ = ["build_detector_processor"]


def build_detector_processor(model_type: str, place: str | None = None, size: int | list[int] | None = None) -> Any:
    """The image processor of a detector: the checkpoint's own, or that of its family.

    Args:
        model_type: The detector's model type.
        place: Hub id or folder of the detector's checkpoint; None for the family's default.
        size: Another size of the images: a number for squares, two for the shortest and the longest edge.

    Returns:
        The processor.

    Raises:
        UserError: If the size makes no sense.
    """
    kind = getattr(transformers, detector_adapter(model_type).image_processor)
    changed: dict[str, Any] = {}
    if size is not None:
        edges = [size, size] if isinstance(size, int) else list(size)
        if len(edges) != 2 or not 1 <= edges[0] <= edges[1]:
            raise UserError(
                f"data.detector_size is {size!r}: it must be a number of pixels, or the shortest and the longest edge"
            )
        keys = ("height", "width") if isinstance(size, int) else ("shortest_edge", "longest_edge")
        changed["size"] = dict(zip(keys, edges, strict=True))
    if place is not None and (Path(place).is_dir() or "/" in place):
        try:
            return AutoImageProcessor.from_pretrained(place, trust_remote_code=False, **changed)
        except (OSError, ValueError):
            pass  # a checkpoint without an image processor
    return kind(**changed)
