"""Object detection as a task of the loop."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...configuration import Config, ModelConfig
from ...data import (
    DetectionPair,
    DetectionSet,
    detection_batch,
    detection_batches,
    detection_stream,
    load_detection_pair,
)
from ...data.blocks import random_order
from ...data.detection_batches import distort_color, weak_augmentation
from ...data.detection_pair import OBJECTS
from ...data.objects import Objects
from ...errors import UserError
from ...evaluation import Detections, evaluate_detector, precision_curves, predict_objects
from ...evaluation.detection_validators import DETECTION_VALIDATORS, detection_agreement, detection_entropy
from ...models import IGNORED_LABEL, MetaAlignForObjectDetection
from ...models.detectors.processors import build_detector_processor
from ...progress import stage, track
from ...reports.detections import draw_before_after
from ...run_folder import DETECTIONS_FILE
from ...target_losses import TargetContext, build_target_losses
from ..base import Batch, Kept, Scores, StepClosures, Task, rows_of
from ..passes import full_passes, task_pass
from ..starting_point import check_labels, fetch_starting_point, starting_model
from . import OBJECT_DETECTION, serving
from .frozen import freeze_backbone

__all__ = ["DetectionTask", "build_detector", "mix_detection"]


_EXAMPLES = 6
_THRESHOLD = 0.3


class DetectionTask(Task):
    """A domain pair of images with objects and a detector; see `tasks.base.Task`.

    Args:
        config: The whole configuration.
        pair: The domain pair; by default the one that `config.data` describes.
        model: The model; by default the one that `config.model` describes.

    Raises:
        UserError: If the data or the model cannot be loaded, or their labels differ.
    """

    kind = OBJECT_DETECTION
    validator = "agreement"
    annotations = OBJECTS
    measure = staticmethod(serving.measure)
    answers = staticmethod(serving.answers)
    confidences = staticmethod(serving.confidences)
    picture = staticmethod(serving.picture)
    finish = staticmethod(serving.finish)

    def __init__(
        self, config: Config, pair: DetectionPair | None = None, model: MetaAlignForObjectDetection | None = None
    ) -> None:
        data, select_by = config.data, config.training.select_by
        if config.training.metric != "accuracy":
            raise UserError(
                f"training.metric: {config.training.metric} is for classifiers, and detectors have mAP@50; leave it at "
                "accuracy"
            )
        if select_by not in (None, "auto", *DETECTION_VALIDATORS):
            raise UserError(
                f"training.select_by: {select_by} is for classifiers; for detectors: {', '.join(DETECTION_VALIDATORS)}"
            )
        if pair is None:
            if data.source is None:
                raise UserError("data.source is none: adapting without a source is for classifiers; name a source")
            pair = load_detection_pair(data.source, data.target, data.label_policy, data.target_labeled)
        given, model = model, model or build_detector(config.model, pair.labels)
        check_labels(model.config.labels, pair.labels)
        pair = pair.in_order(model.config.labels)
        start = config.model.checkpoint if given is None else None
        place = model.config.detector_name if start is None else str(fetch_starting_point(start))
        model_type = model.config.detector_config.model_type
        super().__init__(config, pair, model, build_detector_processor(model_type, place, data.detector_size))
        context = TargetContext(pair.labels, self.processor, self.model.adapter.probabilities)
        self.target_losses = build_target_losses(config.training.target_loss_specs, context, "object-detection")
        if config.model.freeze != "none":
            freeze_backbone(config, self.model)

    def stream(self, images: DetectionSet, **options: Any) -> Iterator[Batch]:
        """Endless micro-batches of training images."""
        return detection_stream(images, self.processor, self.model.boxes_relative_to_image, **options)

    @property
    def target_augmentation(self) -> str:
        """Without what is strong: a teacher looks for objects in these images."""
        return weak_augmentation(self.config.data.augmentation)

    def with_target_labels(self, source: Batch, few: Batch) -> Batch:
        """Source rows and labelled target rows, which carry domain label -100: the task loss alone uses them."""
        return _together(source, few, IGNORED_LABEL)

    def closures(self, model: nn.Module, source: list[Batch], target: list[Batch], progress: float) -> StepClosures:
        """As `full_passes`, with an alignment pass that sees no boxes."""
        mixed = [mix_detection(s, t) for s, t in zip(source, target, strict=True)] if target else []
        return full_passes(
            model,
            self.statistics,
            source,
            mixed,
            progress,
            left_out=("labels",),
            aligns=self.model.alignment is not None,
            two_passes=True,
        )

    def target_pass(self, model: nn.Module, source: Batch, view: Batch) -> Callable[[], Tensor]:
        """A pass that returns the detection loss on target images, on both domains where batch statistics need it."""
        rows = None
        if self.statistics.task_needs_target(model):
            view = mix_detection({**source, "labels": [None] * len(source["labels"])}, view)
            rows = rows_of(source, view)
        return task_pass(model, view, partial(self.statistics.task_pass, model, rows))

    @property
    def validation_views(self) -> int:
        """Images are seen plain and distorted in colour."""
        return 2

    def scores(
        self, model: nn.Module, domain: str, view: DetectionSet, rank: int, world_size: int, kept: Kept | None
    ) -> Scores:
        """Average precision on the test images of a domain."""
        size, relative = self.config.training.evaluation_batch_size, self.model.boxes_relative_to_image
        batches = detection_batches(view, self.processor, relative, size, rank=rank, world_size=world_size)
        batches = track(batches, f"evaluating on {domain}", len(view), count=lambda b: world_size * len(b["index"]))
        with self.statistics.as_source(model) if domain == "source" else nullcontext():

            def keep(found: list[Detections], objects: list[Objects]) -> None:
                if kept is not None and domain == "target":
                    kept["detections"] = found, objects

            classes = len(self.pair.labels)
            precision = evaluate_detector(model, self.model.adapter.probabilities, batches, classes, keep)
        return {key: serving.json_value(value) for key, value in asdict(precision).items()}

    def examples(self, model: nn.Module) -> Scores:
        """What is found in the first target test images, for the picture."""
        relative, size = self.model.boxes_relative_to_image, self.config.training.evaluation_batch_size
        shown = self.pair.target_test_images.subset(range(min(_EXAMPLES, len(self.pair.target_test_images))))
        was_training = model.training
        batches = detection_batches(shown, self.processor, relative, size)
        detections = predict_objects(model, self.model.adapter.probabilities, batches, threshold=_THRESHOLD)
        found = [{key: value.tolist() for key, value in vars(d).items()} for _, d, _ in detections]
        model.train(was_training)
        return {"found": found}

    def outputs(self, model: nn.Module, kept: Kept) -> dict[str, Tensor]:
        """Precision-recall curves of the target's test images, where they have boxes."""
        if "detections" not in kept:
            return {}
        found, objects = kept["detections"]
        curves, areas = precision_curves(found, objects, len(self.pair.labels))
        return {"precision": curves.float(), "ap50": areas.float()}

    def validate(self, model: nn.Module, rank: int, world_size: int, kept: Kept | None = None) -> dict[str, float]:
        """Agreement and entropy of what is found in target training images, without labels."""
        order = random_order(self.pair.target_train, [self.config.training.seed, 3])
        chosen = order[: self.config.training.selection_images].tolist()
        was_training = model.training
        # The same distorted views at every evaluation, so that models are compared on equal terms.
        plain, distorted = self._found(model, chosen)
        model.train(was_training)
        return {"agreement": detection_agreement(plain, distorted), "entropy": detection_entropy(plain)}

    def _found(self, model: nn.Module, indices: list[int]) -> tuple[list[Detections], list[Detections]]:
        """What is found in target training images, as they are and distorted in colour; on each process all of them."""
        training, relative = self.config.training, self.model.boxes_relative_to_image
        size, seed = training.evaluation_batch_size, training.seed
        found: tuple[list[Detections], list[Detections]] = ([], [])
        with stage("target images for validators", len(indices)) as shown:
            for start in range(0, len(indices), size):
                plain = self.read(self.pair.target_train, indices[start : start + size])
                distorted = [distort_color(image, seed * 1_000_003 + start + n) for n, image in enumerate(plain)]
                for images, kept in zip((plain, distorted), found, strict=True):
                    batch = detection_batch(images, None, self.processor, relative)
                    batches = [{**batch, "index": list(range(len(images)))}]
                    seen = predict_objects(model, self.model.adapter.probabilities, batches, most=30)
                    kept += [detections for _, detections, _ in seen]
                shown.advance(len(plain))
        return found

    def pixel_values(self, images: Sequence[Tensor]) -> Tensor:
        """Images as the model sees them in evaluation."""
        batch = detection_batch(images, None, self.processor, self.model.boxes_relative_to_image)
        values: Tensor = batch["pixel_values"]
        return values

    def features(self, pixel_values: Tensor) -> Tensor:
        """The means of the backbone's maps over all places, those of all maps side by side."""
        found = self.model.adapter.features(self.model.detector, pixel_values, None)
        return torch.cat([level.values.flatten(2).mean(2) for level in found.maps], 1)

    def further_figures(self, after: dict[str, Scores]) -> dict[str, Any]:
        """Target AP of each class at IoU .50 at the end, by name; None where the class does not occur."""
        per_class = after.get("target", {}).get("per_class50", [])
        return {"target_per_class50": dict(zip(self.pair.labels, per_class, strict=True)) if per_class else {}}

    def write_files(self, folder: Path, before: Scores, after: Scores) -> list[str]:
        """A picture of target test images with the boxes found before and after, and the true ones where known."""
        old, new = (_examples(found["found"]) for found in (before, after))
        images = [self.pair.target_test_images[index] for index in range(len(old))]
        view = self.pair.target_evaluation
        truth = None if view is None or view.objects is None else view.objects[: len(images)]
        picture = draw_before_after(images, old, new, self.pair.labels, truth, _THRESHOLD)
        picture.save(folder / DETECTIONS_FILE)
        return [DETECTIONS_FILE]

    @property
    def model_name(self) -> str:
        """The detector's name."""
        return self.model.config.detector_name or ""


def build_detector(config: ModelConfig, labels: list[str]) -> MetaAlignForObjectDetection:
    """The detector that the configuration describes: of a family, or a metaalign checkpoint.

    Raises:
        UserError: If the detector or checkpoint cannot be loaded, or the checkpoint holds no metaalign detector.
    """

    def fresh() -> MetaAlignForObjectDetection:
        assert config.detector is not None
        return MetaAlignForObjectDetection.from_detector(
            config.detector,
            labels,
            "detr" if config.alignment == "auto" else config.alignment,
            pretrained=config.pretrained,
            **config.detector_options,
        )

    return starting_model(config, OBJECT_DETECTION, MetaAlignForObjectDetection, fresh)


def mix_detection(source: Batch, target: Batch) -> Batch:
    """Source and target in one batch, on the smallest canvas that holds both; images without labels have None."""
    return _together(source, target, 1)


def _together(source: Batch, target: Batch, domain: int) -> Batch:
    """As `mix_detection`, with the domain label that the target's images have."""
    parts = (source["pixel_values"], target["pixel_values"])
    height, width = (max(part.shape[axis] for part in parts) for axis in (2, 3))
    device = parts[0].device
    known = source.get("domain_labels", torch.zeros(len(parts[0]), dtype=torch.long, device=device))
    values = [F.pad(part, (0, width - part.shape[3], 0, height - part.shape[2])) for part in parts]
    masks = []
    for batch, part in zip((source, target), parts, strict=True):
        mask = batch.get("pixel_mask")
        mask = torch.ones_like(part[:, 0], dtype=torch.long) if mask is None else mask
        masks.append(F.pad(mask, (0, width - part.shape[3], 0, height - part.shape[2])))
    mixed: Batch = {
        "pixel_values": torch.cat(values),
        "labels": [*source["labels"], *target.get("labels", [None] * len(parts[1]))],
        "domain_labels": torch.cat([known, torch.full((len(parts[1]),), domain, device=device)]),
    }
    mask = torch.cat(masks)
    if not bool(mask.bool().all()):
        mixed["pixel_mask"] = mask
    return mixed


def _examples(entries: list[dict[str, list[Any]]]) -> list[Detections]:
    return [
        Detections(torch.tensor(e["boxes"]).reshape(-1, 4), torch.tensor(e["scores"]), torch.tensor(e["labels"]).long())
        for e in entries
    ]
