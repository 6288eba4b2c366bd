"""What `metaalign evaluate` and `metaalign predict` do with a classifier, adapted or native."""

from __future__ import annotations

import argparse
import math
import re
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

from rich.table import Table

from ...configuration import DomainConfig
from ...data import ImageSet, evaluation_batches, load_labelled_view
from ...data.label_agreement import UNKNOWN
from ...errors import UserError
from ...evaluation import (
    Accuracy,
    evaluate_classifier,
    evaluate_open_set,
    is_unknown,
    open_set,
    predict_probabilities,
)
from ...paths import printable
from ...progress import track
from ..base import Answer, Measured, Skip

__all__ = ["answers", "confidences", "measure"]


def measure(
    model: Any, processor: Any, domain: DomainConfig, split: Any, batch_size: int, unknown: bool = False
) -> Measured:
    """Accuracy on a labelled domain, or with `unknown` the figures of an open set; see `Task.measure`."""
    labels = [model.config.id2label[index] for index in range(model.config.num_labels)]
    if unknown:
        _refuse_unknown(labels)
    view = load_labelled_view(domain, labels, split, opens=unknown)
    batches = evaluation_batches(view, processor, batch_size)
    shown = track(batches, "evaluating", len(view), count=lambda batch: len(batch["labels"]))
    if unknown:
        return _open_set(model, shown, labels)
    found = evaluate_classifier(model, shown, len(labels))
    low, high = found.interval
    ranked = "unknown" if math.isnan(found.average_precision) else f"{100 * found.average_precision:.2f} %"
    line = (
        f"accuracy {100 * found.accuracy:.2f} % (95 % interval {100 * low:.2f} to {100 * high:.2f}, Wilson), "
        f"balanced accuracy {100 * found.balanced_accuracy:.2f} %, "
        f"average precision {f'of {labels[1]} ' if len(labels) == 2 else ''}{ranked}"
    )
    lines, figures = [line], _figures(found, labels)
    if labels[-1] == UNKNOWN:
        opened = open_set(found.per_class, found.counts)
        lines.append(str(opened))
        figures["open_set"] = {name: _number(value) for name, value in opened.shares.items()}
    return Measured(found.n, lines, _table(found, labels), figures)


def _open_set(model: Any, batches: Any, labels: list[str]) -> Measured:
    found = evaluate_open_set(model, batches, len(labels))
    line = f"{found}; unknown is what has an entropy above log({len(labels)}) / 2"
    table, shares = Table("class", "images", "recall"), {}
    for name, count, share in zip([*labels, UNKNOWN], found.counts, found.per_class, strict=True):
        table.add_row(name, str(count), _percent(share))
        shares[name] = _number(share)
    figures = {name: _number(value) if isinstance(value, float) else value for name, value in asdict(found).items()}
    return Measured(found.n, [line], table, {**figures, "per_class": shares})


def _refuse_unknown(labels: list[str]) -> None:
    if len(labels) < 2 or UNKNOWN in labels:
        why = f"has a class named {UNKNOWN} already" if UNKNOWN in labels else "knows one class only"
        raise UserError(f"--unknown: the model {why}; leave it out")


def _table(found: Accuracy, labels: list[str]) -> Table:
    table = Table("class")
    for column in ("images", "recall", "95 % interval", "precision"):
        table.add_column(column, justify="right")
    for name, count, recall, (low, high), precision in zip(
        labels, found.counts, found.per_class, found.class_intervals, found.precision, strict=True
    ):
        interval = f"{100 * low:.1f} to {100 * high:.1f}" if count else "-"
        table.add_row(name, str(count), _percent(recall), interval, _percent(precision))
    return table


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


def _number(value: float) -> float | None:
    return None if math.isnan(value) else value


def _percent(value: float) -> str:
    return "-" if math.isnan(value) else f"{100 * value:.1f} %"


def answers(model: Any, processor: Any, files: ImageSet, options: argparse.Namespace, skip: Skip) -> Iterator[Answer]:
    """The most probable classes of each image; see `Task.answers`."""
    names = _distinct([model.config.id2label[index] for index in range(model.config.num_labels)])
    if options.unknown:
        _refuse_unknown(names)
    prints_all = options.all_probabilities and options.output is None
    count = min(len(names) if prints_all else options.top_k or 1, len(names))
    for batch in evaluation_batches(files, processor, options.batch_size, skip=skip):
        indices = batch.pop("index")
        probabilities = predict_probabilities(model, [batch])
        best = probabilities.topk(count, dim=1)
        unknown = is_unknown(probabilities).tolist() if options.unknown else [False] * len(indices)
        for index, classes, shares, whole, open_class in zip(
            indices, best.indices.tolist(), best.values.tolist(), probabilities.tolist(), unknown, strict=True
        ):
            row: dict[str, Any] = {"file": printable(files.paths[index])}
            for rank, (number, value) in enumerate(zip(classes, shares, strict=True), 1):
                end = "" if rank == 1 else f"_{rank}"
                row |= {f"label{end}": names[number], f"probability{end}": round(value, 6)}
            if open_class:
                row["label"] = UNKNOWN
            line = "\t".join(f"{value:.3f}" if isinstance(value, float) else value for value in row.values())
            if options.all_probabilities:
                row |= {f"p_{name}": round(value, 6) for name, value in zip(names, whole, strict=True)}
            yield Answer([line], [row])


def confidences(answer: Answer) -> list[tuple[str, float]]:
    """The classes of an answer with their probabilities; see `Task.confidences`."""
    (row,) = answer.rows
    ends = [name.removeprefix("label") for name in row if re.fullmatch(r"label(_\d+)?", name)]
    return [(row[f"label{end}"], row[f"probability{end}"]) for end in ends]


def _distinct(names: list[str]) -> list[str]:
    """Class names; names that occur twice (ImageNet has two cranes) get their index."""
    return [f"{name} ({index})" if names.count(name) > 1 else name for index, name in enumerate(names)]
