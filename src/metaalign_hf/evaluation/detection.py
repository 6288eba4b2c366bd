"""Average precision of a detector on a labelled view: COCO's measures, and VOC's for comparison with older tables."""

from __future__ import annotations

import contextlib
import io
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torchmetrics.detection import MeanAveragePrecision
from torchvision.ops import box_convert, box_iou

from ..data.objects import Objects

__all__ = [
    "Detections",
    "Precision",
    "average_precision",
    "evaluate_detector",
    "precision_curves",
    "predict_objects",
    "voc_precision",
]


@dataclass(frozen=True)
class Detections:
    """What a detector found in one image.

    Attributes:
        boxes: `(n, 4)`, x_min, y_min, x_max, y_max in pixels of the original image.
        scores: `(n,)` in 0..1, highest first.
        labels: Class index `(n,)`.
    """

    boxes: Tensor
    scores: Tensor
    labels: Tensor


@dataclass(frozen=True)
class Precision:
    """Average precision on n images, in 0..1; NaN where nothing could be measured.

    Attributes:
        map: COCO's mean over classes and IoU thresholds .50, .55, ... .95.
        map50: Mean over classes at IoU .50.
        map75: Mean over classes at IoU .75.
        per_class: COCO's average precision of each class over those thresholds.
        per_class50: Average precision of each class at IoU .50, the area under its precision-recall curve.
        voc_area: Mean of `per_class50`, as PASCAL VOC 2010 and later define it.
        voc_11_point: The mean over classes of the 11-point average precision at IoU .50 of VOC 2007, which published
            tables on VOC, Clipart1k, Watercolor2k and Cityscapes use.
        n: Number of images.
        objects: Number of objects, ignored ones left out.
    """

    map: float
    map50: float
    map75: float
    per_class: list[float]
    per_class50: list[float]
    voc_area: float
    voc_11_point: float
    n: int
    objects: int


@torch.no_grad()
def predict_objects(
    model: nn.Module, probabilities: Any, batches: Iterable[dict[str, Any]], most: int = 100, threshold: float = 0.0
) -> Iterable[tuple[int, Detections, Objects | None]]:
    """What the detector finds in each image.

    A detector with a class "no object" (softmax) says one class for each query; the others (sigmoid) may say several.

    Args:
        model: Called with `pixel_values` and `pixel_mask`; its output has `logits` and `pred_boxes`. It is put in eval
            mode and left in it.
        probabilities: Makes class probabilities `(B, Q, K)` of logits, and says by its attribute `one_class` whether
            each query has one class.
        batches: As `detection_batches` makes them.
        most: Most objects in an image.
        threshold: Least score of an object; 0 for average precision.

    Yields:
        The number of the image, what was found, and its objects where they are known.
    """
    device = next(model.parameters()).device
    model.eval()
    for batch in batches:
        mask = batch.get("pixel_mask")
        given = {} if mask is None else {"pixel_mask": mask.to(device)}
        output = model(pixel_values=batch["pixel_values"].to(device), **given)
        shares = probabilities(output.logits).float().cpu()
        boxes = box_convert(output.pred_boxes.float().cpu(), "cxcywh", "xyxy")
        objects = batch.get("objects") or [None] * len(boxes)
        for row, index in enumerate(batch["index"]):
            found = _best(shares[row], boxes[row], probabilities.one_class, most, threshold)
            frame = batch["frames"][row].flip(0).repeat(2)
            yield index, Detections(found.boxes * frame, found.scores, found.labels), objects[row]


def _best(shares: Tensor, boxes: Tensor, one_class: bool, most: int, threshold: float) -> Detections:
    """The best of an image's queries, with boxes in 0..1."""
    queries, classes = shares.shape
    if one_class:
        scores, labels = shares.max(-1)
        rows = torch.arange(queries)
    else:
        scores = shares.flatten()
        rows, labels = torch.arange(queries).repeat_interleave(classes), torch.arange(classes).repeat(queries)
    order = scores.argsort(descending=True, stable=True)[:most]
    order = order[scores[order] >= threshold]
    return Detections(boxes[rows[order]], scores[order], labels[order])


def evaluate_detector(
    model: nn.Module,
    probabilities: Any,
    batches: Iterable[dict[str, Any]],
    num_labels: int,
    keep: Callable[[list[Detections], list[Objects]], object] = lambda found, objects: None,
) -> Precision:
    """Average precision over batches with objects; with several processes, over all their batches.

    The model is put in eval mode and left in the mode it was in.

    Args:
        model: As `predict_objects` takes it.
        probabilities: As `predict_objects` takes it.
        batches: The batches, on any device; each process brings its own share.
        num_labels: Number of classes.
        keep: Called with what was found and what is there, for whatever else is made of it.

    Returns:
        The precision.
    """
    was_training = model.training
    found = [(detections, objects) for _, detections, objects in predict_objects(model, probabilities, batches)]
    model.train(was_training)
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        shares: list[Any] = [None] * torch.distributed.get_world_size()
        torch.distributed.all_gather_object(shares, found)
        found = [entry for share in shares for entry in share]
    pairs = [(detections, objects) for detections, objects in found if objects is not None]
    detected, there = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
    keep(detected, there)
    return average_precision(detected, there, num_labels)


def average_precision(found: Sequence[Detections], objects: Sequence[Objects], num_labels: int) -> Precision:
    """Average precision of what was found in some images.

    Args:
        found: What was found in each image.
        objects: What is there.
        num_labels: Number of classes.

    Returns:
        The precision.
    """
    metric = MeanAveragePrecision(
        box_format="xyxy", class_metrics=True, backend="faster_coco_eval", sync_on_compute=False
    )
    metric.warn_on_many_detections = False
    metric.update(
        [{"boxes": f.boxes, "scores": f.scores, "labels": f.labels} for f in found],
        [{"boxes": o.boxes, "labels": o.labels, "iscrowd": o.ignored.long()} for o in objects],
    )
    with contextlib.redirect_stdout(io.StringIO()):
        figures = metric.compute()
    per_class = [math.nan] * num_labels
    # One class alone comes as a scalar; what does not occur comes as -1.
    for label, value in zip(figures["classes"].reshape(-1), figures["map_per_class"].reshape(-1), strict=True):
        per_class[int(label)] = _measured(value)
    area, points = voc_precision(found, objects, num_labels)
    return Precision(
        map=_measured(figures["map"]),
        map50=_measured(figures["map_50"]),
        map75=_measured(figures["map_75"]),
        per_class=per_class,
        per_class50=area,
        voc_area=_mean(area),
        voc_11_point=_mean(points),
        n=len(objects),
        objects=sum(int((~o.ignored).sum()) for o in objects),
    )


def voc_precision(
    found: Sequence[Detections], objects: Sequence[Objects], num_labels: int, iou: float = 0.5
) -> tuple[list[float], list[float]]:
    """Average precision of each class by the rules of PASCAL VOC.

    Each detection, best first, belongs to the object of its class that it overlaps most. At an IoU of at least `iou` it
    is right the first time and wrong after that; on a difficult object it does not count.

    Args:
        found: What was found in each image.
        objects: What is there.
        num_labels: Number of classes.
        iou: Least overlap.

    Returns:
        By area under the interpolated curve (VOC 2010 and later) and by the mean of the interpolated precision at
        recalls 0, .1, ... 1 (VOC 2007); NaN for a class without objects.

    Source: Everingham et al., "The PASCAL Visual Object Classes (VOC) Challenge", IJCV 2010, section 4.2.
    """
    curves = [_interpolated(*judged) for judged in _judged(found, objects, num_labels, iou)]
    return [_area(*curve) for curve in curves], [_eleven_points(*curve) for curve in curves]


def precision_curves(found: Sequence[Detections], objects: Sequence[Objects], num_labels: int) -> tuple[Tensor, Tensor]:
    """Precision-recall curves at an IoU of .50, as `voc_precision` judges detections.

    Args:
        found: What was found in each image.
        objects: What is there.
        num_labels: Number of classes.

    Returns:
        The interpolated precision `(K, 101)` at recalls 0, .01, ... 1 and the area under the curve `(K,)`; NaN for a
        class without objects.
    """
    curves = [_interpolated(*judged) for judged in _judged(found, objects, num_labels, 0.5)]
    rows = [[_best_from(*curve, mark / 100) for mark in range(101)] for curve in curves]
    return torch.tensor(rows), torch.tensor([_area(*curve) for curve in curves])


def _judged(
    found: Sequence[Detections], objects: Sequence[Objects], num_labels: int, iou: float
) -> Iterable[tuple[list[float], list[bool], int]]:
    """Of each class the score of every detection that counts, whether it is right, and how many objects there are."""
    for label in range(num_labels):
        scores, hits, total = [], [], 0
        for detections, truth in zip(found, objects, strict=True):
            there = truth.where(truth.labels == label)
            total += int((~there.ignored).sum())
            mine = detections.labels == label
            own = detections.scores[mine].tolist()
            if len(there) == 0:
                scores += own
                hits += [False] * len(own)
                continue
            best, picks = box_iou(detections.boxes[mine], there.boxes).max(1)
            ignored, taken = there.ignored.tolist(), set()
            for score, overlaps, pick in zip(own, (best >= iou).tolist(), picks.tolist(), strict=True):
                if overlaps and ignored[pick]:
                    continue
                scores.append(score)
                hits.append(overlaps and pick not in taken)
                if overlaps:
                    taken.add(pick)
        yield scores, hits, total


def _interpolated(scores: list[float], hits: list[bool], total: int) -> tuple[Tensor, Tensor]:
    """Recall of one class, rising, and the highest precision at it or a higher one; NaN without objects."""
    if total == 0:
        return torch.full((1,), math.nan), torch.full((1,), math.nan)
    order = torch.tensor(scores).argsort(descending=True, stable=True)
    right = torch.tensor(hits, dtype=torch.float64)[order].cumsum(0)
    recall = right / total
    precision = right / torch.arange(1, len(right) + 1)
    return recall, precision.flip(0).cummax(0).values.flip(0) if len(right) else precision


def _area(recall: Tensor, best: Tensor) -> float:
    """Area under the interpolated curve."""
    return float((torch.diff(recall, prepend=recall.new_zeros(1)) * best).sum())


def _eleven_points(recall: Tensor, best: Tensor) -> float:
    """Mean of the interpolated precision at recalls 0, .1, ... 1."""
    return sum(_best_from(recall, best, mark / 10) for mark in range(11)) / 11


def _best_from(recall: Tensor, best: Tensor, mark: float) -> float:
    """The highest precision at a recall or a higher one; 0 where no recall is so high."""
    if len(recall) and bool(recall[0].isnan()):
        return math.nan
    reached = recall >= mark - 1e-9
    return float(best[reached].max()) if bool(reached.any()) else 0.0


def _measured(value: Tensor) -> float:
    number = float(value)
    return math.nan if number < 0 else number


def _mean(values: Sequence[float]) -> float:
    known = [value for value in values if not math.isnan(value)]
    return sum(known) / len(known) if known else math.nan
