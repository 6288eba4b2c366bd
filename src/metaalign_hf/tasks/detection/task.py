"""Object detection as a task of the loop."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
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
from ...data.detection_batches import batch_of_views
from ...data.detection_pair import OBJECTS
from ...data.fixed_views import TRAINED
from ...data.object_augmentation import distort_color, weak_augmentation
from ...data.object_views import facts_of, with_object_views
from ...data.objects import Objects
from ...errors import UserError
from ...evaluation import Detections, evaluate_detector, precision_curves, predict_objects
from ...evaluation.detection_validators import DETECTION_VALIDATORS, detection_agreement, detection_entropy
from ...interruption import Interruption
from ...models import IGNORED_LABEL, MetaAlignForObjectDetection
from ...models.detectors.processors import build_detector_processor
from ...progress import stage, track
from ...reports.detections import draw_before_after
from ...run_folder import DETECTIONS_FILE
from ...target_losses import TargetContext, build_target_losses
from ..base import Batch, Kept, Scores, StepClosures, Task, rows_of
from ..computed_once import computed_pair
from ..passes import full_passes, task_pass
from ..starting_point import check_labels, fetch_starting_point, starting_model
from . import OBJECT_DETECTION, serving
from .frozen import freeze_backbone, why_not_cached
from .mixing import mix_detection, together

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
        self._images = self.pair
        self._settle_cache(why_not_cached(config, self.model, self.processor, self.target_losses))
        if self.cached or data.views is not None:
            self.pair = with_object_views(self.pair, data.augmentation, self.target_augmentation, data.views or 1)

    def prepare(self, accelerator: Accelerator, stop: Interruption) -> bool:
        """Compute the maps of a frozen backbone."""
        if not self._cached_on(accelerator):
            return False
        batch_of = partial(
            batch_of_views, processor=self.processor, boxes_relative_to_image=self.model.boxes_relative_to_image
        )
        self.pair = computed_pair(
            *(self.pair, self.model, self.processor, self.config, accelerator, self.bad_images, stop),
            facts=facts_of(self.pair, batch_of),
            only_augmented=TRAINED,
        )
        return True

    @property
    def notes(self) -> list[str]:
        """Plain statements about the data, and about maps that are computed once."""
        notes, views = super().notes, self.config.data.views
        if self.config.model.freeze == "none":
            return notes
        if not self.cached:
            return [*notes, f"The frozen backbone's maps are computed in every pass: {self._without_cache}."]
        augmented = "" if views is None else f" in {views} augmented views"
        return [*notes, f"The frozen backbone's maps are computed once for each image{augmented}."]

    @property
    def plain_target(self) -> DetectionSet:
        """The target's training images, whose views may be computed already."""
        return self._images.target_train

    def stream(self, images: DetectionSet, **options: Any) -> Iterator[Batch]:
        """Endless micro-batches of training images."""
        return detection_stream(images, self.processor, self.model.boxes_relative_to_image, **options)

    @property
    def target_augmentation(self) -> str:
        """Without what is strong: a teacher looks for objects in these images."""
        return weak_augmentation(self.config.data.augmentation)

    def with_target_labels(self, source: Batch, few: Batch) -> Batch:
        """Source rows and labelled target rows, which carry domain label -100: the task loss alone uses them."""
        return together(source, few, IGNORED_LABEL)

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
        shown = self._images.target_test_images.subset(range(min(_EXAMPLES, len(self.pair.target_test_images))))
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
                plain = self.read(self._images.target_train, indices[start : start + size])
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
        found = self.model.inner_features(pixel_values)
        return torch.cat([level.values.flatten(2).mean(2) for level in found.maps], 1)

    def further_figures(self, after: dict[str, Scores]) -> dict[str, Any]:
        """Target AP of each class at IoU .50 at the end, by name; None where the class does not occur."""
        per_class = after.get("target", {}).get("per_class50", [])
        return {"target_per_class50": dict(zip(self.pair.labels, per_class, strict=True)) if per_class else {}}

    def write_files(self, folder: Path, before: Scores, after: Scores) -> list[str]:
        """A picture of target test images with the boxes found before and after, and the true ones where known."""
        old, new = (_examples(found["found"]) for found in (before, after))
        images = [self._images.target_test_images[index] for index in range(len(old))]
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


def _examples(entries: list[dict[str, list[Any]]]) -> list[Detections]:
    return [
        Detections(torch.tensor(e["boxes"]).reshape(-1, 4), torch.tensor(e["scores"]), torch.tensor(e["labels"]).long())
        for e in entries
    ]
