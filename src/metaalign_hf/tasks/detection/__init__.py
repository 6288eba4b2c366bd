"""Object detection."""

from __future__ import annotations

from functools import partial
from pkgutil import resolve_name

from ..kinds import Measure, PredictOption, TaskKind, register_task

__all__ = ["OBJECT_DETECTION"]

OBJECT_DETECTION = register_task(
    TaskKind(
        pipeline_tag="object-detection",
        auto_class="AutoModelForObjectDetection",
        architectures="ForObjectDetection",
        load=partial(resolve_name, f"{__name__}.task:DetectionTask"),
        measures=(
            Measure("map50", "mAP@50", "mAP", indexed=True),
            Measure("voc_11_point", "11-point mAP@50 of VOC 2007", "mAP"),
            Measure("map", "mAP@50:95", "mAP"),
        ),
        noun="detector",
        chosen_by="detector",
        ignores=dict.fromkeys(("image_size", "resize_size"), "data.detector_size"),
        ignores_of_dataset=("label_column", "labels_file"),
        cited_as=("level", "detection_validator"),
        start_key="detector",
        start_words="with new alignment heads",
        example_domains="--data.source coco:SOURCE.json --data.target coco:TARGET.json",
        verb="detect",
        says="boxes and scores",
        limit="It knows no class but those listed, and takes other objects for background or for one of them.",
        outputs=("logits", "pred_boxes"),
        doing="finding objects",
        done="searched for objects",
        batch_size=8,
        options=(
            PredictOption("--draw", "folder", "new folder for pictures with boxes"),
            PredictOption("--tile", "count", "also look in tiles of N pixels, for small objects in large images", True),
            PredictOption("--threshold", "share", "least score of an object; 0.5"),
        ),
        try_also=" --draw FOLDER",
    )
)
