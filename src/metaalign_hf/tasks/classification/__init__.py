"""Image classification."""

from __future__ import annotations

from functools import partial
from pkgutil import resolve_name

from ..kinds import Measure, PredictOption, TaskKind, register_task

__all__ = ["IMAGE_CLASSIFICATION"]

IMAGE_CLASSIFICATION = register_task(
    TaskKind(
        pipeline_tag="image-classification",
        auto_class="AutoModelForImageClassification",
        architectures="ForImageClassification",
        load=partial(resolve_name, f"{__name__}.task:ClassificationTask"),
        measures=(
            Measure("accuracy", "accuracy", "accuracy", indexed=True),
            Measure("balanced_accuracy", "balanced accuracy", "balanced_accuracy"),
            Measure("average_precision", "average precision", "average_precision"),
        ),
        noun="classifier",
        ignores={"detector_size": "data.image_size and data.resize_size"},
        ignores_of_dataset=("objects_column", "classes", "box_format", "bad_boxes"),
        start_key="backbone",
        start_words="as a backbone, with a new classifier",
        example_domains="--data.source imagefolder:SOURCE --data.target imagefolder:TARGET",
        verb="classify",
        says="logits",
        limit="It knows no class but those listed, and answers with one of them for every image.",
        doing="classifying",
        done="classified",
        options=(
            PredictOption("--top-k", "count", "the N most probable classes"),
            PredictOption("--all-probabilities", "nothing", "the probability of every class"),
            PredictOption(
                "--unknown",
                "nothing",
                "call images unknown of whose class the model is unsure, where it does not know all classes",
                evaluates=True,
            ),
        ),
    )
)
