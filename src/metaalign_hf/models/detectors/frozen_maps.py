"""A detector's frozen backbone, left out: a pass begins with the maps that it gave for its images before.

With m = backbone(x), where nothing of the backbone trains, m is computed once for every x, and a pass is the rest of
the detector on m. The detector itself runs, on a blank canvas of which it reads nothing but the size, and its backbone
answers with m.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import TreeSpec, tree_flatten, tree_unflatten

from ...coordination._replacement import replaced_attribute
from ...errors import one_line

__all__ = ["FrozenMaps"]


@dataclass(frozen=True)
class _Form:
    """What a backbone returns for an image: shapes, types and layouts of its maps, and what they are in."""

    shapes: list[torch.Size]
    dtypes: list[torch.dtype]
    layouts: list[torch.memory_format]
    around: TreeSpec


class FrozenMaps:
    """The backbone of a detector as something that gives maps, and as something that they are given to.

    Args:
        backbone: Frozen, and in evaluation mode.
        size: Height and width of all images, in pixels.
    """

    def __init__(self, backbone: nn.Module, size: tuple[int, int]) -> None:
        self.backbone, self.size = backbone, size
        self._forms: dict[tuple[torch.device, torch.dtype | None], _Form] = {}

    def outputs(self, pixel_values: Tensor) -> Tensor:
        """The maps of images `(B, 3, H, W)`, one after another and flat: `(B, D)`.

        An image alone goes through beside a copy: convolutions compute a batch of one by other kernels, whose last bits
        differ from those of a larger batch.
        """
        count = len(pixel_values)
        maps, _ = tree_flatten(self.backbone(pixel_values if count > 1 else pixel_values.expand(2, -1, -1, -1)))
        return torch.cat([values.flatten(1) for values in maps], 1)[:count]

    @contextmanager
    def answering(self, rows: Tensor) -> Iterator[Tensor]:
        """A context in which the backbone gives the maps of `rows`; yields a blank `(B, 3, H, W)` for the detector.

        Args:
            rows: As `outputs` gave them, `(B, D)`.
        """
        form = self._form(rows.device)
        parts = rows.split([math.prod(shape) for shape in form.shapes], 1)
        # Laid out in memory as they came out of the backbone: what follows then computes the same bits.
        maps = [
            part.unflatten(1, shape).to(dtype).contiguous(memory_format=layout)
            for part, shape, dtype, layout in zip(parts, form.shapes, form.dtypes, form.layouts, strict=True)
        ]
        output = tree_unflatten(maps, form.around)
        with replaced_attribute(self.backbone, "forward", lambda *_, **__: output):
            yield self._blank(rows.device, len(rows))

    def check(self, run: Callable[[Tensor], Any]) -> str | None:
        """Why the backbone cannot be left out; None where it can. In evaluation mode.

        Two images go through the detector whole and in two parts, and must give the same, bit for bit.

        Args:
            run: Runs the detector on pixel values; its output has `logits` and `pred_boxes`.
        """
        images = torch.randn(2, 3, *self.size, generator=torch.Generator().manual_seed(0))
        parameter = next(self.backbone.parameters())
        images = images.to(parameter.device, parameter.dtype)
        try:
            with torch.no_grad():
                whole = run(images)
                with self.answering(self.outputs(images)) as blank:
                    rest = run(blank)
        except Exception as error:  # every architecture raises an error of its own
            return f"the rest of the detector cannot run alone ({one_line(error, first=True)})"
        if torch.equal(whole.logits, rest.logits) and torch.equal(whole.pred_boxes, rest.pred_boxes):
            return None
        return "other parts of the detector look at the image as well"

    def _blank(self, device: torch.device, count: int) -> Tensor:
        zero = torch.zeros((), device=device, dtype=next(self.backbone.parameters()).dtype)
        return zero.expand(count, 3, *self.size)

    def _form(self, device: torch.device) -> _Form:
        """What the backbone returns, found out on two blank images for each device and precision."""
        kind = device.type
        precision = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None
        key = device, precision
        if key not in self._forms:
            with torch.no_grad():
                maps, around = tree_flatten(self.backbone(self._blank(device, 2).contiguous()))
            shapes, dtypes = [m.shape[1:] for m in maps], [m.dtype for m in maps]
            self._forms[key] = _Form(shapes, dtypes, [_layout(m) for m in maps], around)
        return self._forms[key]


def _layout(values: Tensor) -> torch.memory_format:
    last = not values.is_contiguous() and values.is_contiguous(memory_format=torch.channels_last)
    return torch.channels_last if last else torch.contiguous_format
