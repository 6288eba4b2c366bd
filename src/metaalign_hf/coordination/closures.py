"""The forward passes of one step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from torch import Tensor

from .shared_prefix import SharedPrefix

__all__ = ["Closure", "JointClosure", "StepClosures"]

Closure = Callable[[], Tensor]
JointClosure = Callable[[], tuple[Tensor, Tensor]]


@dataclass
class StepClosures:
    """The forward passes of one step, one closure per micro-batch.

    Attributes:
        task: Each runs a pass on the source and returns the task loss.
        alignment: Each runs a pass on both domains and returns the alignment loss.
        both: Each runs the pass or passes of a joint step and returns both losses.
        shared: The shared prefix of each micro-batch, inside which its passes run; empty for full passes.
        penalty: Each runs a pass as `alignment` does and returns the penalty that stands in both losses; empty where
            there is none.
    """

    task: Sequence[Closure] = field(default_factory=list)
    alignment: Sequence[Closure] = field(default_factory=list)
    both: Sequence[JointClosure] = field(default_factory=list)
    shared: Sequence[SharedPrefix] = field(default_factory=list)
    penalty: Sequence[Closure] = field(default_factory=list)

    def require_each(self) -> None:
        """Refuse a step that lacks closures of an objective by itself.

        Raises:
            ValueError: If task or alignment are missing.
        """
        if not self.task or not self.alignment:
            raise ValueError("give at least one closure for the task and one for the alignment objective")
