"""The length of the alignment gradient as a share of the task's, instead of a weight in units of the losses."""

from __future__ import annotations

import math
from typing import Any

from .inner_step import require_number

__all__ = ["AlignmentShare"]

_EVERY = 20
_FIRST = (1, 2, 4, 8, 16)
_KEPT = 5


class AlignmentShare:
    """By what the gradient that alignment sends into the network is scaled.

    From measurements now and then::

        scale = share * mean |g_task| / mean |g_alignment|

    with both norms over the parameters that both objectives reach, and the means over about the last five measurements
    (over all of them while there are fewer). Steps 0, 1, 2, 4, 8 and 16 measure, and every twentieth one.

    A detector's loss may be a hundred times another's, and so may its gradient; a weight that suits one does nothing
    for the next. A share has no unit.

    Args:
        share: How long the alignment gradient is made, in lengths of the task gradient.

    Raises:
        ValueError: If the share is not a number above 0.
    """

    def __init__(self, share: float) -> None:
        require_number("alignment_share", share)
        if share == 0:
            raise ValueError("alignment_share is 0; it must be above 0")
        self.share = share
        self._task = self._alignment = 0.0
        self._count = 0

    def due(self, step: int) -> bool:
        """Whether a step, counted from 0, measures."""
        return step % _EVERY == 0 or step in _FIRST or self._count == 0

    def take(self, task: float, alignment: float) -> None:
        """Count a measurement; one that is not finite is left out.

        Args:
            task: Norm of the task gradient.
            alignment: Norm of the alignment gradient, not scaled, at full strength of gradient reversal.
        """
        if not (math.isfinite(task) and math.isfinite(alignment)):
            return
        self._count += 1
        new = 1 / min(self._count, _KEPT)
        self._task += new * (task - self._task)
        self._alignment += new * (alignment - self._alignment)

    @property
    def scale(self) -> float:
        """The factor; 0 where the alignment gradient is, or where nothing was measured yet."""
        return self.share * self._task / self._alignment if self._alignment > 0 else 0.0

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs, as JSON values."""
        return {"task": self._task, "alignment": self._alignment, "count": self._count}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Put back what `state_dict` gave."""
        self._task, self._alignment, self._count = state["task"], state["alignment"], state["count"]
