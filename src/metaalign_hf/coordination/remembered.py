"""MetaAlign from memory: an inner step along a gradient that an earlier step has left."""

from __future__ import annotations

from dataclasses import replace
from typing import Unpack

from torch import nn
from torch.optim import Optimizer

from .closures import StepClosures
from .coordinator import Coordinator, Plumbing
from .gradient_memory import GradientMemory
from .gradients import add_gradients, optimizer_parameters
from .inner_step import InnerStep, Scope, require_name
from .last_update import preconditioned
from .report import ROLES, StepReport
from .roles import Roles
from .wrapping import finite_everywhere

__all__ = ["REMEMBERED", "RememberedMetaAlign"]

REMEMBERED = ("total", "role")


class RememberedMetaAlign(Coordinator):
    """MetaAlign whose inner step follows a remembered gradient, so that one joint pass serves both losses.

    With m the gradient that an earlier step has left, at the parameters where it was taken::

        theta'_p = theta_p - alpha_p D_p m_p                  for every p in the scope
        .grad    = g_task(theta') + g_alignment(theta')       one pass, as the joint step's
        m        = .grad                                      remember: total

    D is the scale that the optimiser gives each weight: with rule `update` 1 / (sqrt(v) + eps) under Adam, whose second
    moment is v, and else 1. `update` makes each tensor's inner step `inner_lr` times as long as the optimiser's own
    last step. So it follows learning rates and schedule, and one size fits a network from scratch and a pretrained one.
    Up to momentum, 1 is the step of the optimistic gradient method, and of optimistic Adam.

    `remember="role"` follows the gradient of one objective, the meta-train objective of the step, as MetaAlign does. To
    know it apart from the other's, every `refresh_every`-th step takes the two gradients in two passes (both at
    theta'), and keeps each.

    Both roles of MetaAlign are in one pass. With m = g_task + g_alignment, by Taylor::

        L_task(theta') + L_alignment(theta') = L_task + L_alignment - 2 alpha <g_task, g_alignment>
                                               - alpha |g_task|^2 - alpha |g_alignment|^2 + ...

    The inner product in the first line is what two swapped MetaAlign steps raise; the second line is each objective's
    step along its own gradient, a lookahead as in Nesterov's method. For an adversarial objective, whose gradient is a
    vector field of two players, this is the past-extragradient or optimistic method: the fresh form (`Game`) evaluates
    the field twice a step, this one once. It damps the rotation about an equilibrium that the joint step keeps up.

    Cost: one joint step, and a copy of the gradients in memory (two for `role`). In the first step of a run nothing is
    remembered yet: it is the joint step. Parameters are restored exactly, also when a closure raises. After a step that
    the gradient scaler skips, or with a loss that is not finite, the memory stays as it was.

    Source: the step is this package's. Popov, "A modification of the Arrow-Hurwicz method", 1980 (past-extragradient);
    Daskalakis et al., "Training GANs with Optimism", ICLR 2018; Acuna et al., "Domain Adversarial Training: A Game
    Perspective", ICLR 2022 (adversarial adaptation as a game); Wei et al., CVPR 2021 (MetaAlign).

    Args:
        optimizer: Its parameter groups name the parameters and their learning rates.
        inner_lr: Size of the inner step, see `rule`. 0 gives the joint gradient.
        rule: How `inner_lr` is meant; see `step_sizes`. `update` moves every tensor `inner_lr` times as far as the
            optimiser has just moved it.
        relative: See `step_sizes`, rule `fixed`.
        remember: `total` or `role`.
        refresh_every: Steps between two passes that tell the objectives apart (`role`).
        roles: See `Roles` (`role`).
        first: See `Roles` (`role`).
        swap_every: See `Roles` (`role`).
        scope: Parameters that take the inner step; see `InnerStep`.
        **plumbing: As in `Coordinator`.

    Raises:
        ValueError: If a number is out of range, or a name is unknown.
    """

    inner: InnerStep

    def __init__(
        self,
        optimizer: Optimizer,
        inner_lr: float = 3.0,
        *,
        rule: str = "update",
        relative: bool = True,
        remember: str = "total",
        refresh_every: int = 4,
        roles: str = "alternate",
        first: str = "task",
        swap_every: int = 1,
        scope: Scope = "all",
        **plumbing: Unpack[Plumbing],
    ) -> None:
        super().__init__(optimizer, **plumbing)
        require_name("remember", remember, REMEMBERED)
        if refresh_every < 1:
            raise ValueError(f"refresh_every is {refresh_every}: it must be 1 or more")
        self.remember = remember
        self.refresh_every = refresh_every
        self.roles = Roles(roles, first, swap_every)
        self.inner = InnerStep(optimizer, inner_lr, rule, relative, scope, self.module)
        parameters = optimizer_parameters(optimizer)
        names = ("total",) if remember == "total" else ROLES
        self._memory = {name: GradientMemory(parameters, self.inner.in_scope) for name in names}

    @property
    def memory(self) -> nn.ModuleDict:
        """The remembered gradients: `total`, or `task` and `alignment`."""
        return nn.ModuleDict(self._memory)

    def _take(self, passes: StepClosures, step: int) -> StepReport:
        by_role = self.remember == "role"
        apart = not passes.both or (by_role and step % self.refresh_every == 0)
        first = self.roles.meta_train(step) if by_role else "both"
        remembered = self._memory[first if by_role else "total"].gradients()
        if self.inner.rule == "update":
            remembered = preconditioned(self.optimizer, remembered)
        parameters, scale = optimizer_parameters(self.optimizer), self._scale()
        self.optimizer.zero_grad(set_to_none=True)
        with self.inner.taken(remembered, self.inner.sizes(remembered)) as displacement:
            if apart:
                report, task_gradients = self._run_apart(passes)
            else:
                report = self._run_together(passes.both)
        taken = not report.skipped and finite_everywhere([report.task_loss, report.alignment_loss], self.module)
        if apart:
            if by_role and taken:
                self._memory["task"].keep(task_gradients, scale)
                self._memory["alignment"].keep([p.grad for p in parameters], scale)
            add_gradients(parameters, task_gradients)
        if not by_role and taken:
            self._memory["total"].keep([p.grad for p in parameters], scale)
        return replace(report, first=first, displacement=displacement)
