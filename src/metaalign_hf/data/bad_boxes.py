"""How invalid annotations are handled.

One rule for every format. A box that reaches over the image's edge is clipped. These are dropped, and counted in the
run's notes, with `bad_boxes: drop`, or end the run with `bad_boxes: error`: a box without area or wholly outside the
image, a coordinate that is not finite, an unknown category, an annotation of an unknown image, a second
annotation with the same id. Two images with one id are always an error, since nothing says whose the objects are.
An image without objects is a valid image.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, field

from ..errors import UserError

__all__ = ["BoxCheck"]


@dataclass
class BoxCheck:
    """Counts the annotations that it clips or drops.

    Attributes:
        name: The domain, for errors and notes.
        policy: `drop` or `error`.
        counts: How many annotations were clipped or dropped, by reason.
    """

    name: str
    policy: str = "drop"
    counts: Counter[str] = field(default_factory=Counter)

    def drop(self, reason: str, where: str) -> None:
        """Count an annotation as dropped.

        Raises:
            UserError: If the policy is `error`.
        """
        if self.policy == "error":
            raise UserError(f"{where}: {reason}; correct it, or set bad_boxes: drop")
        self.counts[reason] += 1

    def clip(
        self, box: tuple[float, float, float, float], size: tuple[int, int], where: str
    ) -> tuple[float, float, float, float] | None:
        """The box inside the image, or None where it is dropped.

        Args:
            box: x_min, y_min, x_max, y_max in pixels.
            size: Height and width of the image.
            where: File and row, for errors.

        Raises:
            UserError: If the box is bad and the policy is `error`.
        """
        if not all(math.isfinite(value) for value in box):
            self.drop("box with a coordinate that is not finite", where)
            return None
        left, top, right, bottom = box
        if right <= left or bottom <= top:
            self.drop("box without area", where)
            return None
        height, width = size
        clipped = (max(left, 0.0), max(top, 0.0), min(right, float(width)), min(bottom, float(height)))
        if clipped[2] <= clipped[0] or clipped[3] <= clipped[1]:
            self.drop("box outside the image", where)
            return None
        # Annotation tools round: one pixel beyond the edge is clipped without a note.
        if max(abs(a - b) for a, b in zip(clipped, box, strict=True)) > 1.0:
            self.counts["box over the image's edge, clipped"] += 1
        return clipped

    def notes(self) -> list[str]:
        """One sentence for each reason."""
        return [f"{self.name}: {count} annotations: {reason}." for reason, count in sorted(self.counts.items())]
