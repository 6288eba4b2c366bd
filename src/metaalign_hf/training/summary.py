"""The summary of a run: a table in words and its twin `summary.json`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import zip_longest
from pathlib import Path

from rich.console import Console
from rich.table import Table

from ..disk import write_whole
from ..run_folder import METRICS_FILE, SELECTED_FOLDER, SUMMARY_FILE
from ..tasks.summary import RunFacts, Summary
from .validator_change import say_validators

__all__ = ["RunFacts", "Summary", "print_summary", "waiting_share", "write_summary"]


_LONG = 0.2
"""Share of a step's time spent waiting for images from which on the summary says what helps."""


def write_summary(summary: Summary) -> Path:
    """Write `summary.json` into the run's folder."""
    path = Path(summary.output_dir) / SUMMARY_FILE
    write_whole(path, json.dumps(summary.to_dict(), indent=2) + "\n")
    return path


def waiting_share(waiting: Sequence[float], stepping: Sequence[float]) -> float | None:
    """Share of the steps' time that was spent waiting for images; None without steps.

    The first step is left out where there are others: it waits for workers that are only starting.

    Args:
        waiting: Seconds that each step waited.
        stepping: Seconds that it took then.
    """
    first = 1 if len(waiting) > 1 else 0
    waited, whole = sum(waiting[first:]), sum(waiting[first:]) + sum(stepping[first:])
    return round(waited / whole, 4) if whole > 0 else None


def print_summary(
    summary: Summary,
    console: Console,
    files: Sequence[str] = (),
    said: Sequence[str] = (),
    compared_with: bool = False,
) -> None:
    """Print the summary: the table, what it means, where the files are, and what to try next.

    Args:
        summary: The summary.
        console: Where to.
        files: Names of further files in the run's folder.
        said: Notes that were printed when the run began, and are not repeated.
        compared_with: Whether it is the baseline of a run, whose own summary follows and says what to try next.
    """
    one = summary.method in ("source_only", "target_only")
    alone = summary.method == "source_only"
    terms = [*([] if one else summary.alignment), *summary.target_losses]
    title = f"{summary.source} -> {summary.target}: {summary.method}"
    title += "" if alone else f" with {' + '.join(terms) or 'no alignment'}"
    table = Table(title=title, title_justify="left")
    table.add_column(summary.title)
    compared = ["source only"] if summary.baseline else []
    for column in ("before", *compared, "after", "change", "images"):
        table.add_column(column, justify="right")
    others = [summary.baseline["source"], summary.baseline["target"]] if summary.baseline else []
    for section, figures in ((summary.rows(), others), (summary.further_rows(), [])):
        for (name, before, after, images), figure in zip_longest(section, figures):
            if before is None or after is None:
                table.add_row(name, *["no labels"] * (2 + len(compared)), "", "")
                continue
            # The further figures are not those that the baseline is compared by.
            cells = ["" if figure is None else f"{100 * figure:.1f} %" for _ in compared]
            change = f"{100 * (after - before):+z.1f}"
            table.add_row(name, f"{100 * before:.1f} %", *cells, f"{100 * after:.1f} %", change, str(images))
        table.add_section()
    console.print(table)
    if summary.checkpoints:
        console.print(_checkpoint_table(summary))
    written = ["model", "image processor", METRICS_FILE, SUMMARY_FILE, *files]
    which = "model of the source alone" if compared_with else "adapted model"
    lines = [
        *_in_words(summary),
        *(f"Note: {note}" for note in summary.notes if note not in said),
        "",
        f"The {which} (last checkpoint) is in {summary.output_dir}: {', '.join(written)}.",
        *_where_selected(summary),
        *([] if compared_with else ["Next, try:", *(f"  {command}" for command in summary.next_commands())]),
    ]
    for line in lines:
        console.print(line, soft_wrap=True, highlight=False, markup=False)


def _checkpoint_table(summary: Summary) -> Table:
    table = Table()
    table.add_column(f"{summary.title} by checkpoint")
    for column in ("step", "source", "target"):
        table.add_column(column, justify="right")
    for row in summary.checkpoints:
        target = "no labels" if row.target is None else f"{100 * row.target:.1f} %"
        source = "not used" if row.source is None else f"{100 * row.source:.1f} %"
        table.add_row(row.checkpoint, str(row.step), source, target)
    return table


def _where_selected(summary: Summary) -> list[str]:
    if not summary.checkpoints:
        return []
    last, selected, *_ = summary.checkpoints
    if selected.step == last.step:
        return ["It is also the selected checkpoint."]
    return [f"The selected checkpoint (step {selected.step}) is in {Path(summary.output_dir) / SELECTED_FOLDER}."]


def _in_words(summary: Summary) -> list[str]:
    phases = f"{summary.adaptation_steps} steps"
    alone = summary.method == "source_only"
    if summary.source_steps and alone:
        phases += f" on the source alone after the first {summary.source_steps}"
    elif summary.source_steps:
        phases = f"{summary.source_steps} steps on the source, then {phases} of adaptation"
    else:
        phases += " (no source phase: before is the model that the run started from)"
    took = f"{summary.seconds:.0f} s"
    if summary.seconds_in_evaluation is not None:
        took += f" ({summary.seconds_in_evaluation:.0f} of it in evaluations)"
    words = [f"{phases}, seed {summary.seed}, {took}. After is the last checkpoint."]
    if summary.waiting_share is not None:
        words.append(
            f"{'Steps' if alone else 'Adaptation steps'} waited for images in {100 * summary.waiting_share:.0f} % of "
            f"their time{'; more of data.num_workers would shorten that.' if summary.waiting_share > _LONG else '.'}"
        )
    _, before, after, _ = summary.rows()[-1]
    if before is not None and after is not None and summary.baseline is not None:
        gain = 100 * (after - summary.baseline["target"])
        words.append(f"Gain on the target over the same steps on the source alone: {gain:+z.1f} points.")
    if before is None or after is None:
        words += say_validators(summary.validators)
    elif summary.source_steps:
        words.append(
            f"Gain on the target over the source phase: {100 * (after - before):+z.1f} points of {summary.title}."
        )
    else:
        change = f"{100 * (after - before):+z.1f} points of {summary.title}"
        how = (
            "without its source" if summary.method == "target_only" else "with what was learnt from the source's labels"
        )
        words.append(f"Change on the target since the start: {change}, {how}.")
    if summary.gradient_cosine is not None:
        second = "alignment" if summary.alignment else "target-loss"
        words.append(f"Mean cosine of task and {second} gradients: {summary.gradient_cosine:+.3f}.")
        if summary.penalty_cosine is not None:
            words.append(
                f"It leaves out the penalty of the {summary.penalty}, which is in both losses; the cosine of the task "
                f"gradient with that penalty's is {summary.penalty_cosine:+.3f}."
            )
    return words
