"""What `metaalign evaluate` and `metaalign predict` do with a detector, adapted or native."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from transformers import PreTrainedModel

from .commands.options import writing
from .commands.tables import write_table, write_text
from .data import DetectionSet, DomainConfig, detection_batches, load_detection_view
from .data.images import ImageSet
from .errors import UserError
from .evaluation import Detections, evaluate_detector, predict_objects
from .models import MetaAlignForObjectDetection, detector_types
from .models.detectors import DetectorAdapter, detector_adapter
from .paths import printable
from .progress import display, track
from .reports.detections import draw_objects

__all__ = ["evaluate_detection", "is_detector", "predict_detection"]

_COLUMNS = ("file", "label", "score", "x_min", "y_min", "x_max", "y_max")


def is_detector(model: PreTrainedModel) -> bool:
    """Whether a checkpoint is a detector that we know."""
    return isinstance(model, MetaAlignForObjectDetection) or model.config.model_type in detector_types()


def evaluate_detection(
    model: PreTrainedModel, processor: Any, domain: DomainConfig, split: Any, batch_size: int
) -> dict[str, Any]:
    """Print the average precision on a labelled domain.

    Args:
        model: The detector.
        processor: Its image processor.
        domain: The domain.
        split: `test`, `train` or `all`.
        batch_size: Images in a batch.

    Returns:
        The figures, as JSON values.
    """
    labels, adapter = _labels(model), _adapter(model)
    view = load_detection_view(domain, labels, split)
    batches = detection_batches(view, processor, adapter.uses_mask, batch_size)
    with display():
        batches = track(batches, "evaluating", len(view), count=lambda batch: len(batch["index"]))
        found = evaluate_detector(model, adapter.probabilities, batches, len(labels))
    print(f"mAP@50 {_percent(found.map50)}, mAP {_percent(found.map)}, mAP@75 {_percent(found.map75)} (COCO)")
    eleven, area = _percent(found.voc_11_point), _percent(found.voc_area)
    print(f"mAP@50 {eleven} by 11 points (VOC 2007), {area} by area (VOC 2010)")
    table = Table("class", "AP", "AP@50")
    for name, whole, at50 in zip(labels, found.per_class, found.per_class50, strict=True):
        table.add_row(name, _percent(whole), _percent(at50))
    Console().print(table)
    figures = asdict(found)
    for key in ("per_class", "per_class50"):
        figures[key] = {n: _number(v) for n, v in zip(labels, figures[key], strict=True)}
    return {key: _number(value) for key, value in figures.items()}


def predict_detection(
    model: PreTrainedModel,
    processor: Any,
    files: ImageSet,
    threshold: float,
    batch_size: int,
    output: Path | None,
    draw: Path | None,
    skip: Callable[[int, UserError], None] | None = None,
) -> None:
    """Find objects in image files: print them, or write them as COCO json or as a table, or draw them.

    Args:
        model: The detector.
        processor: Its image processor.
        files: The images, with their paths.
        threshold: Least score of an object.
        batch_size: Images in a batch.
        output: The file. `NAME.json`: COCO json with images, annotations with score, and categories; `coco:FILE` reads
            it as a domain. `NAME.csv`, `.jsonl` and `.parquet`: a row for each object, with its box in pixels.
        draw: Folder for the pictures.
        skip: Called with the number of an image that cannot be read, and why; the image is then left out. By default
            it is an error.

    Raises:
        UserError: If an image cannot be read, or the output not be written.
    """
    labels, adapter = _labels(model), _adapter(model)
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    batches = detection_batches(DetectionSet(files), processor, adapter.uses_mask, batch_size, skip=skip)
    drawn: set[str] = set()
    found_in_each = predict_objects(model, adapter.probabilities, batches, threshold=threshold)
    for index, found, _ in track(found_in_each, "finding objects", len(files)):
        path, image = files.paths[index], files[index]
        images.append(
            {"id": index, "file_name": printable(path.absolute()), "width": image.shape[2], "height": image.shape[1]}
        )
        annotations += _annotations(found, index, len(annotations))
        if output is None and draw is None:
            for entry in _annotations(found, index, 0):
                box = " ".join(f"{value:.1f}" for value in entry["bbox"])
                print(f"{printable(path)}\t{labels[entry['category_id']]}\t{entry['score']:.3f}\t{box}")
        if draw is not None:
            name = path.stem if path.stem not in drawn else f"{path.stem}-{index}"
            drawn.add(name)
            with writing(draw):
                draw.mkdir(parents=True, exist_ok=True)
                draw_objects(image, found, labels, 320).save(draw / f"{name}.png")
    if not images:
        return
    if output is not None:
        if output.suffix.lower() == ".json":
            categories = [{"id": number, "name": name} for number, name in enumerate(labels)]
            document = {"images": images, "annotations": annotations, "categories": categories}
            write_text(output, json.dumps(document) + "\n")
        else:
            write_table(output, _rows(files.paths, annotations, labels), _COLUMNS)
        print(f"{len(annotations)} objects in {len(images)} images: {output}")
    if draw is not None:
        print(f"{len(images)} pictures: {draw}")


def _rows(files: Sequence[Path], annotations: list[dict[str, Any]], labels: list[str]) -> list[dict[str, Any]]:
    rows = []
    for entry in annotations:
        left, top, width, height = entry["bbox"]
        box = [round(value, 2) for value in (left, top, left + width, top + height)]
        name = printable(files[entry["image_id"]])
        values = [name, labels[entry["category_id"]], round(entry["score"], 6), *box]
        rows.append(dict(zip(_COLUMNS, values, strict=True)))
    return rows


def _annotations(found: Detections, image: int, first: int) -> list[dict[str, Any]]:
    entries = []
    for number, (box, score, label) in enumerate(
        zip(found.boxes.tolist(), found.scores.tolist(), found.labels.tolist(), strict=True)
    ):
        left, top, right, bottom = box
        entries.append(
            {
                "id": first + number,
                "image_id": image,
                "category_id": label,
                "bbox": [left, top, right - left, bottom - top],
                "area": (right - left) * (bottom - top),
                "iscrowd": 0,
                "score": score,
            }
        )
    return entries


def _adapter(model: PreTrainedModel) -> DetectorAdapter:
    return (
        model.adapter if isinstance(model, MetaAlignForObjectDetection) else detector_adapter(model.config.model_type)
    )


def _labels(model: PreTrainedModel) -> list[str]:
    return [model.config.id2label[index] for index in range(model.config.num_labels)]


def _percent(value: float) -> str:
    return "-" if math.isnan(value) else f"{100 * value:.2f} %"


def _number(value: Any) -> Any:
    return None if isinstance(value, float) and math.isnan(value) else value
