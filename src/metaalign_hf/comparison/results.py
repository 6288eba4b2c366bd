"""What a grid of runs says: means, paired differences with 95 % intervals, what validators chose, and a figure."""

from __future__ import annotations

import json
import statistics
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..evaluation import get_validator
from ..intervals import mean_and_interval, paired_differences, with_interval
from ..reports.page.sections import Table
from ..reports.page.style import COLOURS, GREY, INK, new_figure, shortened
from ..reports.page.writing import markdown_table
from .grid import Grid

__all__ = ["choices_table", "figure_of", "means_table", "verdict", "write_results"]


def means_table(grid: Grid) -> Table:
    """Mean figures of each method, and its paired differences to the first one, in points."""
    measure, first = grid.measure, grid.methods[0]
    columns = ["method", "runs", f"source {measure.heading}", "target before", "target after", f"against {first}"]
    rows = []
    for method in grid.methods:
        cells = [
            list(grid.figures(method, f"{domain}_{measure.name}_{when}").values())
            for domain, when in (("source", "after"), ("target", "before"), ("target", "after"))
        ]
        runs = sum(1 for seed in grid.seeds if (method, seed) in grid.summaries)
        difference = _against_first(grid, method)
        rows.append([method, str(runs), *map(_cell, cells), _cell(difference, "+") if method != first else ""])
    return _without_empty(Table(columns, rows))


def choices_table(grid: Grid) -> Table | None:
    """Which checkpoints the validator chose without target labels, beside the last and the best ones."""
    rows, validator = [], ""
    for method in grid.methods:
        found = [_checkpoints(grid.summaries[method, seed]) for seed in grid.seeds if (method, seed) in grid.summaries]
        chosen = [row for row in (marks.get("selected") for marks in found) if row is not None]
        if not chosen:
            continue
        validator = chosen[0]["checkpoint"].rpartition(", ")[2].rstrip(")")
        targets = [
            [100 * marks[name]["target"] for marks in found if marks.get(name, {}).get("target") is not None]
            for name in ("selected", "last", "oracle")
        ]
        steps = ", ".join(str(row["step"]) for row in chosen)
        rows.append([method, steps, *map(_cell, targets), _cell(_values(grid, method, validator), digits=3)])
    columns = [
        "method",
        "steps chosen",
        "target chosen",
        "target last",
        "target best (oracle)",
        f"{validator} at the end",
    ]
    return _without_empty(Table(columns, rows)) if rows else None


def verdict(grid: Grid) -> list[str]:
    """The comparison in words: every interval that leaves out 0, and that the others show nothing."""
    first, lines = grid.methods[0], []
    for method in grid.methods[1:]:
        found = _against_first(grid, method)
        if len(found) < 2:
            continue
        mean, half = mean_and_interval(found)
        told = f"{mean:+z.1f} ± {half:.1f} points over {len(found)} seeds"
        if abs(mean) > half:
            lines.append(f"{method} is {'better' if mean > 0 else 'worse'} than {first} on the target: {told}.")
        else:
            lines.append(f"No difference between {method} and {first} is shown on the target: {told}.")
    if chosen := _chosen_by_validators(grid):
        lines.append(f"Without target labels, by their means at the end: {chosen}.")
    return lines


def figure_of(grid: Grid) -> Any:
    """Target figures by method, a point for each seed, and the differences to the first method; None without labels."""
    name = f"target_{grid.measure.name}_after"
    methods = [method for method in grid.methods if grid.figures(method, name)]
    if not methods:
        return None
    others = [method for method in methods if method != grid.methods[0] and _against_first(grid, method)]
    figure, panels = new_figure(2 if others else 1, height=1.2 + 0.45 * len(methods))
    places = list(range(len(methods)))[::-1]
    for place, method, colour in zip(places, methods, COLOURS * len(methods), strict=False):
        values = list(grid.figures(method, name).values())
        panels[0].plot(values, [place] * len(values), "o", color=colour, alpha=0.5, markersize=6)
        panels[0].plot([statistics.fmean(values)] * 2, [place - 0.28, place + 0.28], color=INK, linewidth=2)
        found = _against_first(grid, method)
        if method in others:
            mean, half = mean_and_interval(found)
            panels[1].plot(found, [place] * len(found), "o", color=colour, alpha=0.5, markersize=6)
            panels[1].errorbar(mean, place, xerr=half, fmt="|", color=INK, capsize=4, linewidth=2, markersize=12)
    panels[0].set(title=f"target {grid.measure.heading}, %", ylim=(-0.6, len(methods) - 0.4))
    panels[0].set_yticks(places, [shortened(method) for method in methods])
    if others:
        panels[1].axvline(0, color=GREY, linewidth=1)
        panels[1].set(title=f"against {grid.methods[0]}, points", yticks=places, yticklabels=[])
        panels[1].set_ylim(-0.6, len(methods) - 0.4)
    return figure


def write_results(grid: Grid, folder: Path) -> list[Path]:
    """Write `compare.md`, `compare.json` and, where the target has labels, `compare.png`.

    Args:
        grid: The runs.
        folder: Where they go.

    Returns:
        The files written.
    """
    means, choices, figure = means_table(grid), choices_table(grid), figure_of(grid)
    files = [folder / "compare.md", folder / "compare.json"]
    lines = [f"# {' against '.join(grid.methods)}", "", *verdict(grid), ""]
    seeds = f"{len(grid.seeds)} seeds" if len(grid.seeds) > 1 else "1 seed"
    lines += [f"Means over {seeds} with 95 % intervals (Student's t); differences are paired by seed.", ""]
    lines += [*markdown_table(means), ""]
    if figure is not None:
        files.append(folder / "compare.png")
        figure.savefig(files[-1], dpi=130, metadata={"Software": None})
        lines += ["![Target figures by method and seed, and their differences](compare.png)", ""]
    if choices is not None:
        lines += ["What was chosen without target labels; the oracle needs them:", "", *markdown_table(choices), ""]
    files[0].write_text("\n".join(lines), encoding="utf-8")
    runs = [{"method": m, "seed": s, "summary": values} for (m, s), values in grid.summaries.items()]
    files[1].write_text(json.dumps({"methods": grid.methods, "seeds": grid.seeds, "runs": runs}, indent=1) + "\n")
    return files


def _against_first(grid: Grid, method: str) -> list[float]:
    name = f"target_{grid.measure.name}_after"
    if method == grid.methods[0]:
        return []
    return paired_differences(grid.figures(method, name), grid.figures(grid.methods[0], name))


def _checkpoints(summary: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The rows of the summary's checkpoints by the first word of their names."""
    return {row["checkpoint"].partition(" ")[0]: row for row in summary.get("checkpoints") or []}


def _values(grid: Grid, method: str, validator: str) -> list[float]:
    """The values of a validator at the end of a method's runs."""
    found = [(grid.summaries.get((method, seed), {}).get("validators") or {}).get(validator) for seed in grid.seeds]
    return [pair[1] for pair in found if pair is not None]


def _chosen_by_validators(grid: Grid) -> str:
    """How many validators would choose which method."""
    names = {name for summary in grid.summaries.values() for name in summary.get("validators") or {}}
    votes: dict[str, list[str]] = {}
    for name in sorted(names - {"source_accuracy"}):
        means = {m: statistics.fmean(v) for m in grid.methods if (v := _values(grid, m, name))}
        if len(means) == len(grid.methods) > 1:
            best = max(means, key=lambda method: get_validator(name).score(means[method]))
            votes.setdefault(best, []).append(name)
    counted = Counter({method: len(found) for method, found in votes.items()}).most_common()
    return "; ".join(f"{', '.join(votes[method])} would choose {method}" for method, _ in counted)


def _cell(values: Sequence[float], sign: str = "", digits: int = 1) -> str:
    if not values:
        return ""
    if len(values) == 1:
        return f"{values[0]:{sign}.{digits}f}"
    mean, half = mean_and_interval(values)
    return with_interval(values, sign) if digits == 1 else f"{mean:{sign}.{digits}f} ± {half:.{digits}f}"


def _without_empty(table: Table) -> Table:
    kept = [n for n in range(len(table.columns)) if any(row[n] for row in table.rows)]
    return Table([table.columns[n] for n in kept], [[row[n] for n in kept] for row in table.rows])
