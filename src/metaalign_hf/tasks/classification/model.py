"""The model that a classification run trains: from a backbone, a dual encoder or a checkpoint."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from ...configuration import Config, ModelConfig
from ...data import ImageSet, load_domain, preprocess
from ...data.images import read_images
from ...errors import UserError, one_line
from ...models import MetaAlignForImageClassification
from ..starting_point import starting_model
from . import IMAGE_CLASSIFICATION

__all__ = ["build_model", "try_one_image", "without_unused_alignment", "zero_shot_labels"]

_SCALED_ON = 32
"""Images on which a zero-shot head is scaled: a mean of lengths that differ little."""


def build_model(
    config: ModelConfig, labels: list[str], images: ImageSet | None = None
) -> MetaAlignForImageClassification:
    """The model that the configuration describes: from a backbone, or from a metaalign checkpoint.

    Args:
        config: The model's section.
        labels: Class names in the order of the logits.
        images: Images on some of which a zero-shot head is scaled.

    Raises:
        UserError: If the backbone or checkpoint cannot be loaded.
    """

    def fresh() -> MetaAlignForImageClassification:
        model = _zero_shot(config, labels, images) if config.head == "zero_shot" else linear()
        if config.lora is not None:
            model.add_lora(**config.lora)
        return model

    def linear() -> MetaAlignForImageClassification:
        return MetaAlignForImageClassification.from_backbone(
            config.backbone,
            labels,
            "cdan" if config.alignment == "auto" else config.alignment,
            pretrained=config.pretrained,
            bottleneck_dim=config.bottleneck_dim,
            bottleneck_kind=config.bottleneck_kind,
            **config.backbone_options,
        )

    return starting_model(config, IMAGE_CLASSIFICATION, MetaAlignForImageClassification, fresh)


def without_unused_alignment(config: Config) -> ModelConfig:
    """The model's section; a zero-shot head without a source has nothing to align with."""
    alone = config.data.source is None and config.model.head == "zero_shot"
    return replace(config.model, alignment=None) if alone else config.model


def _zero_shot(config: ModelConfig, labels: list[str], images: ImageSet | None) -> MetaAlignForImageClassification:
    assert images is not None and isinstance(config.backbone, str)
    chosen = range(0, len(images), max(1, len(images) // _SCALED_ON))
    _, read = read_images(images, chosen, skip=lambda index, error: None)
    if not read:
        raise UserError(f"domain {images.name}: none of {len(chosen)} images can be read")
    alignment = "cdan" if config.alignment == "auto" else config.alignment
    return MetaAlignForImageClassification.from_dual_encoder(
        config.backbone, labels, alignment, images=read, prompts=config.prompt
    )


def zero_shot_labels(config: Config) -> list[str]:
    """The classes of a zero-shot head that no source names: those that are given, or the target's own names."""
    if config.model.labels is not None:
        return config.model.labels
    domain = load_domain(config.data.target)
    if domain.labels is None:
        raise UserError(f"model.labels: target {domain.name} has no class names; name the classes, such as [cat, dog]")
    return domain.labels


def try_one_image(model: MetaAlignForImageClassification, processor: Any) -> None:
    """Refuse an image size that the backbone cannot take, which a trial pass shows."""
    pixels = preprocess([torch.zeros(3, 8, 8, dtype=torch.uint8)], processor)
    height, width = pixels.shape[-2:]
    training = model.training
    try:
        with torch.no_grad():
            model.eval()(pixels.to(model.device, model.dtype))
    except Exception as error:  # every architecture raises an error of its own
        reason = one_line(error, first=True)
        raise UserError(
            f"data.image_size: {model.config.backbone_name} cannot take images of {height} x {width} pixels ({reason})"
        ) from error
    finally:
        model.train(training)
