"""From an adapted checkpoint to the plain transformers class, which needs no metaalign-hf to load."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import (
    AutoModelForImageClassification,
    PreTrainedModel,
    TimmWrapperConfig,
    TimmWrapperForImageClassification,
)

from ..errors import UserError
from .backbone import classifier_name
from .image_processor import timm_data_config
from .lora import merged_state

if TYPE_CHECKING:
    from .image_classification import MetaAlignForImageClassification

__all__ = ["export_native", "save_native"]


def export_native(model: MetaAlignForImageClassification, processor: Any = None) -> PreTrainedModel:
    """The adapted backbone and classifier as the plain image classification class of transformers.

    The objectives' bridges and the bottleneck are folded into the classifier, with which `forward` computes as well, so
    that the logits are bit-identical. Discriminators are left out. Low-rank adapters are added to the weights that they
    belong to, which may change the last digits of the logits.

    A timm backbone's configuration also says how its images are made (`pretrained_cfg`), because transformers reads
    that, and no `preprocessor_config.json`, for such a folder. Beside the others save `model.image_processor()`.
    `save_native` makes a folder of it that timm loads as well.

    Args:
        model: The adapted model; it is not changed, and no tensor is shared.
        processor: Its image processor, where that is not `model.image_processor()`.

    Returns:
        For a timm backbone a `TimmWrapperForImageClassification`, else the native class, such as
        `ViTForImageClassification`.

    Raises:
        UserError: If the bottleneck ends in a ReLU, for which the native class has no place, or timm cannot do what
            the image processor does.
    """
    if (reason := model.no_native_form()) is not None:
        raise UserError(f"export: {reason}")
    config = copy.deepcopy(model.config.backbone_config)
    config.num_labels = model.config.num_labels
    config.id2label = dict(model.config.id2label)
    config.label2id = dict(model.config.label2id)
    config.problem_type = "single_label_classification"
    is_timm = isinstance(config, TimmWrapperConfig)
    if is_timm:
        config.label_names = model.config.labels
        described = {k: v for k, v in (config.pretrained_cfg or {}).items() if not k.startswith("test_")}
        # timm reads arguments and not None, and weights as they are: none of another format, and no pruned network.
        config.model_args = config.model_args or {}
        data = timm_data_config(processor or model.image_processor())
        config.pretrained_cfg = {**described, **data, "custom_load": False}
    native = (
        TimmWrapperForImageClassification(config) if is_timm else AutoModelForImageClassification.from_config(config)
    )
    classifier = classifier_name(native.timm_model if is_timm else native)
    if is_timm:
        classifier = f"timm_model.{classifier}"
    weight, bias = model.folded_classifier()
    state = {key: value.clone() for key, value in merged_state(model.backbone).items()}
    state[f"{classifier}.weight"], state[f"{classifier}.bias"] = weight.detach().clone(), bias.detach().clone()
    native.to(device=weight.device, dtype=weight.dtype)
    torch.nn.Module.load_state_dict(native, state, strict=True)
    return native.train(model.training)


def save_native(native: PreTrainedModel, folder: Path) -> None:
    """Save a native model, that of a timm backbone such that timm loads the same file as transformers.

    Its weights are named as timm names them, which is how transformers reads the repositories of timm:
    `timm.create_model("local-dir:FOLDER", pretrained=True)`. `save_pretrained` alone puts `timm_model.` before each
    name.

    Args:
        native: What `export_native` returned.
        folder: Where to.
    """
    if not isinstance(native, TimmWrapperForImageClassification):
        native.save_pretrained(folder)
        return
    native.save_pretrained(folder, state_dict=native.timm_model.state_dict())
