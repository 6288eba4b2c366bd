"""From an adapted checkpoint to the plain transformers class, which needs no metaalign-hf to load."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

import torch
from transformers import (
    AutoModelForImageClassification,
    PreTrainedModel,
    TimmWrapperConfig,
    TimmWrapperForImageClassification,
)

from ..errors import UserError
from .backbone import classifier_name

if TYPE_CHECKING:
    from .image_classification import MetaAlignForImageClassification

__all__ = ["export_native"]


def export_native(model: MetaAlignForImageClassification) -> PreTrainedModel:
    """The adapted backbone and classifier as the plain image classification class of transformers.

    The objectives' bridges are folded into the classifier (`W - sum_j V_j`), with which `forward` computes as well, so
    that the logits are bit-identical. Discriminators are left out.

    Args:
        model: The adapted model; it is not changed, and no tensor is shared.

    Returns:
        For a timm backbone a `TimmWrapperForImageClassification`, else the native class, such as
        `ViTForImageClassification`.

    Raises:
        UserError: If the model has a bottleneck, for which the native class has no place.
    """
    if model.bottleneck is not None:
        raise UserError(
            "export: a model with a bottleneck has no native form; use the metaalign checkpoint, or train with "
            "bottleneck_dim: null"
        )
    config = copy.deepcopy(model.config.backbone_config)
    config.num_labels = model.config.num_labels
    config.id2label = dict(model.config.id2label)
    config.label2id = dict(model.config.label2id)
    config.problem_type = "single_label_classification"
    is_timm = isinstance(config, TimmWrapperConfig)
    if is_timm:
        config.label_names = model.config.labels
    native = (
        TimmWrapperForImageClassification(config) if is_timm else AutoModelForImageClassification.from_config(config)
    )
    classifier = classifier_name(native.timm_model if is_timm else native)
    if is_timm:
        classifier = f"timm_model.{classifier}"
    weight, bias = model.effective_classifier()
    state = {key: value.detach().clone() for key, value in model.backbone.state_dict().items()}
    state[f"{classifier}.weight"], state[f"{classifier}.bias"] = weight.detach().clone(), bias.detach().clone()
    native.to(device=weight.device, dtype=weight.dtype)
    torch.nn.Module.load_state_dict(native, state, strict=True)
    return native.train(model.training)
