"""Steps of game theory: adversarial alignment as a game whose players move at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Unpack

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from .closures import Closure, StepClosures
from .coordinator import Coordinator, Plumbing
from .gradients import add_gradients, local, norm, optimizer_parameters, take_gradients
from .inner_step import InnerStep, Scope, require_name, require_number
from .joint import Joint
from .report import StepReport
from .statistics import frozen_running_statistics

__all__ = ["SOLVERS", "DoublyPerturbed", "Game"]

SOLVERS = ("extragradient", "heun")


class Game(Joint):
    """A step along the field of both players, looked up a second time after a trial step.

    With `v = g_task + g_alignment`, in which gradient reversal makes the discriminator ascend where the features
    descend::

        theta'_p = theta_p - alpha_p v_p(theta)
        .grad    = v(theta')                                  extragradient
        .grad    = (v(theta) + v(theta')) / 2                 heun (second order where alpha is the learning rate)

    Cost: two joint steps. `RememberedMetaAlign` with `remember="total"` takes the trial step along the field of the
    step before instead, at the cost of one. Running statistics are moved by the pass at theta.

    Source: Korpelevich, "The extragradient method for finding saddle points", 1976; Acuna, Law, Zhang, Fidler, "Domain
    Adversarial Training: A Game Perspective", ICLR 2022, section 4.

    Args:
        optimizer: Its parameter groups name the parameters and their learning rates.
        inner_lr: Size of the trial step, see `rule`. 0 gives the joint gradient.
        solver: `extragradient` or `heun`.
        rule: How `inner_lr` is meant; see `step_sizes`. `fixed` with `inner_lr` 1 is a step of the learning rate.
        relative: See `step_sizes`, rule `fixed`.
        scope: Parameters that take the trial step; see `InnerStep`.
        **plumbing: As in `Coordinator`; running statistics of the module stay in the second pass.

    Raises:
        ValueError: If a number is out of range, or a name is unknown.
    """

    inner: InnerStep

    def __init__(
        self,
        optimizer: Optimizer,
        inner_lr: float = 1.0,
        *,
        solver: str = "extragradient",
        rule: str = "fixed",
        relative: bool = True,
        scope: Scope = "all",
        **plumbing: Unpack[Plumbing],
    ) -> None:
        super().__init__(optimizer, **plumbing)
        require_name("solver", solver, SOLVERS)
        self.solver = solver
        self.inner = InnerStep(optimizer, inner_lr, rule, relative, scope, self.module)

    def _take(self, passes: StepClosures, step: int) -> StepReport:
        parameters = optimizer_parameters(self.optimizer)
        report = super()._take(passes, step)
        if report.skipped:
            return report
        field = take_gradients(parameters)
        with (
            self.inner.taken(field, self.inner.sizes(field, self._scale()), self._scale()) as displacement,
            frozen_running_statistics(self.module or nn.Module()),
        ):
            skipped = super()._take(replace(passes, penalty=()), step).skipped
        if self.solver == "heun":
            add_gradients(parameters, field)
            torch._foreach_mul_([local(p.grad) for p in parameters if p.grad is not None], 0.5)
        return replace(report, first="game", displacement=displacement, skipped=skipped)


class DoublyPerturbed(Coordinator):
    """Each objective's gradient where its own loss is higher and the other's is lower.

    With the lengths of the steps by a rule (`normalised`: `rho g / |g|`, as published)::

        .grad = g_task(theta + rho g_task / |g_task| - rho' g_alignment / |g_alignment|)
              + g_alignment(theta + rho g_alignment / |g_alignment| - rho' g_task / |g_task|)

    Ascending one's own gradient looks for flat minima, as SAM does; descending the other's raises the inner product of
    the two gradients, as MetaAlign does. Cost: both objectives' passes twice. Running statistics are moved by the
    passes at theta.

    Source: Phan, Tran, Tran, Le, "Enhancing Domain Adaptation through Prompt Gradient Alignment", NeurIPS 2024.

    Args:
        optimizer: Its parameter groups name the parameters and their learning rates.
        inner_lr: Size rho' of the descent along the other objective's gradient.
        ascent: Size rho of the ascent along one's own.
        rule: `normalised` or another of `step_sizes`.
        relative: See `step_sizes`, rule `fixed`.
        scope: Parameters that move; see `InnerStep`.
        **plumbing: As in `Coordinator`; running statistics of the module stay in the moved passes.

    Raises:
        ValueError: If a number is out of range, or a name is unknown.
    """

    inner: InnerStep

    def __init__(
        self,
        optimizer: Optimizer,
        inner_lr: float = 0.05,
        ascent: float = 0.05,
        *,
        rule: str = "normalised",
        relative: bool = True,
        scope: Scope = "all",
        **plumbing: Unpack[Plumbing],
    ) -> None:
        super().__init__(optimizer, **plumbing)
        require_number("ascent", ascent)
        self.inner = InnerStep(optimizer, inner_lr, rule, relative, scope, self.module)
        self.ascent = InnerStep(optimizer, ascent, rule, relative, scope, self.module, updates=self.inner.updates)

    def _take(self, passes: StepClosures, step: int) -> StepReport:
        parameters = optimizer_parameters(self.optimizer)
        report, task_gradients = self._run_apart(passes)
        alignment_gradients = take_gradients(parameters)
        found, displacement = [task_gradients, alignment_gradients], report.displacement
        if not report.skipped:
            first, moved = self._run_perturbed(passes.task, task_gradients, alignment_gradients)
            second, moved_too = self._run_perturbed(passes.alignment, alignment_gradients, task_gradients)
            found, displacement = [first, second], torch.maximum(moved, moved_too)
        skipped = any([self._overflowed("joint", norm(each)) for each in found])
        for each in found:
            add_gradients(parameters, each)
        return replace(report, first="both", displacement=displacement, skipped=skipped)

    def _run_perturbed(
        self, closures: Sequence[Closure], own: list[Tensor | None], other: list[Tensor | None]
    ) -> tuple[list[Tensor | None], Tensor]:
        """An objective's gradient after the ascent along its own and the descent along the other's, and how far."""
        scale = self._scale()
        up = [-size for size in self.ascent.sizes(own, scale)]
        with (
            self.ascent.taken(own, up, scale) as risen,
            self.inner.taken(other, self.inner.sizes(other, scale), scale) as fallen,
            frozen_running_statistics(self.module or nn.Module()),
        ):
            self._run(closures)
        return take_gradients(optimizer_parameters(self.optimizer)), risen + fallen
