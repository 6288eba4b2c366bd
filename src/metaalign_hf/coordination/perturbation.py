"""Parameters moved for a pass, and put back bit for bit."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from torch import Tensor

from .gradients import local

__all__ = ["Perturbation"]


class Perturbation:
    """Moves parameters in place for the time of a context. It keeps its copies' memory for the next time.

    Args:
        unnoticed: Whether autograd is not to take the parameters for changed, so that a graph that was built before can
            be run backward after: the parameters then have the very bits again that they had when it was built.
    """

    def __init__(self, unnoticed: bool = False) -> None:
        self._unnoticed = unnoticed
        self._saved: dict[Tensor, Tensor] = {}

    @contextmanager
    def moved(
        self, parameters: Sequence[Tensor], directions: Sequence[Tensor], sizes: Sequence[float]
    ) -> Iterator[None]:
        """Parameters at `theta + size direction` inside, at theta (the exact same bits) afterwards."""
        for p in parameters:
            if p not in self._saved:
                self._saved[p] = torch.empty_like(local(p), requires_grad=False)
        copies = [self._saved[p] for p in parameters]
        shards = [local(p) for p in parameters]
        with torch.no_grad():
            torch._foreach_copy_(copies, shards)
        try:
            with torch.no_grad(), self._guard(parameters):
                torch._foreach_add_(shards, torch._foreach_mul([local(d) for d in directions], list(sizes)))
            del directions
            yield
        finally:
            with torch.no_grad(), self._guard(parameters):
                torch._foreach_copy_([local(p) for p in parameters], copies)

    def _guard(self, parameters: Sequence[Tensor]) -> AbstractContextManager[None]:
        if not self._unnoticed:
            return nullcontext()
        return torch.autograd._unsafe_preserve_version_counter(tuple(parameters))
