"""How long the inner step is."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from .gradients import optimizer_parameters, squared_norms
from .last_update import UpdateLengths
from .perturbation import Perturbation
from .stages import find_stages
from .wrapping import unwrapped

__all__ = ["RULES", "SCOPES", "InnerStep", "Scope", "require_name", "require_number", "step_sizes"]

RULES = ("fixed", "trust_ratio", "normalised", "update")
SCOPES = ("all", "last_stage", "head")

Scope = str | Callable[[str, Tensor], bool]


class InnerStep:
    """Moves the parameters along gradients for the time of a pass: `theta'_p = theta_p - alpha_p g_p`.

    Args:
        optimizer: Names the parameters and their learning rates.
        inner_lr: Size of the step; what it means depends on the rule. May be set anew between steps.
        rule: One of `RULES`, see `step_sizes`.
        relative: Whether `inner_lr` multiplies the learning rates (rule `fixed`).
        scope: Parameters that move: `all`; `last_stage` (and everything after it) or `head`, see `find_stages`; or a
            predicate of a parameter's name and the parameter.
        module: The model as it is called; needed for a scope other than `all`.
        unnoticed: See `Perturbation`.
        updates: Another inner step's measure of the same optimiser, for rule `update`; by default its own.

    Raises:
        ValueError: If a number is out of range, or a name is unknown.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        inner_lr: float,
        rule: str,
        relative: bool = True,
        scope: Scope = "all",
        module: nn.Module | None = None,
        unnoticed: bool = False,
        updates: UpdateLengths | None = None,
    ) -> None:
        require_number("inner_lr", inner_lr)
        require_name("rule", rule, RULES)
        self.optimizer = optimizer
        self.inner_lr = inner_lr
        self.rule = rule
        self.relative = relative
        self.in_scope = resolve_scope(scope, optimizer_parameters(optimizer), module)
        self._perturbation = Perturbation(unnoticed)
        self.updates = (updates or UpdateLengths(optimizer, self.in_scope)) if rule == "update" else None

    def sizes(self, gradients: Sequence[Tensor | None], scale: float = 1.0) -> list[float]:
        """`alpha` of every parameter, for gradients in the order of the optimiser's groups.

        Args:
            gradients: One for each parameter, times `scale`; None where there is none.
            scale: Scale of the gradients.
        """
        updates = None if self.updates is None else self.updates.values()
        return step_sizes(
            self.rule, self.inner_lr, self.relative, self.optimizer, gradients, self.in_scope, scale, updates
        )

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs, as JSON values; empty but for rule `update`."""
        return {} if self.updates is None else {"updates": self.updates.values()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Put back what `state_dict` gave.

        Raises:
            ValueError: If the rule is `update` and the state is of another rule, or of other parameters.
        """
        if self.updates is not None:
            if "updates" not in state:
                raise ValueError("rule is 'update': the saved state has no lengths of the optimiser's last step")
            self.updates.load(state["updates"])

    @contextmanager
    def taken(self, gradients: Sequence[Tensor | None], sizes: Sequence[float], scale: float = 1.0) -> Iterator[Tensor]:
        """Parameters at theta' inside, at theta (the exact same bits) afterwards; yields `|theta' - theta|`."""
        moved = [
            (p, g, size / scale)
            for p, g, size in zip(optimizer_parameters(self.optimizer), gradients, sizes, strict=True)
            if g is not None and size != 0
        ]
        if not moved:
            yield torch.zeros(())
            return
        parameters, directions = [p for p, _, _ in moved], [g for _, g, _ in moved]
        squares = squared_norms(directions)
        lengths = torch.tensor([size for _, _, size in moved], dtype=squares.dtype, device=squares.device)
        displacement = (squares * lengths.square()).sum().sqrt()
        with self._perturbation.moved(parameters, directions, [-size for _, _, size in moved]):
            yield displacement


def step_sizes(
    rule: str,
    inner_lr: float,
    relative: bool,
    optimizer: Optimizer,
    gradients: Sequence[Tensor | None],
    in_scope: Sequence[bool],
    scale: float = 1.0,
    updates: Sequence[float] | None = None,
) -> list[float]:
    """`alpha_p` of every parameter, in the order of the optimiser's groups; 0 outside the scope or without a gradient.

    ========== ==========================================================================================
    fixed       `inner_lr * lr` of the group when `relative`, else `inner_lr`; times the group's entry
                `"inner_lr_multiplier"` where it has one. As published.
    trust_ratio `inner_lr |theta_p| / |g_p|`: every tensor moves by the share `inner_lr` of its own length, as in LARS
                (You et al. 2017). A tensor of zeros stays.
    normalised  `inner_lr / |g|` with the norm over the scope: all parameters together move by the distance `inner_lr`,
                as in SAM (Foret et al., ICLR 2021).
    update      `inner_lr |d_p| / |g_p|`, with d_p what the optimiser's last step changed: every tensor moves by
                `inner_lr` times as far as the optimiser has just moved it. No tensor moves before the optimiser's
                first step.
    ========== ==========================================================================================

    The last three do not depend on the scale of the loss. `update` alone fits itself to the optimiser and its schedule:
    what is a small step for a network from scratch (a share of 0.03) throws a pretrained one out of its minimum.

    Args:
        rule: One of `RULES`.
        inner_lr: The number above.
        relative: See `fixed`.
        optimizer: Names the parameters and their learning rates.
        gradients: The meta-train gradient of each parameter, times `scale`.
        in_scope: Whether each parameter may move.
        scale: Scale of the gradients.
        updates: `|d_p|` of each parameter, for rule `update`.
    """
    moving = [i for i, (g, inside) in enumerate(zip(gradients, in_scope, strict=True)) if inside and g is not None]
    sizes = [0.0] * len(gradients)
    if not moving or inner_lr == 0:
        return sizes
    if rule == "fixed":
        every: list[float] = []
        for group in optimizer.param_groups:
            size = inner_lr * (float(group["lr"]) if relative else 1.0) * float(group.get("inner_lr_multiplier", 1.0))
            every += [size] * len(group["params"])
        found = [every[i] for i in moving]
    else:
        lengths = squared_norms([g for i in moving if (g := gradients[i]) is not None]).sqrt() / scale
        if rule == "normalised":
            whole = lengths.square().sum().sqrt()
            found = torch.where(whole > 0, inner_lr / whole, 0.0).expand(len(moving)).tolist()
        elif rule == "update":
            assert updates is not None
            each = zip(moving, lengths.tolist(), strict=True)
            found = [inner_lr * updates[i] / length if length > 0 else 0.0 for i, length in each]
        else:
            parameters = optimizer_parameters(optimizer)
            with torch.no_grad():
                own = squared_norms([parameters[i] for i in moving]).sqrt()
            found = torch.where(lengths > 0, inner_lr * own / lengths, 0.0).tolist()
    for index, size in zip(moving, found, strict=True):
        sizes[index] = size
    return sizes


def resolve_scope(scope: Scope, parameters: Sequence[Tensor], module: nn.Module | None) -> list[bool]:
    """Whether each parameter is in the scope; see `InnerStep`.

    Raises:
        ValueError: If the scope is unknown or empty, or there is no module to look it up in.
    """
    if scope == "all":
        return [True] * len(parameters)
    if isinstance(scope, str):
        require_name("scope", scope, SCOPES)
    if module is None:
        raise ValueError("a scope other than all needs the model: give module=")
    bare = unwrapped(module)
    if callable(scope):
        inside = {id(p) for name, p in bare.named_parameters() if scope(name, p)}
    else:
        stages = find_stages(bare)
        chosen = [stage for stage in stages if stage.name == "head"]
        if scope == "last_stage" or not chosen:
            chosen += [stage for stage in stages if stage.name != "head"][-1:]
        names = {name for stage in chosen for name in stage.parameters}
        inside = {id(p) for name, p in bare.named_parameters() if name in names}
    found = [id(p) in inside for p in parameters]
    if not any(found):
        raise ValueError("scope: no parameter of the optimiser is in it")
    return found


def require_name(name: str, value: str, known: Sequence[str]) -> None:
    """Refuse a name that is unknown."""
    if value not in known:
        raise ValueError(f"{name} is {value!r}: it must be one of {', '.join(known)}")


def require_number(name: str, value: float) -> None:
    """Refuse a step size that is negative or not finite."""
    if not math.isfinite(value) or value < 0:
        raise ValueError(f"{name} is {value}: it must be a finite number, 0 or more")
