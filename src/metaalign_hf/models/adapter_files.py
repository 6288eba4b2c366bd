"""Adapters without their base model: a folder of some megabytes, written for peft and read back whole.

`adapter_config.json` and `adapter_model.safetensors` are for peft, which puts adapters and the folded classifier on the
plain base model. `metaalign_config.json` and `metaalign_heads.safetensors` hold what the model has besides: its
configuration, and bottleneck, classifier and alignment heads as they trained.
"""

from __future__ import annotations

import copy
import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import PreTrainedModel, TimmWrapperConfig

from ..errors import UserError
from ..run_folder import (
    ADAPTER_CONFIG_FILE,
    ADAPTER_HEADS_FILE,
    ADAPTER_MODEL_FILE,
    ADAPTER_WEIGHTS_FILE,
)
from .backbone import classifier_name
from .lora import ADAPTER

if TYPE_CHECKING:
    from .image_classification import MetaAlignForImageClassification

__all__ = ["CHECKSUM", "PREFIX", "adapter_base", "base_checksum", "export_adapter", "own_tensors", "without_name"]

PREFIX = "base_model.model."
"""How the names of peft's tensors begin."""

CHECKSUM = "base_checksum"
"""Where the metadata of the heads hold that of the base model's tensors."""


def adapter_base(config: Any, key: str) -> dict[str, Any]:
    """The base model on the Hub that a model's adapters belong to.

    Args:
        config: The model's configuration.
        key: What asks for the adapters, for the error.

    Returns:
        `weights`, its id, and `revision`, its commit where that is known.

    Raises:
        UserError: If the model has no adapters, or was not built on a plain model of the Hub.
    """
    if getattr(config, "lora", None) is None:
        raise UserError(f"{key}: the model has no low-rank adapters (model.lora)")
    origin = config.origin or {}
    # Older releases did not record it with the adapters.
    base = config.lora.get("base", origin) or {}
    weights, timm_backbone = base.get("weights"), isinstance(config.backbone_config, TimmWrapperConfig)
    if weights is None or (timm_backbone and not str(weights).startswith("timm/")):
        raise UserError(
            f"{key}: adapters need a base model of the Hub of the same class, and this one was built on "
            f"{origin.get('name') or 'another'}; take the whole model, without {key.rpartition(' ')[2]}"
        )
    return {"weights": str(weights), "revision": base.get("revision")}


def export_adapter(model: MetaAlignForImageClassification, folder: Path, key: str) -> str:
    """Write what an adapted model has on top of its base model.

    `PeftModel.from_pretrained(AutoModelForImageClassification.from_pretrained(base, num_labels=K), folder)` is then the
    adapted classifier, without metaalign-hf, and `from_adapters` the very model. Batch normalisations are written as
    well, since their statistics move.

    Args:
        model: The model.
        folder: Where to.
        key: What asks for it, for the error.

    Returns:
        Name of the base model.

    Raises:
        UserError: As `adapter_base` raises it.
    """
    base = adapter_base(model.config, key)
    lora = model.config.lora
    native = model.export_native()
    timm_model = getattr(native, "timm_model", None)
    name = classifier_name(native if timm_model is None else timm_model)
    classifier = name if timm_model is None else f"timm_model.{name}"
    norms = _norms(native)
    tensors = {f"{classifier}.{name}": value for name, value in native.get_submodule(classifier).state_dict().items()}
    tensors |= {without_name(key): value for key, value in own_tensors(model.backbone).items()}
    heads = {key: value for key, value in model.state_dict().items() if not key.startswith("backbone.")}
    described = {
        "peft_type": "LORA",
        "base_model_name_or_path": base["weights"],
        "revision": base["revision"],
        "r": lora["r"],
        "lora_alpha": lora["alpha"],
        "target_modules": list(lora["target_modules"]),
        "modules_to_save": [classifier, *norms],
        "bias": "none",
        "inference_mode": True,
    }
    config = copy.deepcopy(model.config)
    config.architectures, config.dtype = [type(model).__name__], model.dtype
    save_file(_savable(tensors, PREFIX), folder / ADAPTER_WEIGHTS_FILE, {"format": "pt"})
    (folder / ADAPTER_CONFIG_FILE).write_text(json.dumps(described, indent=2) + "\n", encoding="utf-8")
    checksum = base_checksum(model.backbone)
    # One entry of metadata: several would be written in an order that changes, and the same heads be another file.
    save_file(_savable(heads), folder / ADAPTER_HEADS_FILE, {CHECKSUM: checksum})
    (folder / ADAPTER_MODEL_FILE).write_text(config.to_json_string(), encoding="utf-8")
    return base["weights"]


def _norms(network: nn.Module) -> list[str]:
    """Names of the layers with running statistics."""
    return [name for name, module in network.named_modules() if getattr(module, "running_mean", None) is not None]


def own_tensors(backbone: nn.Module) -> dict[str, Tensor]:
    """The tensors of a backbone with adapters that are not those of its base model."""
    norms = tuple(f"{name}." for name in _norms(backbone))
    return {
        key: value
        for key, value in backbone.state_dict().items()
        if ".lora_" in key or (norms and key.startswith(norms))
    }


def without_name(key: str) -> str:
    """The name of an adapter's tensor in a file of peft."""
    return key.replace(f".{ADAPTER}.", ".")


def _savable(tensors: dict[str, Tensor], prefix: str = "") -> dict[str, Tensor]:
    """Tensors as safetensors takes them: none shares its memory."""
    return {prefix + key: value.detach().cpu().contiguous().clone() for key, value in tensors.items()}


def base_checksum(backbone: PreTrainedModel) -> str:
    """Of the tensors that a backbone with adapters has from its base model."""
    own, found = own_tensors(backbone), hashlib.sha256()
    for name, value in sorted(backbone.state_dict().items()):
        if name not in own:
            found.update(name.encode())
            found.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return found.hexdigest()
