"""Freezing a model's backbone, or a classifier's first stages."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from torch import Tensor, nn

from ..coordination import Stage, find_stages
from ..errors import UserError
from .base import MetaAlignModel
from .frozen_part import FrozenPart

if TYPE_CHECKING:
    from .image_classification import MetaAlignForImageClassification

__all__ = ["freeze_all", "freeze_parameters", "frozen_tensors", "leave_out"]


def freeze_parameters(model: MetaAlignForImageClassification, stages: int | Literal["all"]) -> list[nn.Module]:
    """Let the parameters of the first stages of a backbone, or of all of it, train no more.

    Args:
        model: The model.
        stages: As `MetaAlignForImageClassification.freeze` takes it.

    Returns:
        The modules of which no parameter trains.

    Raises:
        UserError: If the backbone has fewer stages, or none that can be told apart.
    """
    if stages == "all":
        return freeze_all(model.backbone)
    frozen = {name for stage in _first_stages(model, stages) for name in stage.parameters}
    for name, parameter in model.named_parameters():
        if name in frozen:
            parameter.requires_grad = False
    return _still(model.backbone)


def freeze_all(backbone: nn.Module) -> list[nn.Module]:
    """Let no parameter of a backbone train; returns its modules that have any."""
    backbone.requires_grad_(False)
    return _still(backbone)


def _still(backbone: nn.Module) -> list[nn.Module]:
    """The modules that have parameters, of which none trains."""
    return [
        module
        for module in backbone.modules()
        if (own := list(module.parameters())) and not any(parameter.requires_grad for parameter in own)
    ]


def _first_stages(model: MetaAlignForImageClassification, count: int) -> list[Stage]:
    name = model.config.backbone_name
    try:
        stages = [stage for stage in find_stages(model) if stage.name != "head"]
    except ValueError as error:
        raise UserError(f"backbone {name}: {error}; freeze all of it, or none") from error
    if count >= len(stages):
        names = ", ".join(stage.name for stage in stages)
        raise UserError(f"backbone {name} has {len(stages)} stages ({names}); freeze fewer, or all")
    return stages[:count]


def leave_out(model: MetaAlignForImageClassification, stages: int) -> str | None:
    """From now on `forward` takes what frozen stages gave (`frozen_outputs`) in the place of images.

    Args:
        model: The model, of which these stages are frozen.
        stages: How many.

    Returns:
        None, or why that cannot be, and then nothing has changed.
    """
    entry = find_stages(model)[stages].entry
    if entry is None:
        return "the stage after them does not begin with one layer"
    part = FrozenPart(model.backbone, entry, model.image_processor().crop_size["height"])
    training = model.training
    model.eval()
    try:
        reason = part.check()
    finally:
        model.train(training)
    if reason is None:
        model._frozen_part = part
    return reason


def frozen_tensors(model: MetaAlignModel) -> dict[str, Tensor]:
    """The tensors of the backbone that stay as they are, by name."""
    still = {id(tensor) for module in model.frozen_modules for tensor in module.buffers()}
    still |= {id(parameter) for parameter in model.backbone.parameters() if not parameter.requires_grad}
    named = model.backbone.state_dict(keep_vars=True)
    return {name: tensor.detach() for name, tensor in named.items() if id(tensor) in still}
