"""The summary of a run: a table in words and its twin `summary.json`."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path

from rich.console import Console
from rich.table import Table

from .run_folder import SUMMARY_FILE

__all__ = ["Summary", "print_summary", "write_summary"]


@dataclass(frozen=True)
class Summary:
    """What a run achieved. Accuracies are shares of 0..1 on the test splits; all are of the last checkpoint.

    Attributes:
        output_dir: The run's folder.
        source: Name of the source domain.
        target: Name of the target domain.
        method: How task and alignment shared a step.
        alignment: Names of the alignment objectives.
        backbone: The backbone's name.
        seed: Seed of the run.
        source_steps: Steps of the source phase.
        adaptation_steps: Steps of the adaptation phase.
        source_accuracy_before: Source test accuracy at the end of the source phase.
        source_accuracy: Source test accuracy at the end.
        target_accuracy_before: Target test accuracy at the end of the source phase; None without target labels.
        target_accuracy_after: Target test accuracy at the end; None without target labels.
        target_class_mean_before: Mean over classes of the target recall at the end of the source phase.
        target_class_mean_after: The same at the end.
        gradient_cosine: Mean cosine of the task and alignment gradients over the adaptation; None where the method does
            not separate them.
        source_test_images: Number of source test images.
        target_test_images: Number of labelled target test images.
        checkpoint: Which checkpoint the numbers come from.
        batch_norm: What batch normalisation did.
        seconds: Wall time of the run's last start, without set-up.
        seconds_per_step: Median time of an adaptation step.
        notes: Plain statements about the data.
        versions: Versions of the libraries.
    """

    output_dir: str
    source: str
    target: str
    method: str
    alignment: list[str]
    backbone: str
    seed: int
    source_steps: int
    adaptation_steps: int
    source_accuracy_before: float
    source_accuracy: float
    target_accuracy_before: float | None
    target_accuracy_after: float | None
    target_class_mean_before: float | None
    target_class_mean_after: float | None
    gradient_cosine: float | None
    source_test_images: int
    target_test_images: int
    checkpoint: str
    batch_norm: str
    seconds: float
    seconds_per_step: float | None
    notes: list[str] = field(default_factory=list)
    versions: dict[str, str] = field(default_factory=dict)


def write_summary(summary: Summary) -> Path:
    """Write `summary.json` into the run's folder."""
    path = Path(summary.output_dir) / SUMMARY_FILE
    path.write_text(json.dumps(asdict(summary), indent=2) + "\n")
    return path


def print_summary(summary: Summary, console: Console) -> None:
    """Print the summary: the table, what it means, where the files are, and what to try next."""
    title = (
        f"{summary.source} -> {summary.target}: {summary.method} with {' + '.join(summary.alignment) or 'no alignment'}"
    )
    table = Table(title=title, title_justify="left")
    for column in ("test accuracy", "before", "after", "change", "images"):
        table.add_column(column, justify="left" if column == "test accuracy" else "right")
    rows = [
        ("source", summary.source_accuracy_before, summary.source_accuracy, summary.source_test_images),
        ("target", summary.target_accuracy_before, summary.target_accuracy_after, summary.target_test_images),
    ]
    for name, before, after, images in rows:
        if before is None or after is None:
            table.add_row(f"{name} {getattr(summary, name)}", "no labels", "no labels", "", "")
            continue
        change = f"{100 * (after - before):+.1f}"
        table.add_row(
            f"{name} {getattr(summary, name)}", f"{100 * before:.1f} %", f"{100 * after:.1f} %", change, str(images)
        )
    console.print(table)
    console.print(_in_words(summary))
    for note in summary.notes:
        console.print(f"Note: {note}")
    folder = summary.output_dir
    console.print(f"\nThe adapted model is in {folder}: model, image processor, metrics.jsonl, summary.json.")
    console.print("Next, try:")
    console.print(f"  metaalign evaluate {folder} --data DOMAIN", soft_wrap=True)
    console.print(f"  metaalign predict {folder} IMAGE.png", soft_wrap=True)
    console.print(f"  metaalign export {folder} {folder}-native", soft_wrap=True)


def _in_words(summary: Summary) -> str:
    phases = f"{summary.adaptation_steps} steps"
    if summary.source_steps:
        phases = f"{summary.source_steps} steps on the source, then {phases} of adaptation"
    else:
        phases += " (no source phase: before is the untrained classifier)"
    words = [f"{phases}, seed {summary.seed}, {summary.seconds:.0f} s. Numbers are of the last checkpoint."]
    if summary.gradient_cosine is not None:
        words.append(f"Mean cosine of task and alignment gradients: {summary.gradient_cosine:+.3f}.")
    return "\n".join(words)
