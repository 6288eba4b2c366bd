"""Gradients that are kept from step to step."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from .gradients import local

__all__ = ["GradientMemory"]


class GradientMemory(nn.Module):
    """Copies of gradients, one buffer for each parameter; zeros until the first is kept.

    It is a module so that checkpoints save it as they save a model.

    Args:
        parameters: The parameters, in the order of the optimiser's groups.
        kept: Whether each one's gradient is kept.
    """

    def __init__(self, parameters: Sequence[Tensor], kept: Sequence[bool]) -> None:
        super().__init__()
        for index, (p, keep) in enumerate(zip(parameters, kept, strict=True)):
            self.register_buffer(str(index), torch.zeros_like(p, requires_grad=False) if keep else None)

    def gradients(self) -> list[Tensor | None]:
        """The kept gradients, unscaled, in the order of the parameters; None where none is kept."""
        return list(self._buffers.values())

    @torch.no_grad()
    def keep(self, gradients: Sequence[Tensor | None], scale: float = 1.0) -> None:
        """Replace what is kept; a parameter without a gradient has zeros from now on.

        Args:
            gradients: Gradients of all parameters, times `scale`.
            scale: Scale of the gradients.
        """
        kept, given = [], []
        for buffer, gradient in zip(self._buffers.values(), gradients, strict=True):
            if buffer is None:
                continue
            if gradient is None:
                buffer.zero_()
            else:
                kept.append(local(buffer))
                given.append(local(gradient))
        if kept:
            torch._foreach_copy_(kept, given)
            if scale != 1.0:
                torch._foreach_div_(kept, scale)
