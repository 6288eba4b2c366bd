"""A detector whose backbone is frozen: what then trains, and whether its maps are computed once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ...configuration import Config
from ...errors import UserError
from ...models import MetaAlignForObjectDetection

__all__ = ["freeze_backbone", "why_not_cached"]


def freeze_backbone(config: Config, model: MetaAlignForObjectDetection) -> None:
    """Freeze the backbone of a detector as `model.freeze` says.

    Raises:
        UserError: If a part of it is meant, the family has none of its own, or alignment reaches nothing that trains.
    """
    if config.model.freeze != "all":
        raise UserError(
            f"model.freeze is {config.model.freeze}: a detector's backbone is frozen whole; set it to all or none"
        )
    model.freeze()
    levels = None if config.coordination.method == "source_only" else model.alignment
    if levels is not None and levels.maps_suffice and not model.adapter.maps_train(model.detector):
        names = " and ".join(entry["name"] for entry in model.config.alignment)
        raise UserError(
            f"model.freeze: with all of the backbone frozen {names} aligns nothing that trains; add encoder or query "
            "to model.alignment"
        )


def why_not_cached(
    config: Config, model: MetaAlignForObjectDetection, processor: Any, losses: Sequence[Any]
) -> str | None:
    """Why the maps of a backbone are not computed once; None where they are, and a pass begins with them from now on.

    Args:
        config: The configuration.
        model: The model, frozen already where it is to be.
        processor: Its image processor.
        losses: The target losses.
    """
    data = config.data
    if config.model.freeze == "none":
        return "model.freeze is none"
    if data.cache_features == "never":
        return "data.cache_features is never"
    if losses:
        return f"the target loss {losses[0].name} needs the pixels of the target in every step"
    for key in ("gradient_checkpointing", "compile"):
        if getattr(config.training, key):
            return f"training.{key} takes whole passes"
    if (size := _one_size(processor)) is None:
        return "the detector sees images of different sizes, whose maps are of different lengths (data.detector_size)"
    if data.views is None and data.augmentation != "none":
        return "data.views is null, so that every batch has new views"
    return model.leave_out_backbone(size)


def _one_size(processor: Any) -> tuple[int, int] | None:
    """Height and width that a processor resizes every image to; None where they depend on the image."""
    size = dict(processor.size or {}) if processor.do_resize else {}
    height, width = size.get("height"), size.get("width")
    return (height, width) if height and width else None
