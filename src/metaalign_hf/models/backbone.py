"""Backbones: any image classification model of transformers, and any timm model, without its classifier.

A timm name becomes a `TimmWrapperModel`; everything else becomes its native `...ForImageClassification` class whose
classifier passes the pooled feature through. Both are complete transformers models, so that their own loading code
repairs what only they know (buffers, tied weights), and their parameter names are those of the plain class.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModelForImageClassification,
    PreTrainedConfig,
    PreTrainedModel,
    TimmWrapperConfig,
    TimmWrapperModel,
)
from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES

from ..checks import check_pretrained
from ..errors import UserError, did_you_mean, one_line
from ..progress import quiet_loading
from .image_processor import backbone_image_size, handed_size
from .loading import require_in_reach, require_options
from .origin import loaded_commit

__all__ = [
    "BackboneSource",
    "build_backbone",
    "classifier_name",
    "described_images",
    "load_pretrained_backbone",
    "pooled_features",
    "resolve_backbone",
    "use_attention",
]

# Image classifiers of transformers whose forward does not map images to logits.
_UNSUITED = {
    "pp_lcnet": "it returns no logits",
    "siglip2": "it takes cut patches and their positions, not images (siglip takes images)",
}
# Families without an image classifier in transformers.
_IN_TIMM = {
    "dinov3_vit": "timm/vit_small_patch16_dinov3 and others",
    "dinov3_convnext": "timm/convnext_tiny.dinov3_lvd1689m",
}
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class BackboneSource:
    """What a backbone name stands for.

    Attributes:
        config: Configuration to build the backbone from.
        name: The name as given.
        weights: Hub id, folder or safetensors file of the pretrained weights; None starts from random weights.
        image_mean: Mean per channel of the images that the weights were trained on.
        image_std: Standard deviation per channel.
        image_size: Side of those images, in pixels.
        revision: Commit of the weights on the Hub; None where it is not known.
    """

    config: PreTrainedConfig
    name: str
    weights: str | None
    image_mean: tuple[float, ...]
    image_std: tuple[float, ...]
    image_size: int
    revision: str | None = None


class _PassThrough(nn.Module):
    """Stands in for a native classifier. The empty buffers are what an `_init_weights` that names them finds."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("weight", torch.empty(0), persistent=False)
        self.register_buffer("bias", torch.empty(0), persistent=False)

    def forward(self, features: Tensor) -> Tensor:
        """The features, unchanged."""
        return features


def resolve_backbone(
    name: str | dict[str, Any] | PreTrainedConfig, pretrained: bool | str = True, **options: Any
) -> BackboneSource:
    """Resolve a backbone name without building the backbone.

    Args:
        name: A timm name (`resnet50`, `timm/resnet50.a1_in1k`), a Hub id or a local folder of a transformers model, a
            transformers model type (`vit`; random weights only), or a configuration (object, or dict with
            `model_type`).
        pretrained: True loads the weights that the name stands for. False starts from random weights; for timm names,
            model types and configurations this needs no network. A string is a local folder or `.safetensors` file, or
            a Hub id, to load the weights from.
        **options: Entries of the native configuration, or keyword arguments of `timm.create_model` for timm names.

    Returns:
        The configuration, the place of the weights, and normalisation and size of the images that go with them.

    Raises:
        UserError: If the name means nothing, or its kind of model is not an image classifier.
    """
    if isinstance(name, dict):
        given = dict(name)
        model_type = given.pop("model_type", None)
        if model_type not in CONFIG_MAPPING_NAMES:
            raise UserError(f"backbone: a configuration needs a known model_type, not {model_type!r}")
        name = AutoConfig.for_model(model_type, **given)
    check_pretrained(pretrained, "pretrained")
    weights = pretrained if isinstance(pretrained, str) else None
    if isinstance(name, PreTrainedConfig):
        if pretrained is True:
            raise UserError("backbone: a configuration has no weights; use pretrained=False or give the weights' path")
        config = _with_options(_checked(name, name.model_type), options)
        size = backbone_image_size(config)
        return BackboneSource(config, name.model_type, weights, IMAGENET_MEAN, IMAGENET_STD, size)

    architecture = name.removeprefix("timm/")
    is_timm = timm.is_model(architecture) and not Path(name).is_dir()
    if is_timm and pretrained is not True:
        config = _timm_config(architecture, options)
        return BackboneSource(config, name, weights, *_timm_statistics(config), backbone_image_size(config))
    if name in CONFIG_MAPPING_NAMES and not Path(name).is_dir():
        if pretrained is True:
            raise UserError(f"backbone: {name!r} is a model type without weights; use pretrained=False or a Hub id")
        config = _with_options(_checked(AutoConfig.for_model(name), name), options)
        return BackboneSource(config, name, weights, IMAGENET_MEAN, IMAGENET_STD, backbone_image_size(config))

    place = f"timm/{_with_default_tag(architecture)}" if is_timm else name
    if "/" not in place and not Path(place).is_dir():
        # Vision models on the Hub have a namespace, so a bare name is a typo; report it without asking the network.
        raise UserError(_unknown(name))
    require_in_reach(place, "backbone")
    try:
        config = AutoConfig.from_pretrained(place, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise UserError(f"{_unknown(name)} ({one_line(error, first=True)})") from error
    revision = loaded_commit(place)
    if isinstance(config, TimmWrapperConfig):
        config.model_args = {**(config.model_args or {}), **options} or None
        (mean, std), size = _timm_statistics(config), backbone_image_size(config)
    else:
        config = _with_options(config, options)
        mean, std, described = described_images(place)
        if described is None or "image_size" in options:
            described = backbone_image_size(config)
        size = described
    source = (weights or place) if pretrained else None
    return BackboneSource(_checked(config, name), name, source, mean, std, size, revision if source == place else None)


def build_backbone(config: PreTrainedConfig) -> tuple[PreTrainedModel, int]:
    """The backbone with random weights, and the width D of its pooled feature.

    Calling it and `pooled_features` gives features of shape `(B, D)`.

    Args:
        config: Configuration of the backbone.

    Returns:
        The backbone without a classifier, and D.

    Raises:
        UserError: If the architecture has no plain linear classifier on a pooled feature.
    """
    if isinstance(config, TimmWrapperConfig):
        feature_dim = _timm_feature_dim(config)
        return TimmWrapperModel(config), feature_dim
    config.num_labels = 1
    if config.architectures is None:
        config.architectures = []  # transformers reads this list where a type has several classifiers
    try:
        model = AutoModelForImageClassification.from_config(config)
    except ImportError as error:
        raise UserError(f"backbone: {config.model_type} cannot be built: {one_line(error)}") from error
    return model, _remove_classifier(model)


def pooled_features(backbone: PreTrainedModel, pixel_values: Tensor) -> Tensor:
    """Pooled features `(B, D)` of images `(B, 3, H, W)`."""
    output = backbone(pixel_values)
    return output.pooler_output if isinstance(backbone, TimmWrapperModel) else output.logits


def use_attention(backbone: PreTrainedModel, attention: str) -> None:
    """Choose the attention kernel of a backbone.

    Args:
        backbone: A native transformers model or a timm wrapper.
        attention: `eager`, which can be differentiated twice, `sdpa`, or what else the native model knows.

    Raises:
        UserError: If the backbone does not know it.
    """
    if isinstance(backbone, TimmWrapperModel):
        if attention not in ("eager", "sdpa"):
            raise UserError(f"model.attention is {attention!r}: a timm backbone has eager and sdpa")
        for layer in backbone.modules():
            if hasattr(layer, "fused_attn"):
                layer.fused_attn = attention == "sdpa"
        return
    try:
        backbone.set_attn_implementation(attention)
    except (ValueError, ImportError) as error:
        raise UserError(f"model.attention: {one_line(error, first=True)}") from error


def load_pretrained_backbone(source: BackboneSource, token: str | None = None) -> PreTrainedModel:
    """The backbone of `source` with its pretrained weights.

    Args:
        source: As `resolve_backbone` returns it, with weights.
        token: Access token; by default that of the environment or login.

    Returns:
        The backbone without a classifier.

    Raises:
        UserError: If the weights cannot be read or lack a tensor of the backbone.
    """
    assert source.weights is not None
    place = Path(source.weights)
    if place.suffix == ".safetensors":
        return _from_file(source, place)
    if source.weights.startswith((".", "/", "~")) and not place.expanduser().is_dir():
        raise UserError(f"backbone weights: the folder {source.weights} does not exist")
    require_in_reach(source.weights, "backbone weights", source.revision)
    is_timm = isinstance(source.config, TimmWrapperConfig)
    arguments: dict[str, Any] = {"config": source.config, "output_loading_info": True, "use_safetensors": True}
    arguments |= {"revision": source.revision, "token": token}
    try:
        with quiet_loading():
            if is_timm:
                model, info = TimmWrapperModel.from_pretrained(source.weights, **arguments)
            else:
                source.config.num_labels = 1
                model, info = AutoModelForImageClassification.from_pretrained(
                    source.weights, ignore_mismatched_sizes=True, **arguments
                )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise UserError(f"backbone weights: cannot load {source.weights}: {one_line(error, first=True)}") from error
    classifier = "" if is_timm else classifier_name(model)
    mismatched = {key if isinstance(key, str) else key[0] for key in info["mismatched_keys"]}
    lost = sorted(
        key for key in {*info["missing_keys"], *mismatched} if not (classifier and key.startswith(classifier))
    )
    if lost:
        raise UserError(f"backbone weights: {source.weights} lacks {len(lost)} tensors of the backbone, e.g. {lost[0]}")
    if not is_timm:
        _remove_classifier(model)
    return model


def classifier_name(model: nn.Module) -> str:
    """Name of the final linear layer of a native or timm image classifier.

    Raises:
        UserError: If there is none.
    """
    kind = type(model).__name__
    get_classifier = getattr(model, "get_classifier", None)
    head = (
        get_classifier() if get_classifier is not None else getattr(model, "classifier", getattr(model, "head", None))
    )
    if isinstance(head, nn.Sequential) and len(head) > 0:
        head = head[-1]
    if isinstance(head, nn.Linear):
        return next(name for name, module in model.named_modules() if module is head)
    if isinstance(head, tuple | list):
        raise UserError(
            f"backbone: {kind} cannot be adapted: it averages {len(head)} classifiers, each on a feature of its own, "
            "where alignment needs one feature"
        )
    raise UserError(
        f"backbone: {kind} cannot be adapted: its classifier is {type(head).__name__}, not one linear layer on a "
        "pooled feature"
    )


def _remove_classifier(model: PreTrainedModel) -> int:
    """Replace the native classifier by a pass-through; returns its input width."""
    name = classifier_name(model)
    feature_dim = model.get_submodule(name).in_features
    model.set_submodule(name, _PassThrough())
    return int(feature_dim)


def _timm_config(architecture: str, options: dict[str, Any]) -> TimmWrapperConfig:
    """The configuration of a timm name from timm's own registry, without a network."""
    tagged = timm.models.get_pretrained_cfg(architecture)
    described = {} if tagged is None else {k: v for k, v in tagged.to_dict(remove_source=True).items() if v is not None}
    described.pop("num_classes", None)
    described.pop("label_names", None)
    return TimmWrapperConfig(
        architecture=architecture.split(".")[0], model_args=options or None, pretrained_cfg=described, num_labels=1
    )


def _timm_feature_dim(config: TimmWrapperConfig) -> int:
    """Width of the pooled feature; also checks that the headless model is the whole model but its classifier."""
    name = config.architecture
    with torch.device("meta"):
        try:
            arguments = config.model_args or {}
            whole = timm.create_model(name, num_classes=1, **arguments)
            headless = timm.create_model(name, num_classes=0, **arguments)
        except (TypeError, RuntimeError, AssertionError) as error:
            raise UserError(f"backbone: timm cannot build {name}: {one_line(error, first=True)}") from error
    try:
        classifier = classifier_name(whole)
    except UserError as error:
        raise UserError(f"{error} (timm {name})") from error
    names = [key for key, _ in whole.named_parameters(remove_duplicate=False)]
    unique = {key for key, _ in whole.named_parameters()}
    if len(names) > len(unique):
        twice = next(key for key in names if key not in unique)
        raise UserError(
            f"backbone: timm {name} cannot be adapted: one of its layers has several names (e.g. {twice}), which "
            "safetensors cannot save"
        )
    kept = {key for key in whole.state_dict() if not key.startswith(f"{classifier}.")}
    if kept != set(headless.state_dict()):
        raise UserError(
            f"backbone: timm {name} cannot be adapted: without its classifier it loses other layers as well, "
            f"e.g. {sorted(kept ^ set(headless.state_dict()))[0]}"
        )
    return int(whole.get_submodule(classifier).in_features)


def _timm_statistics(config: PreTrainedConfig) -> tuple[tuple[float, ...], tuple[float, ...]]:
    described = getattr(config, "pretrained_cfg", None) or {}
    return tuple(described.get("mean", IMAGENET_MEAN)), tuple(described.get("std", IMAGENET_STD))


def described_images(place: str) -> tuple[tuple[float, ...], tuple[float, ...], int | None]:
    """Normalisation and size of a transformers checkpoint's images; ImageNet's and None without an image processor."""
    try:
        processor = AutoImageProcessor.from_pretrained(place, trust_remote_code=False)
    except (OSError, ValueError):
        return IMAGENET_MEAN, IMAGENET_STD, None
    sides = handed_size(processor)
    size = None if sides is None else sides[1]
    mean, std = getattr(processor, "image_mean", None), getattr(processor, "image_std", None)
    if not getattr(processor, "do_normalize", True) or mean is None or std is None:
        return (0.0, 0.0, 0.0), (1.0, 1.0, 1.0), size
    return tuple(mean), tuple(std), size


def _with_default_tag(architecture: str) -> str:
    """`resnet50` -> `resnet50.a1_in1k`: the pretrained tag that timm itself would take."""
    if "." in architecture:
        return architecture
    described = timm.models.get_pretrained_cfg(architecture)
    return f"{architecture}.{described.tag}" if described is not None and described.tag else architecture


def _with_options(config: PreTrainedConfig, options: dict[str, Any]) -> PreTrainedConfig:
    """A new configuration with some entries changed; only entries that the class has."""
    require_options(config, options, "backbone")
    try:
        # Entries that are derived from the depth must be derived again.
        derived = ("stage_names", "out_features", "out_indices")
        kept = {key: value for key, value in config.to_diff_dict().items() if key not in derived}
        return type(config).from_dict({**kept, **options})
    except Exception as error:
        raise UserError(f"backbone: {config.model_type} refuses the options: {one_line(error)}") from error


def _checked(config: PreTrainedConfig, name: str) -> PreTrainedConfig:
    if config.model_type in _UNSUITED:
        raise UserError(f"backbone: {name!r} cannot be adapted: {_UNSUITED[config.model_type]}")
    if isinstance(config, TimmWrapperConfig) or config.model_type in MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES:
        return config
    instead = f"; timm has it, as {_IN_TIMM[config.model_type]}" if config.model_type in _IN_TIMM else ""
    raise UserError(
        f"backbone: {name!r} is a {config.model_type} model, for which transformers has no image classifier{instead}"
    )


def _from_file(source: BackboneSource, path: Path) -> PreTrainedModel:
    if not path.is_file():
        raise UserError(f"backbone weights: the file {path} does not exist")
    try:
        state = load_file(path)
    except Exception as error:
        raise UserError(f"backbone weights: {path} is not a safetensors file: {one_line(error, first=True)}") from error
    model, _ = build_backbone(source.config)
    expected = model.state_dict()
    prefixes = ("", "timm_model.", f"{model.base_model_prefix}.")
    prefix = max(prefixes, key=lambda start: sum(start + key in expected for key in state))
    found = {prefix + key: value for key, value in state.items() if prefix + key in expected}
    lost = sorted(key for key in expected if key not in found or found[key].shape != expected[key].shape)
    if lost:
        raise UserError(f"backbone weights: {path} lacks {len(lost)} tensors of the backbone, e.g. {lost[0]}")
    model.load_state_dict(found, strict=True)
    return model


def _unknown(name: str) -> str:
    hint = did_you_mean(name.removeprefix("timm/"), [*timm.list_models(), *CONFIG_MAPPING_NAMES], n=3, cutoff=0.75)
    told = f"backbone: {name!r} is not a timm name, a local folder, or a model on the Hub that can be loaded"
    return f"{told}; {hint}" if hint else told
