"""The baseline: the plain sum of the two gradients."""

from __future__ import annotations

from .closures import StepClosures
from .coordinator import Coordinator
from .gradients import add_gradients, norm, optimizer_parameters, take_gradients
from .penalty import SharedPenalty
from .report import StepReport

__all__ = ["Joint"]


class Joint(Coordinator):
    """The baseline: the plain sum of the two gradients at theta, `.grad = g_task(theta) + g_alignment(theta)`.

    Args and errors are those of `Coordinator`. Where `both` closures are given, one pass serves both losses, but not
    with smoothing, which needs the task loss by itself.
    """

    def _take(self, passes: StepClosures, step: int) -> StepReport:
        parameters = optimizer_parameters(self.optimizer)
        if passes.both and self.smoothing > 0 and not (passes.task and passes.alignment):
            raise ValueError("smoothing needs closures of each objective: it smooths the task's alone")
        if passes.both and self.smoothing == 0:
            self.optimizer.zero_grad(set_to_none=True)
            task_loss, alignment_loss = self._run_both(passes.both)
            skipped = self._overflowed("joint", norm(p.grad for p in parameters))
            return StepReport("joint", task_loss, alignment_loss, skipped=skipped)
        passes.require_each()
        self.optimizer.zero_grad(set_to_none=True)
        task_loss = self._run_objective("task", passes.task)
        task_gradients = take_gradients(parameters)
        part = SharedPenalty(passes.penalty, parameters, self._run, self.module)
        with part.beside():
            alignment_loss = self._run(passes.alignment)
        measures, _, _ = self._measure(task_gradients, [p.grad for p in parameters], part.gradients)
        skipped = self._overflowed("task", measures["task_gradient_norm"])
        skipped |= self._overflowed("alignment", measures["alignment_gradient_norm"])
        add_gradients(parameters, task_gradients)
        displacement = task_loss.new_zeros(())
        return StepReport("joint", task_loss, alignment_loss, displacement=displacement, skipped=skipped, **measures)
