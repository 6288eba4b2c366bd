"""`metaalign evaluate`."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .options import Parser, at_least_one, refuse_existing, split_off
from .tables import write_text

if TYPE_CHECKING:
    from ..evaluation import Accuracy

__all__ = ["evaluate"]


def evaluate(arguments: list[str]) -> None:
    """Print accuracy, or average precision, on a labelled domain.

    Args:
        arguments: The words after `metaalign evaluate`.

    Raises:
        UserError: If an argument, the checkpoint or the domain is wrong.
    """
    parser = Parser("evaluate", "Accuracy of a classifier, or average precision of a detector, on a labelled domain.")
    parser.add_argument(
        "--data", required=True, help="the domain: mnist, imagefolder:FOLDER, list:FILE, coco:FILE.json, ..."
    )
    parser.add_argument("--split", choices=("test", "train", "all"), default="test", help="part of the domain")
    parser.add_argument("--batch-size", type=at_least_one, help="images in a batch; 64, or 8 for detectors")
    parser.add_argument("--output", type=Path, help="also write the figures to this JSON file")
    parser.epilog = (
        "--data.KEY VALUE refines the domain, such as --data.test_fraction 0.5; see metaalign train --help all."
    )
    arguments, refined = split_off(arguments, "--data.")
    options = parser.read(arguments)
    from ..configuration import parse_domain

    domain = parse_domain(options.data, refined)
    if options.output is not None:
        refuse_existing(options.output)

    from ..data import evaluation_batches, load_labelled_view
    from ..detection_commands import evaluate_detection, is_detector
    from ..evaluation import evaluate_classifier
    from ..hub import load_checkpoint
    from ..progress import display, stage, track

    with display(), stage(f"loading {options.checkpoint}"):
        model, processor = load_checkpoint(options.checkpoint)
    if is_detector(model):
        figures = evaluate_detection(model, processor, domain, options.split, options.batch_size or 8)
        print(f"{options.checkpoint} on {figures['n']} images ({options.split}) of {options.data}")
        _write_figures(options.output, figures)
        return
    labels = [model.config.id2label[index] for index in range(model.config.num_labels)]
    view = load_labelled_view(domain, labels, options.split)
    batches = evaluation_batches(view, processor, options.batch_size or 64)
    with display():
        shown = track(batches, "evaluating", len(view), count=lambda batch: len(batch["labels"]))
        found = evaluate_classifier(model, shown, len(labels))
    print(f"{options.checkpoint} on {found.n} images ({options.split}) of {options.data}:")
    _print_accuracy(found, labels)
    _write_figures(options.output, _figures(found, labels))


def _print_accuracy(found: Accuracy, labels: list[str]) -> None:
    from rich.console import Console
    from rich.table import Table

    low, high = found.interval
    ranked = "unknown" if math.isnan(found.average_precision) else f"{100 * found.average_precision:.2f} %"
    print(
        f"accuracy {100 * found.accuracy:.2f} % (95 % interval {100 * low:.2f} to {100 * high:.2f}, Wilson), "
        f"balanced accuracy {100 * found.balanced_accuracy:.2f} %, "
        f"average precision {f'of {labels[1]} ' if len(labels) == 2 else ''}{ranked}"
    )
    table = Table("class")
    for column in ("images", "recall", "95 % interval", "precision"):
        table.add_column(column, justify="right")
    for name, count, recall, (low, high), precision in zip(
        labels, found.counts, found.per_class, found.class_intervals, found.precision, strict=True
    ):
        interval = f"{100 * low:.1f} to {100 * high:.1f}" if count else "-"
        table.add_row(name, str(count), _percent(recall), interval, _percent(precision))
    Console().print(table)


def _figures(found: Accuracy, labels: list[str]) -> dict[str, Any]:
    def by_class(values: list[float]) -> dict[str, float | None]:
        return {name: None if math.isnan(value) else value for name, value in zip(labels, values, strict=True)}

    return {
        "accuracy": found.accuracy,
        "accuracy_interval": list(found.interval),
        "balanced_accuracy": found.balanced_accuracy,
        "average_precision": None if math.isnan(found.average_precision) else found.average_precision,
        "per_class": by_class(found.per_class),
        "per_class_precision": by_class(found.precision),
        "per_class_n": dict(zip(labels, found.counts, strict=True)),
        "n": found.n,
    }


def _percent(value: float) -> str:
    return "-" if math.isnan(value) else f"{100 * value:.1f} %"


def _write_figures(path: Path | None, figures: dict[str, Any]) -> None:
    if path is not None:
        write_text(path, json.dumps(figures, indent=2) + "\n")
        print(f"Figures: {path}")
