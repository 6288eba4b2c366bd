"""What every coordinator of task and alignment shares: its passes, its measures and the frame of a step."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, TypedDict

import torch
from torch import Tensor, nn
from torch.amp import GradScaler
from torch.optim import Optimizer

from .closures import Closure, JointClosure, StepClosures
from .gradients import add_gradients, inner_products, norm, optimizer_parameters, squared_norms, take_gradients
from .group_weights import Groups, resolve_groups
from .inner_step import InnerStep, require_number
from .penalty import SharedPenalty
from .perturbation import Perturbation
from .report import ROLES, StepReport
from .share import AlignmentShare
from .shared_prefix import SharedPrefix
from .statistics import frozen_running_statistics
from .wrapping import no_sync_of, unwrapped

__all__ = ["Coordinator", "Plumbing"]


class Plumbing(TypedDict, total=False):
    """How a step reaches the model, the same for every form of it; see `Coordinator`."""

    module: nn.Module | None
    scaler: GradScaler | None
    backward: Callable[[Tensor], None] | None
    no_sync: Callable[[], AbstractContextManager[Any]] | None


class Coordinator(ABC):
    """Turns task and alignment losses into one gradient. Each form of the step is a subclass.

    Args:
        optimizer: Its parameter groups name the parameters.
        groups: Groups whose gradients are compared one by one in the report: `none`, `stage` (see `find_stages`), a
            function from a parameter's name to its group's name, or lists of parameters.
        smoothing: Radius rho of a sharpness-aware task gradient; 0 takes the plain one. It costs one more task pass::

                g_task(theta + rho g / |g|)    with g = g_task(theta)

            of the whole accumulated batch; the alignment gradient stays the plain one, as in the objective of Rangwani
            et al., "A Closer Look at Smoothness in Domain Adversarial Training" (SDAT), ICML 2022. (Their
            code takes it after the ascent too, since one forward pass serves both losses there.)
        module: The model as it is called, wrapped or not. Needed for groups by name, for running statistics that stay
            as they are in a second pass, and to keep gradients local during accumulation (DistributedDataParallel,
            FSDP2).
        scaler: The gradient scaler of fp16 training; gradients are left scaled, as it expects them.
        backward: Called with each loss instead of `loss.backward()`, e.g. `accelerator.backward`, which scales it.
        no_sync: Makes a context in which a backward pass does not average gradients over processes; by default that of
            `module`. It is used for all micro-batches but the last of a pass.

    Attributes:
        inner: The inner step; None where there is none.
        share: What the state of the coordinator has of a share of the task gradient, where one is measured; None where
            the alignment gradient is taken as it is. See `shared_norms`.
        step: Number of steps taken.

    Raises:
        ValueError: If `groups` is none of these, or `smoothing` is out of range.
    """

    inner: InnerStep | None = None
    share: AlignmentShare | None = None

    def __init__(
        self,
        optimizer: Optimizer,
        *,
        groups: Groups = "none",
        smoothing: float = 0.0,
        module: nn.Module | None = None,
        scaler: GradScaler | None = None,
        backward: Callable[[Tensor], None] | None = None,
        no_sync: Callable[[], AbstractContextManager[Any]] | None = None,
    ) -> None:
        require_number("smoothing", smoothing)
        self.optimizer = optimizer
        self.smoothing = smoothing
        self._ascent = Perturbation()
        self.module = module
        self.scaler = scaler
        self._backward = backward or (torch.Tensor.backward if scaler is None else self._scaled_backward)
        self._no_sync = no_sync if no_sync is not None else no_sync_of(module)
        bare = None if module is None else unwrapped(module)
        self.group_names, self._group_of = resolve_groups(groups, optimizer_parameters(optimizer), bare)
        self.step = 0

    def backward(
        self,
        task: Sequence[Closure] = (),
        alignment: Sequence[Closure] = (),
        *,
        both: Sequence[JointClosure] = (),
        shared: Sequence[SharedPrefix] = (),
        penalty: Sequence[Closure] = (),
        step: int | None = None,
    ) -> StepReport:
        """Leave the gradient of the step, of the whole accumulated batch, in `.grad` (which is overwritten).

        When something raises, the parameters are as before and gradients are cleared.

        Args:
            task: Closures that each run a forward pass and return the task loss of one micro-batch.
            alignment: The same for the alignment loss.
            both: Closures that return `(task loss, alignment loss)` from one forward pass on the concatenated batch,
                the cheapest form. `Joint`, `Game` and `RememberedMetaAlign` use them where they are given and the two
                gradients need not be known apart; the report then has no cosine.
            shared: The prefix of each micro-batch inside whose `run` the closures run their passes, if they do
                (`MetaAlign`).
            penalty: Closures that return the part of the alignment loss that stands in the task loss as well, of one
                micro-batch each. Where they are given, the report's cosine leaves that part out and tells it apart, at
                the cost of one more pass, which changes nothing else. See `SharedPenalty`.
            step: Number of the step, which decides roles and refreshes; by default the calls are counted from 0.

        Returns:
            The report of this step.

        Raises:
            ValueError: If an objective has no closures that the form can use, or shared prefixes meet order 2 or
                smoothing.
            RuntimeError: If something takes a way around a shared prefix, or (order 2) a kernel has no double backward.
            FloatingPointError: If a gradient is not finite; it names the objective. With a scaler the report says
                `skipped` instead, and the optimiser's step through the scaler does nothing.
        """
        step = self.step if step is None else step
        self.step = step + 1
        try:
            return self._take(StepClosures(task, alignment, both, shared, penalty), step)
        except BaseException:
            self.optimizer.zero_grad(set_to_none=True)
            for prefix in shared:
                prefix.forget()
            raise

    def backward_alone(self, closures: Sequence[Closure], first: str) -> StepReport:
        """Leave the gradient of one loss in `.grad`, such as that of the task before the adaptation.

        Args:
            closures: As for `backward`; without any there is no gradient, and the loss is 0.
            first: What the report calls the loss.

        Raises:
            FloatingPointError: If the gradient is not finite and not scaled.
        """
        self.optimizer.zero_grad(set_to_none=True)
        parameters = optimizer_parameters(self.optimizer)
        loss = self._run(closures) if closures else torch.zeros((), device=parameters[0].device)
        if self.scaler is None:
            self._overflowed("task", norm(p.grad for p in parameters))
        return StepReport(first, loss, None)

    def shared_norms(
        self, task: Sequence[Closure], alignment: Sequence[Closure], shared: Sequence[SharedPrefix] = ()
    ) -> tuple[float, float]:
        """Norms of the two gradients over the parameters that both objectives reach, for `AlignmentShare`.

        The same on all processes. It costs a pass of each, waits for the device, and changes nothing: gradients are
        cleared, and running statistics stay.

        Args:
            task: As for `backward`.
            alignment: As for `backward`.
            shared: As for `backward`; the parameters are then those behind the prefix.

        Raises:
            ValueError: If there is no such parameter.
        """
        parameters = optimizer_parameters(self.optimizer)
        found: list[list[Tensor | None]] = []
        with frozen_running_statistics(self.module or nn.Module()):
            for closures in (task, alignment):
                self.optimizer.zero_grad(set_to_none=True)
                self._run(closures)
                found.append(take_gradients(parameters))
        for prefix in shared:
            prefix.forget()
        both = [pair for pair in zip(*found, strict=True) if pair[0] is not None and pair[1] is not None]
        if not both:
            raise ValueError("alignment_share: task and alignment train no parameter together")
        task_norm, alignment_norm = (norm(gradients) for gradients in zip(*both, strict=True))
        assert task_norm is not None and alignment_norm is not None
        return float(task_norm) / self._scale(), float(alignment_norm) / self._scale()

    @abstractmethod
    def _take(self, passes: StepClosures, step: int) -> StepReport:
        """Leave the gradient of the step in `.grad`, which holds that of the step before."""

    def probe(self, task: Sequence[Closure], alignment: Sequence[Closure]) -> None:  # noqa: B027, asked of some forms
        """Try before training what a step needs of the model; it changes nothing.

        Args:
            task: As for `backward`.
            alignment: As for `backward`.

        Raises:
            RuntimeError: If the model cannot do it; it names the remedy.
        """

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs, as JSON values: the number of steps, and the inner step's; see also `memory`."""
        share = {} if self.share is None else {"share": self.share.state_dict()}
        return {"step": self.step, **({} if self.inner is None else self.inner.state_dict()), **share}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Put back what `state_dict` gave.

        Raises:
            ValueError: If it is of another rule, or of other parameters or groups.
        """
        self.step = state["step"]
        if self.inner is not None:
            self.inner.load_state_dict(state)
        if self.share is not None:
            self.share.load_state_dict(state["share"])

    @property
    def memory(self) -> nn.Module | None:
        """Tensors that a resumed run needs, as the state of a module; None where there are none."""
        return None

    def _run(self, closures: Sequence[Closure]) -> Tensor:
        """Backward through the mean of the closures' losses; returns that mean."""
        total: Tensor | None = None
        for index, closure in enumerate(closures):
            with nullcontext() if index == len(closures) - 1 else self._no_sync():
                loss = closure() / len(closures)
                self._backward(loss)
            total = loss.detach() if total is None else total + loss.detach()
        assert total is not None
        return total

    def _run_objective(self, name: str, closures: Sequence[Closure]) -> Tensor:
        """`_run`, smoothed if it is the task's pass and smoothing is on; returns the loss at the present parameters."""
        if name != "task" or self.smoothing == 0:
            return self._run(closures)
        with frozen_running_statistics(self.module or nn.Module()):
            loss = self._run(closures)
        parameters = optimizer_parameters(self.optimizer)
        pairs = [(p, g) for p, g in zip(parameters, take_gradients(parameters), strict=True) if g is not None]
        moving, directions = [p for p, _ in pairs], [g for _, g in pairs]
        length = float(size) if (size := norm(directions)) is not None else 0.0
        if not math.isfinite(length):
            add_gradients(moving, directions)  # an overflow, which the caller finds there
            return loss
        with self._ascent.moved(moving, directions, [self.smoothing / length if length > 0 else 0.0] * len(pairs)):
            del pairs, directions
            self._run(closures)
        return loss

    def _run_apart(self, passes: StepClosures) -> tuple[StepReport, list[Tensor | None]]:
        """The passes of each objective; returns the report and the task gradient, and leaves the other in `.grad`."""
        passes.require_each()
        parameters = optimizer_parameters(self.optimizer)
        self.optimizer.zero_grad(set_to_none=True)
        task_loss = self._run_objective("task", passes.task)
        task_gradients = take_gradients(parameters)
        part = SharedPenalty(passes.penalty, parameters, self._run, self.module)
        with part.beside():
            alignment_loss = self._run(passes.alignment)
        measures = self._measure(task_gradients, [p.grad for p in parameters], part.gradients)[0]
        skipped = any([self._overflowed(name, measures[f"{name}_gradient_norm"]) for name in ROLES])
        still = task_loss.new_zeros(())
        report = StepReport("joint", task_loss, alignment_loss, displacement=still, skipped=skipped, **measures)
        return report, task_gradients

    def _run_together(self, closures: Sequence[JointClosure]) -> StepReport:
        """The passes that give both losses, each averaged by itself; leaves the sum of the gradients in `.grad`."""
        totals: list[Tensor] = []

        def sum_of(closure: JointClosure) -> Closure:
            def run() -> Tensor:
                losses = closure()
                detached = [loss.detach() / len(closures) for loss in losses]
                totals[:] = [t + d for t, d in zip(totals, detached, strict=True)] if totals else detached
                return losses[0] + losses[1]

            return run

        self.optimizer.zero_grad(set_to_none=True)
        self._run([sum_of(closure) for closure in closures])
        skipped = self._overflowed("joint", norm(p.grad for p in optimizer_parameters(self.optimizer)))
        return StepReport("joint", totals[0], totals[1], skipped=skipped)

    def _scaled_backward(self, loss: Tensor) -> None:
        assert self.scaler is not None
        self.scaler.scale(loss).backward()

    def _scale(self) -> float:
        """By how much the gradients in `.grad` are scaled."""
        return 1.0 if self.scaler is None or not self.scaler.is_enabled() else float(self.scaler.get_scale())

    def _overflowed(self, objective: str, size: Tensor | None) -> bool:
        """Whether a scaled gradient overflowed; a gradient that is not scaled must be finite."""
        if size is None or bool(torch.isfinite(size)):
            return False
        if self.scaler is not None and self.scaler.is_enabled():
            return True
        self.optimizer.zero_grad(set_to_none=True)
        raise FloatingPointError(f"the gradient of the {objective} objective is {float(size)}")

    def _measure(
        self,
        task: Sequence[Tensor | None],
        alignment: Sequence[Tensor | None],
        penalty: Sequence[Tensor | None] | None = None,
    ) -> tuple[dict[str, Any], list[int], Tensor | None]:
        """What a report says of two gradients, and the unscaled inner product of each pair with its index.

        Args:
            task: The task gradient.
            alignment: The alignment gradient.
            penalty: The part of it that belongs to a penalty of both losses, which the cosines then leave out.
        """
        scale = self._scale()
        measures: dict[str, Any] = {}
        places, squares = [], []
        for name, gradients in (("task", task), ("alignment", alignment)):
            places.append([i for i, g in enumerate(gradients) if g is not None])
            found = squared_norms([g for g in gradients if g is not None]) / scale**2 if places[-1] else None
            measures[f"{name}_gradient_norm"] = None if found is None else found.sum().sqrt()
            squares.append(found)
        both = set(places[0]) & set(places[1])
        indices = [i for i in places[0] if i in both]
        if not indices:
            return measures, [], None
        products = inner_products([task[i] for i in indices], [alignment[i] for i in indices]) / scale**2  # type: ignore[misc]
        shared = [x[[n for n, i in enumerate(p) if i in both]] for x, p in zip(squares, places, strict=True)]  # type: ignore[index]
        measures["inner_product"] = products.sum()
        measures["cosine"] = _cosine(products.sum(), shared[0].sum(), shared[1].sum())
        if self.group_names:
            place = torch.tensor([self._group_of[i] for i in indices], device=products.device)
            sums = [products.new_zeros(len(self.group_names)).index_add(0, place, x) for x in (products, *shared)]
            measures["groups"] = tuple(self.group_names)
            measures["group_inner_products"] = sums[0]
            measures["group_cosines"] = _cosine(*sums)
        if penalty is not None:
            measures |= self._measure_apart(task, alignment, penalty)
        return measures, indices, products

    def _measure_apart(
        self, task: Sequence[Tensor | None], alignment: Sequence[Tensor | None], penalty: Sequence[Tensor | None]
    ) -> dict[str, Any]:
        """The cosines of the task gradient with the alignment gradient less the penalty's, and with the penalty's."""
        alone = [g if p is None else -p if g is None else g - p for g, p in zip(alignment, penalty, strict=True)]
        with_term, with_penalty = self._measure(task, alone)[0], self._measure(task, penalty)[0]
        found = {name: with_term.get(name) for name in ("cosine", "group_cosines")}
        return {
            **{name: value for name, value in found.items() if value is not None},
            "penalty_cosine": with_penalty.get("cosine"),
            "penalty_gradient_norm": with_penalty["alignment_gradient_norm"],
        }


def _cosine(product: Tensor, first: Tensor, second: Tensor) -> Tensor:
    """`product / sqrt(first second)`, 0 where that has no meaning."""
    scale = (first * second).sqrt()
    return torch.where(scale > 0, product / scale.clamp_min(torch.finfo(scale.dtype).tiny), torch.zeros_like(scale))
