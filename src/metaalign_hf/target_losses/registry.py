"""One registry of target losses, by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from ..alignment.registry import normalise_specs
from ..errors import UserError
from ..registry import Registry
from .base import TargetContext, TargetLoss

__all__ = ["build_target_losses", "normalise_target_losses", "register_target_loss", "target_loss_names"]

_KEY = "training.target_losses"
_COMMON = ("name", "weight")
_SHARES = {"burn_in": 0.0, "ramp_up": 0.0}
_LOSSES: Registry[type[TargetLoss]] = Registry(
    "target loss", f"{_KEY}: unknown target loss {{!r}}", cited_as="target_loss"
)
_TASKS: dict[str, str] = {}
T = TypeVar("T", bound=type[TargetLoss])


def register_target_loss(
    name: str, *, task: str = "image-classification", citation: str | None = None
) -> Callable[[T], T]:
    """Make a target loss known by name: a class decorator.

    Args:
        name: The name that `training.target_losses` takes; it must be free.
        task: Pipeline tag of the task that it is for.
        citation: BibTeX of the publication, which model cards of runs with the loss then cite.

    Raises:
        ValueError: If another class has the name, or the citation is not BibTeX.
    """

    def named(loss: T) -> T:
        loss.name = name
        _TASKS[name] = task
        return loss

    return _LOSSES.register(name, named, citation=citation)


def target_loss_names(task: str | None = None) -> list[str]:
    """Names of all target losses, or of those for a task."""
    return [name for name in _LOSSES.names() if task in (None, _TASKS[name])]


def normalise_target_losses(spec: Any) -> list[dict[str, Any]]:
    """Spell out what names target losses.

    Args:
        spec: None, a name, a dict with `name`, `weight` (default 1), `burn_in`, `ramp_up` (shares of the adaptation,
            default 0) and the loss's options, or a list of those.

    Returns:
        One dict per loss with `name`, `weight` and what else was given.

    Raises:
        UserError: If a name or option is unknown, a number is out of range, or a name occurs twice.
    """
    specs = normalise_specs(_LOSSES, spec, _COMMON, _KEY, _SHARES)
    for given in specs:
        shares = [given.get(key, 0.0) for key in _SHARES]
        for key, share in zip(_SHARES, shares, strict=True):
            if not isinstance(share, int | float) or isinstance(share, bool) or not 0 <= share <= 1:
                raise UserError(
                    f"{_KEY} {given['name']}: {key} is {share!r}: it must lie in 0..1, a share of the adaptation"
                )
        if sum(shares) > 1:
            raise UserError(f"{_KEY} {given['name']}: burn_in and ramp_up are {sum(shares)} together: at most 1")
    return specs


def build_target_losses(spec: Any, context: TargetContext, task: str = "image-classification") -> list[TargetLoss]:
    """The target losses that `spec` names.

    Args:
        spec: As `normalise_target_losses` takes it.
        context: What they are for.
        task: Pipeline tag of the task.

    Raises:
        UserError: If a name, an option or its value is wrong, or a loss is for another task.
    """
    found = []
    for given in normalise_target_losses(spec):
        name = given["name"]
        if _TASKS[name] != task:
            known = ", ".join(target_loss_names(task)) or "there is none"
            raise UserError(f"{_KEY}: {name} is for {_TASKS[name]}; for {task}: {known}")
        options = {key: value for key, value in given.items() if key not in (*_COMMON, *_SHARES)}
        try:
            loss = _LOSSES[name](context, **options)  # type: ignore[arg-type]
        except UserError:
            raise
        except (TypeError, ValueError) as error:
            raise UserError(f"{_KEY} {name}: {error}") from error
        loss.weight = given["weight"]
        loss.burn_in, loss.ramp_up = (float(given.get(key, 0.0)) for key in _SHARES)
        found.append(loss)
    return found
