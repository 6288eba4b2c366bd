"""The MetaAlign step, by perturb and restore."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from functools import partial
from typing import Any, Literal, Unpack

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from .closures import Closure, StepClosures
from .coordinator import Coordinator, Plumbing
from .gradients import add_gradients, norm, optimizer_parameters, take_gradients
from .group_weights import Groups, GroupWeights
from .inner_step import InnerStep, Scope, require_number
from .penalty import SharedPenalty
from .report import ROLES, StepReport
from .roles import Roles
from .second_order import GradientGraph, RandomState, vector_jacobian_product
from .shared_prefix import NOT_THE_ONLY_WAY, SharedPrefix
from .statistics import frozen_running_statistics
from .wrapping import averaging_of, finite_everywhere, is_fsdp

__all__ = ["MetaAlign"]


class MetaAlign(Coordinator):
    """The MetaAlign step, by perturb and restore.

    With `alpha_p` the inner step size of parameter p and `w_g` the weight of its group (1 without groups)::

        theta'_p = theta_p - alpha_p w_g g_train,p(theta)      for every p in the scope that meta-train reaches
        .grad    = g_train(theta) + g_test(theta')                                                       order 1
        .grad    = g_train(theta) + g_test(theta') - J_train(theta)^T (alpha w g_test(theta'))           order 2

    `alpha_p` follows from `inner_lr` by a rule, see `step_sizes`; it is held constant, also by order 2.
    Each objective is a list of closures, one per micro-batch: the inner step uses the gradient of the whole accumulated
    batch, so accumulation changes nothing. Parameters are restored exactly (bit for bit), also when a closure raises;
    gradients are then cleared.

    J is the Jacobian of the meta-train gradient. With one micro-batch order 2 keeps the graph of the meta-train pass
    and differentiates it once more. With several, whose graphs would have to be kept side by side, it runs each of them
    a second time at theta, on the same random numbers, without moving running statistics.

    Args:
        optimizer: Its parameter groups name the parameters and their learning rates.
        inner_lr: Inner step size. 0 gives the joint gradient. May be set anew between steps, for a schedule.
        relative: Whether `inner_lr` multiplies each group's current learning rate (rule `fixed`).
        first: The objective that is meta-train in step 0 of the schedule `alternate`.
        roles: `alternate`: the roles swap every `swap_every` steps. `task` or `alignment`: that objective is always
            meta-train.
        swap_every: See `roles`.
        order: 1 or 2.
        scope: Parameters that take the inner step: `all`; `last_stage` (and everything after it) or `head`, see
            `find_stages`; or a predicate of a parameter's name and the parameter. Where the scope is a suffix of the
            network and both passes see the same images, the part before it need not be run twice: see `SharedPrefix`.
        groups: Groups that get a learned weight: `none`, `stage`, a function from a parameter's name to its group's
            name, or lists of parameters. See `GroupWeights`.
        rule: `fixed`, as published, or `trust_ratio` or `normalised`, which scale themselves; see `step_sizes`.
        weight_lr: Step size of the group weights; 0 keeps them at 1 and only reports by group.
        smoothing: As in `Coordinator`; the task's pass is smoothed about the parameters at which it stands, theta or
            theta'.
        **plumbing: As in `Coordinator`; the module is needed under DistributedDataParallel for order 2 and shared
            prefixes.

    Raises:
        ValueError: If a number is out of range, a name is none of those above, or `order=2` meets FSDP2 or smoothing.
    """

    inner: InnerStep

    def __init__(
        self,
        optimizer: Optimizer,
        inner_lr: float = 1.0,
        relative: bool = True,
        first: str = "task",
        *,
        roles: str = "alternate",
        swap_every: int = 1,
        order: Literal[1, 2] = 1,
        scope: Scope = "all",
        groups: Groups = "none",
        rule: str = "fixed",
        weight_lr: float = 0.1,
        smoothing: float = 0.0,
        **plumbing: Unpack[Plumbing],
    ) -> None:
        super().__init__(optimizer, groups=groups, smoothing=smoothing, **plumbing)
        require_number("weight_lr", weight_lr)
        self.roles = Roles(roles, first, swap_every)
        if order not in (1, 2):
            raise ValueError(f"order is {order!r}: it must be 1 or 2")
        if order == 2 and smoothing > 0:
            raise ValueError("order is 2: it has no smoothed form; set smoothing to 0, or order to 1")
        if order == 2 and is_fsdp(self.module):
            raise ValueError("order is 2: FSDP2 shards cannot be differentiated twice; use order 1, or DDP")
        self.order = order
        self.inner = InnerStep(optimizer, inner_lr, rule, relative, scope, self.module, unnoticed=order == 2)
        parameters = optimizer_parameters(optimizer)
        self._average = averaging_of(self.module)
        self.group_weights: GroupWeights | None = None
        if self.group_names:
            self.group_weights = GroupWeights(self.group_names, weight_lr, parameters[0].device)

    @property
    def inner_lr(self) -> float:
        """Inner step size; may be set anew between steps."""
        return self.inner.inner_lr

    @inner_lr.setter
    def inner_lr(self, value: float) -> None:
        self.inner.inner_lr = value

    def role(self, step: int) -> str:
        """The objective that is meta-train in the given step, a pure function of the step number."""
        return self.roles.meta_train(step)

    def _take(self, passes: StepClosures, step: int) -> StepReport:
        passes.require_each()
        shared = passes.shared
        if shared and self.order == 2:
            raise ValueError("a shared prefix is for order 1: order 2 runs the meta-train pass once more")
        if shared and self.smoothing > 0:
            raise ValueError("a shared prefix cannot be smoothed: the task's passes run at other parameters")
        first = self.role(step)
        second = ROLES[1 - ROLES.index(first)]
        parameters = optimizer_parameters(self.optimizer)
        train, test = (getattr(passes, role) for role in (first, second))
        losses: dict[str, Tensor | None] = {first: None, second: None}
        part = SharedPenalty(passes.penalty, parameters, self._run, self.module, shared)
        self.optimizer.zero_grad(set_to_none=True)
        kept: GradientGraph | RandomState | None = None
        with part.beside(first):
            if self.order == 2 and len(train) == 1:
                losses[first], kept = self._run_keeping_graph(train[0], parameters)
            else:
                if self.order == 2:
                    kept = RandomState([p.device for p in parameters[:1]])
                losses[first] = self._run_objective(first, train)
        train_gradients = take_gradients(parameters)
        if self._overflowed(first, norm(train_gradients)):
            add_gradients(parameters, train_gradients)
            return StepReport(first, losses["task"], losses["alignment"], skipped=True)
        alphas = self.inner_step_sizes(train_gradients)
        factors = self._weighted(alphas)
        moved = self.inner.taken(train_gradients, factors, self._scale())
        with moved as displacement, part.beside(second):
            losses[second] = self._run_objective(second, test)
        test_gradients = [p.grad for p in parameters]
        ordered = (train_gradients, test_gradients)
        task_first = ordered if first == "task" else ordered[::-1]
        measures, indices, products = self._measure(*task_first, part.gradients)
        skipped = self._overflowed(second, measures[f"{second}_gradient_norm"])
        if kept is not None and not skipped:
            self._subtract_second_order(train, parameters, factors, test_gradients, kept)
        add_gradients(parameters, train_gradients)
        if shared:
            self._finish_shared(shared, parameters, factors)
        if self.group_weights is not None:
            measures["group_weights"] = self.group_weights.weights()
        learns = self.group_weights is not None and not skipped
        # A step with a loss that is not finite is not taken.
        if learns and products is not None and finite_everywhere(list(losses.values()), self.module):
            self._learn(indices, products, alphas)
        return StepReport(
            first, losses["task"], losses["alignment"], displacement=displacement, skipped=skipped, **measures
        )

    def probe(self, task: Sequence[Closure], alignment: Sequence[Closure]) -> None:
        """Try before training what order 2 needs of the model; it changes nothing.

        Args:
            task: As for `backward`.
            alignment: As for `backward`.

        Raises:
            RuntimeError: If a kernel of the model has no double backward; it names the remedy.
        """
        if self.order == 1:
            return
        parameters = optimizer_parameters(self.optimizer)
        same = RandomState([p.device for p in parameters[:1]]).again()
        with same, self._no_sync(), frozen_running_statistics(self.module or nn.Module()):
            for losses in (task, alignment):
                vector_jacobian_product(losses[:1], parameters, [p.detach() for p in parameters])

    def inner_step_sizes(self, gradients: Sequence[Tensor | None]) -> list[float]:
        """`alpha` of every parameter for meta-train gradients in the order of the optimiser's groups."""
        return self.inner.sizes(gradients, self._scale())

    def state_dict(self) -> dict[str, Any]:
        """As `Coordinator.state_dict`, with the group weights."""
        weights = None if self.group_weights is None else self.group_weights.state_dict()
        return {**super().state_dict(), "group_weights": weights}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """As `Coordinator.load_state_dict`, with the group weights."""
        super().load_state_dict(state)
        if self.group_weights is not None and state["group_weights"] is not None:
            self.group_weights.load_state_dict(state["group_weights"])

    def _weighted(self, alphas: Sequence[float]) -> list[float]:
        """`alpha_p w_g` of every parameter."""
        if self.group_weights is None:
            return list(alphas)
        weights = self.group_weights.weights().tolist()
        return [alpha * weights[group] for alpha, group in zip(alphas, self._group_of, strict=True)]

    def _run_keeping_graph(self, train: Closure, parameters: Sequence[Tensor]) -> tuple[Tensor, GradientGraph]:
        """The meta-train pass with gradients that can be differentiated once more; their values are left in `.grad`."""
        with self._no_sync():
            loss = train()
            graph = GradientGraph(loss * self._scale(), parameters)
        # Copies: what is in .grad is changed in place, and may be one tensor for two parameters, or an expanded one.
        self._leave(parameters, [None if g is None else g.detach().clone() for g in graph.gradients])
        return loss.detach(), graph

    def _subtract_second_order(
        self,
        train: Sequence[Closure],
        parameters: Sequence[Tensor],
        factors: Sequence[float],
        test_gradients: Sequence[Tensor | None],
        kept: GradientGraph | RandomState,
    ) -> None:
        """`.grad -= J_train^T (alpha w g_test)`, scaled as the gradients are, averaged over processes.

        `kept` is the graph of the meta-train pass, or the random numbers on which it is run again.
        """
        scale = self._scale()
        vector = [
            g * (factor / scale) if g is not None and factor > 0 else None
            for g, factor in zip(test_gradients, factors, strict=True)
        ]
        if isinstance(kept, GradientGraph):
            terms = kept.vector_jacobian_product(vector)
        else:
            scaled = [partial(_times, loss, scale) for loss in train]
            with kept.again(), self._no_sync(), frozen_running_statistics(self.module or nn.Module()):
                terms = vector_jacobian_product(scaled, parameters, vector)
        gradients = [p.grad for p in parameters]
        self._leave(parameters, [None if term is None else -term for term in terms])
        add_gradients(parameters, gradients)

    def _leave(self, parameters: Sequence[Tensor], values: Sequence[Tensor | None]) -> None:
        """Put values that no hook of DistributedDataParallel has seen into `.grad`, averaged over processes."""
        if self._average is not None:
            # Every process averages the same tensors, in the same order, whatever its own graph reached.
            full = [
                torch.zeros_like(p) if value is None else value for p, value in zip(parameters, values, strict=True)
            ]
            self._average(full)
            values = [value if bool(value.any()) else None for value in full]
        for p, value in zip(parameters, values, strict=True):
            p.grad = value

    def _learn(self, indices: list[int], products: Tensor, alphas: Sequence[float]) -> None:
        """Group weights learn from `dL_test/dw_g = -sum_p alpha_p <g_train,p, g_test,p>`."""
        if self.group_weights is not None:
            place = torch.tensor([self._group_of[i] for i in indices], device=products.device)
            slopes = -products.new_tensor([alphas[i] for i in indices]) * products
            self.group_weights.update(slopes.new_zeros(len(self.group_names)).index_add(0, place, slopes))

    def _finish_shared(
        self, shared: Sequence[SharedPrefix], parameters: Sequence[Tensor], factors: Sequence[float]
    ) -> None:
        """Send both passes' gradients through the prefixes, and average what DDP has not seen."""
        gradients = take_gradients(parameters)
        for index, prefix in enumerate(shared):
            with self._no_sync() if index < len(shared) - 1 else nullcontext():
                prefix.backward(parameters if self._average is not None else None)
        for p, gradient, factor in zip(parameters, gradients, factors, strict=True):
            if p.grad is not None and (gradient is not None or factor > 0):
                raise RuntimeError(NOT_THE_ONLY_WAY)
        if self._average is not None:
            self._average([p.grad for p in parameters if p.grad is not None])
        add_gradients(parameters, gradients)


def _times(loss: Closure, scale: float) -> Tensor:
    return loss() * scale
