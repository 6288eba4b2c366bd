"""The baseline: the plain sum of the two gradients."""

from __future__ import annotations

from .closures import StepClosures
from .coordinator import Coordinator
from .gradients import add_gradients, optimizer_parameters
from .report import StepReport

__all__ = ["Joint"]


class Joint(Coordinator):
    """The baseline: the plain sum of the two gradients at theta, `.grad = g_task(theta) + g_alignment(theta)`.

    Args and errors are those of `Coordinator`. Where `both` closures are given, one pass serves both losses, but not
    with smoothing, which needs the task loss by itself.
    """

    def _take(self, passes: StepClosures, step: int) -> StepReport:
        if passes.both and self.smoothing > 0 and not (passes.task and passes.alignment):
            raise ValueError("smoothing needs closures of each objective: it smooths the task's alone")
        if passes.both and self.smoothing == 0:
            return self._run_together(passes.both)
        report, task_gradients = self._run_apart(passes)
        add_gradients(optimizer_parameters(self.optimizer), task_gradients)
        return report
