"""What the validators say of a finished run: all there is to go by where the target has no labels."""

from __future__ import annotations

import json
import math
from pathlib import Path

from ..evaluation import get_validator
from ..run_folder import METRICS_FILE

__all__ = ["ValidatorChange", "say_validators", "validator_changes"]

ValidatorChange = tuple[float, float]
"""Value before and after."""

_LOGGED = "validator_"
_FURTHER = ("mutual_information", "entropy", "agreement")
"""Which others are told in words, the first two of them at most; the rest are in `summary.json`."""


def validator_changes(folder: Path, selects: str) -> dict[str, ValidatorChange]:
    """Values before and after, as `metrics.jsonl` has them, with the selecting validator first.

    Args:
        folder: The run's folder.
        selects: Name of the validator that selects.

    Returns:
        By name; validators that gave no number are left out.
    """
    path = folder / METRICS_FILE
    rows = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    logged = {row["evaluation"]: row for row in rows if row.get("evaluation") in ("before", "after")}
    before, after = logged.get("before", {}), logged.get("after", {})
    found = {}
    for key in sorted(before.keys() & after.keys(), key=lambda key: (key != _LOGGED + selects, key)):
        if key.startswith(_LOGGED) and math.isfinite(before[key]) and math.isfinite(after[key]):
            found[key.removeprefix(_LOGGED)] = (before[key], after[key])
    return found


def say_validators(changes: dict[str, ValidatorChange]) -> list[str]:
    """The sentences that take the place of a gain: the selecting validator and one or two others, before and after.

    Args:
        changes: As `validator_changes` returns them.
    """
    if not changes:
        return ["The target has no labels and no validator was computed: whether it gained is not measured."]
    selecting, *others = changes
    told = [selecting, *[name for name in _FURTHER if name in others][:2]]
    values = "; ".join(_say(name, *changes[name]) for name in told)
    return [
        f"The target has no labels; the validators say of it, before -> after: {values}. {selecting} selects. These "
        "are estimates: only labelled target images can show a gain."
    ]


def _say(name: str, before: float, after: float) -> str:
    higher = get_validator(name).higher_is_better
    verdict = "better" if (after > before) == higher else "worse"
    if f"{before:.3f}" == f"{after:.3f}":
        verdict = "the same"
    return f"{name} {before:.3f} -> {after:.3f} ({verdict}; {'higher' if higher else 'lower'} is better)"
