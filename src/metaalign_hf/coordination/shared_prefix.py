"""The part of a network that takes no inner step, run once for both passes of a step."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from ._replacement import replaced_attribute
from .gradients import add_gradients
from .statistics import frozen_running_statistics

__all__ = ["NOT_THE_ONLY_WAY", "SharedPrefix", "answering", "siblings_on_the_way"]

NOT_THE_ONLY_WAY = (
    "a shared prefix cannot be used here: a parameter before its entry takes the inner step, or reaches the losses by "
    "another way than the entry's first input; run full passes instead"
)


class SharedPrefix:
    """Runs the layers before `entry` once, on the mixed batch, and both passes of a step on what they gave.

    With h = prefix(x) and the inner step taken by the layers from `entry` on alone, theta' shares the prefix with
    theta, so that both passes see the same h::

        L_train = l_train(suffix(h)),    L_test = l_test(suffix'(h)),    prefix.grad = (dL_train/dh + dL_test/dh) dh

    which is the gradient of the full form: the prefix's activations and its backward pass are simply not computed
    twice. What differs from two separate passes is that normalisation layers with live batch statistics see the mixed
    batch in the prefix also for the task, as they do in a joint step.

    Both passes are ordinary forwards through the (wrapped) model inside `run`, so that DistributedDataParallel and
    FSDP2 see each of them. In the first, the input of `entry` is cut out of the graph. In the second, the layers before
    `entry` answer with what they returned in the first, without computing, and `entry` gets the same input again. When
    both passes have run backward, `backward` sends the summed gradient of h through the prefix.

    Args:
        module: The model, bare.
        entry: The submodule with which the suffix begins; its first argument must be the only way from the prefix to
            the losses.
    """

    def __init__(self, module: nn.Module, entry: nn.Module) -> None:
        self.module = module
        self.entry = entry
        self._before = siblings_on_the_way(module, entry)
        self._outputs: dict[nn.Module, list[Any]] = {}
        self._hidden: Tensor | None = None
        self._leaf: Tensor | None = None

    @contextmanager
    def run(self, rows: slice = slice(None), freeze_statistics: bool = False) -> Iterator[None]:
        """A context for one forward pass of the model.

        Args:
            rows: The rows of the batch that go on from `entry`.
            freeze_statistics: Whether batch normalisations from `entry` on leave their running statistics alone.

        Raises:
            RuntimeError: If the forward pass does not come to `entry`.
        """
        with ExitStack() as stack:
            reached: list[bool] = []

            def cut(_: nn.Module, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> Any:
                if reached:
                    raise RuntimeError("the entry of the last stage runs twice in one forward pass: cannot share")
                reached.append(True)
                name = None if arguments else next(iter(keywords))
                hidden = arguments[0] if name is None else keywords[name]
                if self._leaf is None:
                    self._hidden, self._leaf = hidden, hidden.detach().requires_grad_()
                if freeze_statistics:
                    stack.enter_context(frozen_running_statistics(self.module))
                chosen = self._leaf[rows]
                return ((chosen, *arguments[1:]), keywords) if name is None else (arguments, {**keywords, name: chosen})

            handle = self.entry.register_forward_pre_hook(cut, with_kwargs=True)
            stack.callback(handle.remove)
            if self._leaf is None:
                for layer in self._before:
                    stack.callback(layer.register_forward_hook(self._record(reached)).remove)
            else:
                for layer, outputs in self._outputs.items():
                    stack.enter_context(answering(layer, outputs))
            yield
            if not reached:
                raise RuntimeError("the forward pass does not come to the entry of the last stage: cannot share")

    def backward(self, parameters: Sequence[Tensor] | None = None) -> None:
        """Send the gradient that both passes left at the entry through the prefix, and forget the step.

        Args:
            parameters: Parameters whose `.grad` is added to without running their hooks. Under DistributedDataParallel
                a hook that fires outside a synchronised pass would be held against the next one. By default the
                ordinary backward pass runs.

        Raises:
            RuntimeError: If a pass has run backward through the prefix by another way already.
        """
        assert self._hidden is not None and self._leaf is not None
        try:
            if self._leaf.grad is None or not self._hidden.requires_grad:
                return
            if parameters is None:
                self._hidden.backward(self._leaf.grad)
                return
            found = torch.autograd.grad(self._hidden, list(parameters), self._leaf.grad, allow_unused=True)
            add_gradients(parameters, found)
        except RuntimeError as error:
            if "second time" in str(error):
                raise RuntimeError(NOT_THE_ONLY_WAY) from error
            raise
        finally:
            self.forget()

    @contextmanager
    def aside(self) -> Iterator[None]:
        """A context for passes whose gradient does not go through the prefix."""
        kept = None if self._leaf is None else self._leaf.grad
        if self._leaf is not None:
            self._leaf.grad = None
        try:
            yield
        finally:
            if self._leaf is not None:
                self._leaf.grad = kept

    def forget(self) -> None:
        """Let go of the step's activations."""
        self._outputs, self._hidden, self._leaf = {}, None, None

    def _record(self, reached: list[bool]) -> Callable[..., None]:
        def record(layer: nn.Module, _: Any, output: Any) -> None:
            if not reached:
                self._outputs.setdefault(layer, []).append(tree_map(_detached, output))

        return record


@contextmanager
def answering(layer: nn.Module, outputs: list[Any]) -> Iterator[None]:
    """The layer's first calls inside return what it returned before; later ones are real."""
    left = list(outputs)
    real = layer.forward

    def answer(*arguments: Any, **keywords: Any) -> Any:
        return left.pop(0) if left else real(*arguments, **keywords)

    with replaced_attribute(layer, "forward", answer):
        yield


def siblings_on_the_way(module: nn.Module, entry: nn.Module) -> list[nn.Module]:
    """The children of all ancestors of `entry` that do not lead to it themselves."""
    path = next((name for name, part in module.named_modules() if part is entry), None)
    if path is None:
        raise ValueError("entry is not a submodule of the model")
    siblings, ancestor = [], module
    for name in path.split("."):
        siblings += [child for key, child in ancestor.named_children() if key != name]
        ancestor = ancestor.get_submodule(name)
    return siblings


def _detached(value: Any) -> Any:
    return value.detach() if isinstance(value, torch.Tensor) else value
