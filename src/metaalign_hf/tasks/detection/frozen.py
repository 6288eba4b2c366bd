"""A detector whose backbone is frozen: what then trains."""

from __future__ import annotations

from ...configuration import Config
from ...errors import UserError
from ...models import MetaAlignForObjectDetection

__all__ = ["freeze_backbone"]


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
