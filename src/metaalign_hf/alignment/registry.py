"""One registry of alignment objectives, by name."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

from torch import Tensor, nn

from ..errors import UserError, did_you_mean
from ..registry import Registry
from .base import AlignmentBatch, AlignmentObjective, AlignmentOutput, weighted_sum
from .multi_source import PerSource

__all__ = [
    "AlignmentSum",
    "alignment_names",
    "alignment_options",
    "build_alignment",
    "normalise_alignment",
    "normalise_specs",
    "register_alignment",
]

_COMMON = ("name", "weight", "sources")
_OBJECTIVES: Registry[type[AlignmentObjective]] = Registry(
    "alignment objective",
    "alignment: unknown objective {!r}",
    cited_as="alignment",
    advice=" (register your own with register_alignment before loading)",
)
T = TypeVar("T", bound=type[AlignmentObjective])


def register_alignment(name: str, *, citation: str | None = None) -> Callable[[T], T]:
    """Make an objective known by name: a class decorator.

    For example::

        @register_alignment("mean_distance")
        class MeanDistance(AlignmentObjective):
            def forward(self, batch):
                source, target = batch.split(batch.features, "mean_distance")
                return AlignmentOutput((source.mean(0) - target.mean(0)).pow(2).sum())

    Args:
        name: The name; it must be free.
        citation: BibTeX of the publication, which model cards of runs with the objective then cite.

    Raises:
        ValueError: If another class has the name, or the citation is not BibTeX.
    """
    return _OBJECTIVES.register(name, citation=citation)


def alignment_names() -> list[str]:
    """Names of all registered objectives."""
    return _OBJECTIVES.names()


def alignment_options(name: str) -> dict[str, Any]:
    """Options of an objective and their defaults.

    Raises:
        UserError: If there is no such objective.
    """
    return _OBJECTIVES.options(name)


def normalise_alignment(spec: Any) -> list[dict[str, Any]]:
    """Spell out what names the alignment.

    Args:
        spec: None, a name, a dict with `name`, `weight` (default 1), `sources` (the number of sources, to align each of
            several by itself; default 1, their pool) and the objective's options, or a list of those.

    Returns:
        One dict per objective with `name`, `weight` and the options that were given.

    Raises:
        UserError: If a name or option is unknown, a weight is negative or not finite, `sources` is below 1, or a name
            occurs twice.
    """
    return normalise_specs(_OBJECTIVES, spec, _COMMON)


def normalise_specs(
    registry: Registry[Any],
    spec: Any,
    common: Sequence[str],
    what: str = "alignment",
    shared: Mapping[str, Any] | None = None,
) -> list[dict[str, Any]]:
    """As `normalise_alignment`, for any family of objectives.

    Args:
        registry: The family.
        spec: As `normalise_alignment` takes it.
        common: Keys that every entry may have.
        what: What the errors begin with.
        shared: Options of every objective of the family.
    """
    if spec is None:
        return []
    entries = spec if isinstance(spec, list | tuple) else [spec]
    found: list[dict[str, Any]] = []
    for entry in entries:
        given = {"name": entry} if isinstance(entry, str) else entry
        if not isinstance(given, dict) or not isinstance(given.get("name"), str):
            listed = ", ".join(registry.names())
            raise UserError(f"{what}: {entry!r} must be a name or a mapping with a name; names: {listed}")
        name, weight = given["name"], given.get("weight", 1.0)
        if not isinstance(weight, int | float) or not math.isfinite(weight) or weight < 0:
            raise UserError(f"{what} {name}: weight is {weight!r}; it must be a finite number, 0 or more")
        if any(other["name"] == name for other in found):
            raise UserError(f"{what}: {name} is named twice; name each once")
        sources = given.get("sources", 1) if "sources" in common else 1
        if not isinstance(sources, int) or isinstance(sources, bool) or sources < 1:
            raise UserError(f"alignment {name}: sources is {sources!r}; it must be the number of sources, 1 or more")
        known = {**(shared or {}), **registry.options(name)}
        options = {key: value for key, value in given.items() if key not in common}
        for key in options:
            if key not in known:
                hint = did_you_mean(key, known, f"it has {', '.join(known) or 'no options'}")
                raise UserError(f"{what} {name}: unknown option {key!r}; {hint}")
        try:
            json.dumps(options)
        except TypeError as error:
            raise UserError(f"{what} {name}: options must be plain values ({error})") from error
        several = {"sources": sources} if sources > 1 else {}
        found.append({"name": name, "weight": float(weight), **several, **options})
    return found


class AlignmentSum(nn.Module):
    """The weighted sum of alignment objectives.

    Args:
        specs: As `normalise_alignment` returns them.
        feature_dim: Width D of the features.
        num_labels: Number K of classes.
    """

    def __init__(self, specs: list[dict[str, Any]], feature_dim: int, num_labels: int) -> None:
        super().__init__()
        self.weights = {spec["name"]: spec["weight"] for spec in specs}
        self.objectives = nn.ModuleDict()
        for spec in specs:
            name, sources = spec["name"], spec.get("sources", 1)
            options = {key: value for key, value in spec.items() if key not in _COMMON}
            try:
                each = [_OBJECTIVES[name](feature_dim, num_labels, **options) for _ in range(sources)]
                self.objectives[name] = PerSource(name, each) if sources > 1 else each[0]
            except UserError:
                raise
            except (TypeError, ValueError) as error:
                raise UserError(f"alignment {name}: {error}") from error

    def forward(self, batch: AlignmentBatch) -> AlignmentOutput:
        """The weighted sum; parts are prefixed with the objective's name where there are several."""
        return weighted_sum(self.objectives, self.weights, batch)

    def classifier_bridges(self) -> list[nn.Linear]:
        """The bridges of all objectives, each subtracted from the classifier."""
        bridges = [objective.classifier_bridge() for objective in self._each()]
        return [bridge for bridge in bridges if bridge is not None]

    def task_penalty(self, features: Tensor) -> Tensor | None:
        """The sum of the objectives' task penalties, which belong to the task and are not weighted; or None."""
        penalties = [objective.task_penalty(features) for objective in self._each()]
        present = [penalty for penalty in penalties if penalty is not None]
        return sum(present[1:], present[0]) if present else None

    def shared_penalties(self) -> list[str]:
        """Names of the penalties that stand in the task loss and in the alignment loss."""
        return [name for objective in self._each() if (name := objective.shared_penalty()) is not None]

    def _each(self) -> Iterator[AlignmentObjective]:
        for objective in self.objectives.values():
            assert isinstance(objective, AlignmentObjective)
            yield objective


def build_alignment(spec: Any, feature_dim: int, num_labels: int) -> AlignmentSum | None:
    """The objectives that `spec` names, or None where it names none.

    Args:
        spec: As `normalise_alignment` takes it.
        feature_dim: Width D of the features.
        num_labels: Number K of classes.

    Raises:
        UserError: If a name, an option or its value is wrong.
    """
    specs = normalise_alignment(spec)
    return AlignmentSum(specs, feature_dim, num_labels) if specs else None
