"""The MetaAlign step: turn a task objective and an alignment objective into one gradient.

Usable alone in any PyTorch loop, with any optimiser and any model; it needs nothing but torch::

    meta = MetaAlign(optimizer, inner_lr=1.0, relative=True, first="task")
    report = meta.backward(task=[lambda: task_loss()], alignment=[lambda: alignment_loss()])
    optimizer.step()

One objective is the meta-train objective, the other the meta-test objective, and the roles swap from step to step::

    theta' = theta - alpha * g_train(theta)                    inner step
    .grad  = g_train(theta) + g_test(theta')                   first order: theta' is held constant

By Taylor, ``L_test(theta - alpha g_train) = L_test(theta) - alpha <g_train, g_test> + ...``: following this gradient
over two steps with swapped roles raises the inner product of the two gradients.

The inner step is taken by *perturb and restore*: the parameters are moved in place, the meta-test loss runs backward
through the very same module, and an exact copy is put back. No functional call and no double graph is needed, so the
step costs two passes and is exact under DDP, with any attention kernel, under torch.compile and gradient checkpointing.

Source: Wei, Lan, Zeng, Chen, "MetaAlign: Coordinating Domain Alignment and Classification for Unsupervised Domain
Adaptation", CVPR 2021, section 3.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

__all__ = ["ROLES", "Joint", "MetaAlign", "StepReport", "frozen_running_statistics"]

ROLES = ("task", "alignment")

Closure = Callable[[], Tensor]
JointClosure = Callable[[], tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class StepReport:
    """What one step measured. All values are detached scalars; they stay on their device until `to_dict` is called.

    Attributes:
        first: The meta-train objective of this step ("task" or "alignment"), or "joint".
        task_loss: Task loss, averaged over the micro-batches.
        alignment_loss: Alignment loss, averaged over the micro-batches.
        task_gradient_norm: Euclidean norm of the task gradient; None where the two gradients were not separated.
        alignment_gradient_norm: The same for the alignment gradient.
        inner_product: `<g_task, g_alignment>` over the parameters that receive both. For `MetaAlign` the meta-test
            gradient is taken at theta'.
        cosine: `inner_product / (|g_task| |g_alignment|)` with both norms over those shared parameters, so that a
            discriminator, which only one objective trains, does not dilute it. 0 where one of the norms is 0.
        displacement: `|theta' - theta|`, the length of the inner step; 0 for `Joint`.
    """

    first: str
    task_loss: Tensor
    alignment_loss: Tensor
    task_gradient_norm: Tensor | None = None
    alignment_gradient_norm: Tensor | None = None
    inner_product: Tensor | None = None
    cosine: Tensor | None = None
    displacement: Tensor | None = None

    def to_dict(self) -> dict[str, float | str]:
        """The report as plain numbers (this waits for the device); quantities that were not measured are left out."""
        values: dict[str, float | str] = {"first": self.first}
        for name, value in vars(self).items():
            if isinstance(value, Tensor):
                values[name] = float(value)
        return values


class Joint:
    """The baseline: the plain sum of the two gradients at theta, `.grad = g_task(theta) + g_alignment(theta)`.

    Args:
        optimizer: Its parameter groups name the parameters.
        backward: Called with each scaled loss instead of `loss.backward()`, e.g. `accelerator.backward`.
        no_sync: Makes a context in which a backward pass does not average gradients over processes
            (`lambda: ddp_model.no_sync()`); it is used for all micro-batches but the last of a pass.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        *,
        backward: Callable[[Tensor], None] | None = None,
        no_sync: Callable[[], AbstractContextManager[None]] | None = None,
    ) -> None:
        self.optimizer = optimizer
        self._backward = backward if backward is not None else torch.Tensor.backward
        self._no_sync = no_sync if no_sync is not None else nullcontext

    def backward(
        self,
        task: Sequence[Closure] = (),
        alignment: Sequence[Closure] = (),
        *,
        both: Sequence[JointClosure] = (),
    ) -> StepReport:
        """Leave the joint gradient of the whole accumulated batch in `.grad` (which is overwritten).

        Args:
            task: Closures that each run a forward pass and return the task loss of one micro-batch.
            alignment: The same for the alignment loss.
            both: Closures that return `(task loss, alignment loss)` from one forward pass on the concatenated batch,
                the cheapest form; the two gradients are then not told apart, and the report has no cosine.

        Returns:
            The report of this step.

        Raises:
            ValueError: If neither `both` nor both of `task` and `alignment` are given.
        """
        if both and not task and not alignment:
            self.optimizer.zero_grad(set_to_none=True)
            task_loss, alignment_loss = self._run_both(both)
            return StepReport("joint", task_loss, alignment_loss)
        _require_closures(task, alignment, both)
        parameters = _parameters(self.optimizer)
        self.optimizer.zero_grad(set_to_none=True)
        task_loss = self._run(task)
        task_gradients = _take_gradients(parameters)
        alignment_loss = self._run(alignment)
        measures = _measure(task_gradients, [p.grad for p in parameters])
        _add_gradients(parameters, task_gradients)
        return StepReport("joint", task_loss, alignment_loss, *measures, displacement=task_loss.new_zeros(()))

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

    def _run_both(self, closures: Sequence[JointClosure]) -> tuple[Tensor, Tensor]:
        """As `_run` for closures with two losses, each averaged by itself."""
        totals: list[Tensor] = []

        def sum_of(closure: JointClosure) -> Closure:
            def run() -> Tensor:
                losses = closure()
                detached = [loss.detach() / len(closures) for loss in losses]
                totals[:] = [t + d for t, d in zip(totals, detached, strict=True)] if totals else detached
                return losses[0] + losses[1]

            return run

        self._run([sum_of(closure) for closure in closures])
        return totals[0], totals[1]


class MetaAlign(Joint):
    """The first-order MetaAlign step, by perturb and restore.

    With `alpha_p` the inner step size of parameter p::

        theta'_p = theta_p - alpha_p * g_train,p(theta)        for every p that the meta-train objective reaches
        .grad    = g_train(theta) + g_test(theta')

    `alpha_p = inner_lr * lr` of p's optimiser group when `relative`, else `inner_lr`; times the group's entry
    `"inner_lr_multiplier"` where it has one. Each objective is a list of closures, one per micro-batch: the inner step
    uses the gradient of the whole accumulated batch, so accumulation changes nothing. Parameters are restored exactly
    (bit for bit), also when a closure raises; gradients are then cleared.

    Args:
        optimizer: Its parameter groups name the parameters and their learning rates.
        inner_lr: Inner step size, relative to the group's learning rate or absolute. 0 gives the joint gradient.
        relative: Whether `inner_lr` multiplies each group's current learning rate.
        first: The objective that is meta-train in step 0.
        swap_every: The roles swap every so many steps; 0 keeps `first` as meta-train for good.
        backward: As in `Joint`.
        no_sync: As in `Joint`.

    Raises:
        ValueError: If `inner_lr` is negative or not finite, `first` is not an objective or `swap_every` is negative.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        inner_lr: float = 1.0,
        relative: bool = True,
        first: str = "task",
        swap_every: int = 1,
        *,
        backward: Callable[[Tensor], None] | None = None,
        no_sync: Callable[[], AbstractContextManager[None]] | None = None,
    ) -> None:
        super().__init__(optimizer, backward=backward, no_sync=no_sync)
        if not math.isfinite(inner_lr) or inner_lr < 0:
            raise ValueError(f"inner_lr is {inner_lr}: it must be a finite number, 0 or more")
        if first not in ROLES:
            raise ValueError(f"first is {first!r}: it must be one of {', '.join(ROLES)}")
        if swap_every < 0:
            raise ValueError(f"swap_every is {swap_every}: it must be 0 (never swap) or more")
        self.inner_lr = inner_lr
        self.relative = relative
        self.first = first
        self.swap_every = swap_every
        self.step = 0
        self._saved: dict[Tensor, Tensor] = {}

    def role(self, step: int) -> str:
        """The objective that is meta-train in the given step, a pure function of the step number."""
        swapped = self.swap_every > 0 and (step // self.swap_every) % 2 == 1
        return ROLES[1 - ROLES.index(self.first)] if swapped else self.first

    def backward(
        self,
        task: Sequence[Closure] = (),
        alignment: Sequence[Closure] = (),
        *,
        both: Sequence[JointClosure] = (),
        step: int | None = None,
    ) -> StepReport:
        """Leave the MetaAlign gradient of the whole accumulated batch in `.grad` (which is overwritten).

        Args:
            task: Closures that each run a forward pass and return the task loss of one micro-batch.
            alignment: The same for the alignment loss.
            both: Not for MetaAlign, whose two passes run at different parameters.
            step: Number of the step, which decides the roles; by default the calls are counted from 0.

        Returns:
            The report of this step.

        Raises:
            ValueError: If an objective has no closures, or `both` is given.
        """
        _require_closures(task, alignment, both)
        self.step = self.step if step is None else step
        first = self.role(self.step)
        parameters = _parameters(self.optimizer)
        train, test = (task, alignment) if first == "task" else (alignment, task)

        self.optimizer.zero_grad(set_to_none=True)
        train_loss = self._run(train)
        train_gradients = _take_gradients(parameters)
        try:
            with self._inner_step(train_gradients) as displacement:
                test_loss = self._run(test)
        except BaseException:
            self.optimizer.zero_grad(set_to_none=True)
            raise
        test_gradients = [p.grad for p in parameters]
        task_gradients, alignment_gradients = (
            (train_gradients, test_gradients) if first == "task" else (test_gradients, train_gradients)
        )
        measures = _measure(task_gradients, alignment_gradients)
        _add_gradients(parameters, train_gradients)
        self.step += 1
        task_loss, alignment_loss = (train_loss, test_loss) if first == "task" else (test_loss, train_loss)
        return StepReport(first, task_loss, alignment_loss, *measures, displacement=displacement)

    def inner_step_sizes(self) -> list[float]:
        """`alpha` of every parameter, in the order of the optimiser's groups."""
        sizes = []
        for group in self.optimizer.param_groups:
            size = self.inner_lr * (float(group["lr"]) if self.relative else 1.0)
            sizes += [size * float(group.get("inner_lr_multiplier", 1.0))] * len(group["params"])
        return sizes

    @contextmanager
    def _inner_step(self, gradients: list[Tensor | None]) -> Iterator[Tensor]:
        """Parameters at theta' inside, at theta (the exact same bits) afterwards; yields `|theta' - theta|`."""
        moved = [
            (p, g, a)
            for p, g, a in zip(_parameters(self.optimizer), gradients, self.inner_step_sizes(), strict=True)
            if g is not None and a > 0
        ]
        if not moved:
            yield torch.zeros(())
            return
        parameters = [p for p, _, _ in moved]
        for p in parameters:
            if p not in self._saved:
                self._saved[p] = torch.empty_like(p, requires_grad=False)
        copies = [self._saved[p] for p in parameters]
        with torch.no_grad():
            torch._foreach_copy_(copies, parameters)
            steps = torch._foreach_mul([g for _, g, _ in moved], [-a for _, _, a in moved])
            displacement = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(steps)))
            torch._foreach_add_(parameters, steps)
            del steps
        try:
            yield displacement
        finally:
            with torch.no_grad():
                torch._foreach_copy_(parameters, copies)


@contextmanager
def frozen_running_statistics(module: nn.Module) -> Iterator[None]:
    """Batch normalisation uses the batch's statistics inside, but does not move its running statistics.

    For the pass that sees one domain only: the running statistics then come from the mixed pass alone, instead of
    leaning to the source. A layer in eval mode is left as it is.
    """
    layers = [
        m
        for m in module.modules()
        if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.training and m.track_running_stats
    ]
    for layer in layers:
        layer.track_running_stats = False
    try:
        yield
    finally:
        for layer in layers:
            layer.track_running_stats = True


def _require_closures(task: Sequence[Closure], alignment: Sequence[Closure], both: Sequence[JointClosure]) -> None:
    if both or not task or not alignment:
        raise ValueError("give at least one closure for the task and one for the alignment objective")


def _parameters(optimizer: Optimizer) -> list[Tensor]:
    return [p for group in optimizer.param_groups for p in group["params"]]


def _take_gradients(parameters: Sequence[Tensor]) -> list[Tensor | None]:
    """Detach the gradients from their parameters; a view into a shared buffer (a DDP bucket) is copied first."""
    gradients = []
    for p in parameters:
        gradient, p.grad = p.grad, None
        if gradient is not None and gradient.untyped_storage().nbytes() > gradient.numel() * gradient.element_size():
            gradient = gradient.clone()
        gradients.append(gradient)
    return gradients


def _add_gradients(parameters: Sequence[Tensor], gradients: Sequence[Tensor | None]) -> None:
    """Add the gradients to what is in `.grad`."""
    pairs = []
    for p, gradient in zip(parameters, gradients, strict=True):
        if p.grad is None:
            p.grad = gradient
        elif gradient is not None:
            pairs.append((p.grad, gradient))
    if pairs:
        torch._foreach_add_([a for a, _ in pairs], [b for _, b in pairs])


def _measure(
    task: Sequence[Tensor | None], alignment: Sequence[Tensor | None]
) -> tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None]:
    """Norms of both gradients, their inner product and cosine."""
    shared = [(a, b) for a, b in zip(task, alignment, strict=True) if a is not None and b is not None]
    if not shared:
        return _norm(task), _norm(alignment), None, None
    product = torch.stack([torch.dot(a.flatten(), b.flatten()) for a, b in shared]).sum()
    norms = _norm([a for a, _ in shared]), _norm([b for _, b in shared])
    assert norms[0] is not None and norms[1] is not None
    scale = norms[0] * norms[1]
    cosine = torch.where(scale > 0, product / scale.clamp_min(torch.finfo(scale.dtype).tiny), torch.zeros_like(scale))
    return _norm(task), _norm(alignment), product, cosine


def _norm(gradients: Sequence[Tensor | None]) -> Tensor | None:
    present = [g for g in gradients if g is not None]
    return torch.linalg.vector_norm(torch.stack(torch._foreach_norm(present))) if present else None
