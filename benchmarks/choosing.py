"""The decision table of docs/choosing.md, from the pinned runs of `accuracy.py`; it makes none.

python benchmarks/readme.py
"""

from __future__ import annotations

from itertools import chain
from pathlib import Path
from statistics import fmean

from rich import box
from rich.table import Table

import accuracy
from metaalign_hf.intervals import with_interval

__all__ = ["tables"]


def tables() -> dict[str, Table]:
    """Means over all pairs by objective, and what the step from memory gains at both budgets."""
    runs, every = accuracy.Runs("1", Path()), accuracy.FAMILIES
    found = Table(box=box.MARKDOWN)
    columns = ("objective", "joint step", "step from memory", f"difference, {accuracy.SHORT} steps")
    for column in (*columns, f"difference, {accuracy.LONG:,} steps"):
        found.add_column(column)
    source_only = chain(*(runs.scores("none", "source only", accuracy.SHORT, family) for family in every))
    found.add_row("none (source only)", f"{fmean(source_only):.1f}", "", "", "")
    for objective in accuracy.OBJECTIVES:
        scores = [
            chain(*(runs.scores(objective, form, accuracy.SHORT, family) for family in every))
            for form in ("joint", "remembered")
        ]
        budgets = [accuracy.SHORT, *([accuracy.LONG] if objective in accuracy.LONG_OBJECTIVES else [])]
        gained = [
            with_interval(
                list(chain(*(accuracy.gains(runs, objective, "remembered", n, family) for family in every))), "+"
            )
            for n in budgets
        ]
        found.add_row(objective, *(f"{fmean(values):.1f}" for values in scores), *gained, *[""] * (2 - len(gained)))
    return {"choosing": found}
