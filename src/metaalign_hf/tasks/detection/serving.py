"""What `metaalign evaluate` and `metaalign predict` do with a detector, adapted or native."""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Iterator
from dataclasses import asdict
from functools import partial
from typing import Any

import torch
from PIL import Image
from rich.table import Table
from torch import Tensor
from transformers import PreTrainedModel

from ...configuration import DomainConfig
from ...data import DetectionSet, ImageSet, detection_batches, load_detection_view
from ...disk import writing
from ...evaluation import Detections, average_precision, evaluate_detector, predict_objects
from ...evaluation.tiles import predict_in_tiles
from ...models import MetaAlignForObjectDetection
from ...models.detectors import DetectorAdapter, detector_adapter
from ...paths import printable
from ...progress import track
from ...reports.detections import draw_objects
from ...tables import write_table, write_text
from ..base import Answer, Measured, Skip

__all__ = ["answers", "confidences", "finish", "json_value", "measure", "picture"]

_LEAST_SIDE = 320
"""Pixels of the shorter side of a picture with boxes."""

_COLUMNS = ("file", "label", "score", "x_min", "y_min", "x_max", "y_max")


def measure(
    model: Any, processor: Any, domain: DomainConfig, split: Any, batch_size: int, tile: int | None = None
) -> Measured:
    """Average precision on a labelled domain, where a `tile` is given of sliced inference; see `Task.measure`."""
    labels, adapter = _labels(model), _adapter(model)
    view = load_detection_view(domain, labels, split)
    if tile is None:
        batches = detection_batches(view, processor, adapter.uses_mask, batch_size)
        batches = track(batches, "evaluating", len(view), count=lambda batch: len(batch["index"]))
        found = evaluate_detector(model, adapter.probabilities, batches, len(labels))
    else:
        tiled = predict_in_tiles(model, adapter.probabilities, view, processor, adapter.uses_mask, batch_size, tile)
        pairs = [(seen, there) for _, seen, there in track(tiled, "evaluating", len(view)) if there is not None]
        found = average_precision([seen for seen, _ in pairs], [there for _, there in pairs], len(labels))
    eleven, area = _percent(found.voc_11_point), _percent(found.voc_area)
    lines = [
        f"mAP@50 {_percent(found.map50)}, mAP {_percent(found.map)}, mAP@75 {_percent(found.map75)} (COCO)",
        f"mAP@50 {eleven} by 11 points (VOC 2007), {area} by area (VOC 2010)",
    ]
    table = Table("class", "AP", "AP@50")
    for name, whole, at50 in zip(labels, found.per_class, found.per_class50, strict=True):
        table.add_row(name, _percent(whole), _percent(at50))
    figures = asdict(found)
    for key in ("per_class", "per_class50"):
        figures[key] = dict(zip(labels, json_value(figures[key]), strict=True))
    return Measured(found.n, lines, table, {key: json_value(value) for key, value in figures.items()})


def answers(model: Any, processor: Any, files: ImageSet, options: argparse.Namespace, skip: Skip) -> Iterator[Answer]:
    """The objects found in each image, which are drawn where the options say so; see `Task.answers`."""
    labels, adapter = _labels(model), _adapter(model)
    threshold = 0.5 if options.threshold is None else options.threshold
    view, size = DetectionSet(files), options.batch_size
    given = (model, adapter.probabilities)
    if options.tile is None:
        batches = detection_batches(view, processor, adapter.uses_mask, size, skip=skip)
        every = predict_objects(*given, batches, threshold=threshold)
    else:
        tiled = partial(predict_in_tiles, threshold=threshold, skip=skip)
        every = tiled(*given, view, processor, adapter.uses_mask, size, options.tile)
    drawn: set[str] = set()
    for index, found, _ in every:
        path, image = files.paths[index], files[index]
        entries = _annotations(found, index)
        lines, rows = [], []
        for entry in entries:
            left, top, width, height = entry["bbox"]
            name, label, score = printable(path), labels[entry["category_id"]], entry["score"]
            lines.append(f"{name}\t{label}\t{score:.3f}\t{' '.join(f'{value:.1f}' for value in entry['bbox'])}")
            box = [round(value, 2) for value in (left, top, left + width, top + height)]
            rows.append(dict(zip(_COLUMNS, [name, label, round(score, 6), *box], strict=True)))
        if options.draw is not None:
            name = path.stem if path.stem not in drawn else f"{path.stem}-{index}"
            drawn.add(name)
            with writing(options.draw):
                options.draw.mkdir(parents=True, exist_ok=True)
                draw_objects(image, found, labels, _LEAST_SIDE).save(options.draw / f"{name}.png")
        place = printable(path.absolute())
        described = {"id": index, "file_name": place, "width": image.shape[2], "height": image.shape[1]}
        yield Answer(lines, rows, (described, entries, labels))


def confidences(answer: Answer) -> list[tuple[str, float]]:
    """The objects of an answer with their scores; see `Task.confidences`."""
    return [(row["label"], row["score"]) for row in answer.rows]


def picture(image: Tensor, answer: Answer) -> Image.Image:
    """An image `(3, H, W)` with the boxes of an answer; see `Task.picture`."""
    _, entries, labels = answer.details
    boxes = torch.tensor([entry["bbox"] for entry in entries]).reshape(-1, 4)
    boxes[:, 2:] += boxes[:, :2]
    found = Detections(
        boxes,
        torch.tensor([entry["score"] for entry in entries]),
        torch.tensor([entry["category_id"] for entry in entries], dtype=torch.long),
    )
    return draw_objects(image, found, labels, _LEAST_SIDE)


def finish(answers: list[Answer], options: argparse.Namespace) -> list[str]:
    """Write the objects: `NAME.json` as COCO json, which `coco:FILE` reads as a domain; else a row for each object."""
    said = []
    if options.output is not None:
        images = [image for image, _, _ in (answer.details for answer in answers)]
        objects = [entry for _, entries, _ in (answer.details for answer in answers) for entry in entries]
        if options.output.suffix.lower() == ".json":
            categories = [{"id": number, "name": name} for number, name in enumerate(answers[0].details[2])]
            annotations = [{"id": number, **entry} for number, entry in enumerate(objects)]
            document = {"images": images, "annotations": annotations, "categories": categories}
            write_text(options.output, json.dumps(document) + "\n")
        else:
            write_table(options.output, [row for answer in answers for row in answer.rows], _COLUMNS)
        said.append(f"{len(objects)} objects in {len(images)} images: {options.output}")
    if options.draw is not None:
        said.append(f"{len(answers)} pictures: {options.draw}")
    return said


def _annotations(found: Detections, image: int) -> list[dict[str, Any]]:
    entries = []
    for box, score, label in zip(found.boxes.tolist(), found.scores.tolist(), found.labels.tolist(), strict=True):
        left, top, right, bottom = box
        entries.append(
            {
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


def json_value(value: Any) -> Any:
    """The same value with None for NaN, which JSON does not have."""
    if isinstance(value, list):
        return [json_value(inner) for inner in value]
    return None if isinstance(value, float) and math.isnan(value) else value
