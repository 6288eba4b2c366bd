"""Which settings a search tries: the points of a small grid, and what it is by default."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from itertools import product
from typing import Any

from ..configuration import Config
from ..configuration.reading import read_entries

__all__ = ["Setting", "default_space", "in_words", "settings", "shown"]

Setting = dict[str, Any]
"""Values by dotted key."""


def default_space(config: Config) -> dict[str, list[Any]]:
    """What is searched where nothing is said: learning rate, weight of the alignment, and inner step.

    Args:
        config: The configuration, whose own values are the first of each list.

    Returns:
        Values by dotted key. Learning rate: a third and three times as much; weight and inner step: a third. Under
        `coordination.alignment_share` the share stands in the weight's place.
    """
    space: dict[str, list[Any]] = {"optimizer.lr": _around(config.optimizer.lr, 1, 1 / 3, 3)}
    model, coordination = config.model, config.coordination
    aligns = coordination.method not in ("source_only", "target_only")
    if coordination.alignment_share is not None:
        space["coordination.alignment_share"] = _around(coordination.alignment_share, 1, 1 / 3)
    elif aligns and model.checkpoint is None and model.alignment is not None:
        own = ("detr" if model.detector is not None else "cdan") if model.alignment == "auto" else model.alignment
        specs: list[dict[str, Any]] = [
            {"name": s} if isinstance(s, str) else s for s in (own if isinstance(own, list) else [own])
        ]
        space["model.alignment"] = [
            [{**s, "weight": _rounded(s.get("weight", 1.0) * factor)} for s in specs] for factor in (1, 1 / 3)
        ]
    if "inner_lr" in read_entries("coordination", vars(coordination), {}):
        _, size = coordination.inner_step
        space["coordination.inner_lr"] = _around(size, 1, 1 / 3)
    return space


def settings(space: Mapping[str, Sequence[Any]], most: int | None, seed: int) -> list[Setting]:
    """The points of a grid, first that of the first values.

    Args:
        space: Values by dotted key.
        most: How many are taken at most, the others at random; None takes all.
        seed: Decides which.
    """
    first, *others = [dict(zip(space, values, strict=True)) for values in product(*space.values())]
    if most is not None and most - 1 < len(others):
        kept = sorted(random.Random(seed).sample(range(len(others)), most - 1))
        others = [others[i] for i in kept]
    return [first, *others]


def _around(value: float, *factors: float) -> list[float]:
    return [_rounded(value * factor) for factor in factors]


def _rounded(value: float) -> float:
    """Two digits, as one writes it by hand."""
    return float(f"{value:.2g}")


def in_words(setting: Setting) -> str:
    """A setting in a line."""
    return ", ".join(f"{key} {shown(value)}" for key, value in setting.items())


def shown(value: Any) -> str:
    """A value in short: of objectives name and weight."""
    entries = value if isinstance(value, list) else [value]
    if entries and all(isinstance(entry, dict) and "name" in entry for entry in entries):
        return " + ".join(f"{entry['name']} x {entry.get('weight', 1.0):g}" for entry in entries)
    return f"{value:g}" if isinstance(value, float) else str(value)
