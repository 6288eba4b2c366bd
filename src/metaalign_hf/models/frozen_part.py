"""The frozen stages of a backbone, left out: a pass begins with what they gave for its images before.

With h = prefix(x), where nothing of the prefix trains, h is computed once for every x, and a pass is suffix(h). The
suffix is the backbone itself: its forward runs on one blank image, of which the layers before the suffix answer without
computing, and where the suffix begins h takes the blank's place. What these layers give besides h, such as rotary
position embeddings, must not depend on the image; `check` finds that out.
"""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map
from transformers import PreTrainedModel

from ..coordination.shared_prefix import answering, siblings_on_the_way
from ..errors import one_line
from .backbone import pooled_features

__all__ = ["FrozenPart"]


class _Reached(Exception):
    """The forward pass is where the suffix begins."""


class FrozenPart:
    """The stages of a backbone before one that trains.

    Args:
        backbone: The backbone; what comes before the entry is frozen, and in evaluation mode.
        entry: The submodule with which the suffix begins.
        image_size: Side of the images, in pixels.
    """

    def __init__(self, backbone: PreTrainedModel, entry: nn.Module, image_size: int) -> None:
        self.backbone, self.entry, self.image_size = backbone, entry, image_size
        self._before = siblings_on_the_way(backbone, entry)
        self._answers: dict[nn.Module, list[Any]] = {}
        self._answered_for: Any = None
        self._shape: torch.Size | None = None

    def outputs(self, pixel_values: Tensor) -> Tensor:
        """What the frozen stages give for images `(B, 3, S, S)`, flat: `(B, D)`."""
        with self._stopping() as reached:
            pooled_features(self.backbone, pixel_values)
        return reached[0].flatten(1)

    def rest(self, rows: Tensor) -> Tensor:
        """The pooled features `(B, D')` of images, of which `outputs` gave the rows `(B, D)`."""
        blank = self._answer_for(rows)
        assert self._shape is not None
        hidden = rows.unflatten(1, self._shape)

        def give(_: nn.Module, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> Any:
            if arguments:
                return (hidden, *arguments[1:]), keywords
            return arguments, {**keywords, next(iter(keywords)): hidden}

        with ExitStack() as stack:
            # First of all hooks: those of others, such as a shared prefix, are to see what enters.
            hook = self.entry.register_forward_pre_hook(give, prepend=True, with_kwargs=True)
            stack.callback(hook.remove)
            for layer, outputs in self._answers.items():
                stack.enter_context(answering(layer, outputs))
            return pooled_features(self.backbone, blank)

    def check(self) -> str | None:
        """Why the stages cannot be left out; None where they can. In evaluation mode.

        Two images go through the whole backbone and through both of its parts, and must give the same, bit for bit.
        """
        generator = torch.Generator().manual_seed(0)
        images = torch.randn(2, 3, self.image_size, self.image_size, generator=generator)
        parameter = next(self.backbone.parameters())
        images = images.to(parameter.device, parameter.dtype)
        try:
            rows = self.outputs(images)
            if rows.requires_grad:
                return "something that trains comes before them, or among them"
            self._answer_for(rows)
            if any(_is_random(layer) for layer in self._answers if not any(True for _ in layer.parameters())):
                return "there is dropout between them"
            with torch.no_grad():
                same = torch.equal(self.rest(rows), pooled_features(self.backbone, images))
        except Exception as error:  # every architecture raises an error of its own
            return f"the stages after them cannot run alone ({one_line(error, first=True)})"
        return None if same else "later stages see more of an image than what they hand on"

    def _answer_for(self, rows: Tensor) -> Tensor:
        """A blank image on the device of rows; what the layers before the entry answer to it is noted."""
        kind = rows.device.type
        precision = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None
        blank = torch.zeros(1, 3, self.image_size, self.image_size, device=rows.device, dtype=self.backbone.dtype)
        if self._answered_for != (rows.device, precision):
            found: dict[nn.Module, list[Any]] = {}

            def note(layer: nn.Module, _: Any, output: Any) -> None:
                found.setdefault(layer, []).append(tree_map(_detached, output))

            with torch.no_grad(), self._stopping() as reached, ExitStack() as stack:
                for layer in self._before:
                    stack.callback(layer.register_forward_hook(note).remove)
                pooled_features(self.backbone, blank)
            self._answers, self._shape = found, reached[0].shape[1:]
            self._answered_for = rows.device, precision
        return blank

    def _stopping(self) -> _Stopping:
        return _Stopping(self.entry)


class _Stopping:
    """A context for a forward pass that ends where the entry begins; gives a list with the entry's first input."""

    def __init__(self, entry: nn.Module) -> None:
        self.entry, self.reached = entry, list[Tensor]()

    def __enter__(self) -> list[Tensor]:
        def stop(_: nn.Module, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> None:
            self.reached.append(arguments[0] if arguments else next(iter(keywords.values())))
            raise _Reached

        self.hook = self.entry.register_forward_pre_hook(stop, prepend=True, with_kwargs=True)
        return self.reached

    def __exit__(self, kind: Any, error: Any, trace: Any) -> bool:
        self.hook.remove()
        if kind is None:
            raise RuntimeError("the forward pass does not come to them")
        return isinstance(error, _Reached)


def _is_random(layer: nn.Module) -> bool:
    """Whether a layer drops something in training."""
    return any(float(getattr(part, name, 0) or 0) > 0 for part in layer.modules() for name in ("p", "drop_prob"))


def _detached(value: Any) -> Any:
    return value.detach() if isinstance(value, Tensor) else value
