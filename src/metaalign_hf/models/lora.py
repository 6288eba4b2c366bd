"""Low-rank adapters in a backbone, through peft.

A linear layer y = W x + b becomes y = (W + (alpha / r) B A) x + b, of which A `(r, in)` and B `(out, r)` train. B
begins at zero, so that the model begins as it was.

Source: Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models", ICLR 2022.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from ..checks import check_lora
from ..citations import cite
from ..errors import UserError
from .backbone import pooled_features

__all__ = [
    "ADAPTER",
    "add_adapters",
    "called_linears",
    "choose_layers",
    "merged_state",
    "new_adapters",
    "only_adapters_train",
]

ADAPTER = "default"
"""What peft calls the one adapter of a layer."""

CITATION = """\
@inproceedings{hu2022lora,
  title     = {{LoRA}: Low-Rank Adaptation of Large Language Models},
  author    = {Hu, Edward J. and Shen, Yelong and Wallis, Phillip and Allen-Zhu, Zeyuan and Li, Yuanzhi and
               Wang, Shean and Wang, Lu and Chen, Weizhu},
  booktitle = {International Conference on Learning Representations},
  year      = {2022}
}"""
cite("model/lora", CITATION)


def called_linears(backbone: PreTrainedModel, pixel_values: Tensor) -> list[str]:
    """Names of the linear layers in which an adapter would train.

    Some networks read the weight of a layer and never call it, and some call layers whose output they do not use.

    Args:
        backbone: The backbone.
        pixel_values: An image `(1, 3, H, W)` that it takes.
    """
    outputs: dict[nn.Module, Tensor] = {}

    def note(layer: nn.Module, _: Any, output: Tensor) -> None:
        outputs[layer] = output

    hooks = [layer.register_forward_hook(note) for layer in backbone.modules() if isinstance(layer, nn.Linear)]
    training = backbone.training
    try:
        with torch.enable_grad():
            total = pooled_features(backbone.eval(), pixel_values.requires_grad_()).sum()
            found = torch.autograd.grad(total, list(outputs.values()), allow_unused=True) if outputs else ()
    finally:
        backbone.train(training)
        for hook in hooks:
            hook.remove()
    used = {layer for layer, gradient in zip(outputs, found, strict=True) if gradient is not None}
    return [name for name, layer in backbone.named_modules() if layer in used]


def new_adapters(
    backbone: PreTrainedModel, options: Mapping[str, Any], pixel_values: Tensor, backbone_name: str
) -> dict[str, Any]:
    """Choose layers and put adapters into them, in place; see `add_adapters`.

    Args:
        backbone: The backbone.
        options: As `check_lora` takes them.
        pixel_values: An image `(1, 3, H, W)` that the backbone takes.
        backbone_name: Its name, for errors.

    Returns:
        What `add_adapters` was given.

    Raises:
        UserError: If an option is wrong, the backbone has no such layers, or peft is not installed.
    """
    asked = check_lora(options, "model.lora")
    chosen = choose_layers(asked["target_modules"], called_linears(backbone, pixel_values), backbone_name)
    lora = {**asked, "target_modules": chosen}
    add_adapters(backbone, lora)
    return lora


def add_adapters(backbone: nn.Module, lora: Mapping[str, Any]) -> None:
    """Put adapters into a backbone, in place; nothing else of it trains from now on.

    Args:
        backbone: The backbone.
        lora: `r`, `alpha`, and `target_modules`, the names of the linear layers.

    Raises:
        UserError: If peft is not installed.
    """
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError as error:
        raise UserError("model.lora: it needs peft; pip install 'metaalign-hf[peft]'") from error
    # Peft tells of models of transformers that it does not know, which does not matter here.
    logger = logging.getLogger("peft")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        inject_adapter_in_model(
            LoraConfig(r=lora["r"], lora_alpha=lora["alpha"], target_modules=list(lora["target_modules"])),
            backbone,
            adapter_name=ADAPTER,
        )
    finally:
        logger.setLevel(level)


def only_adapters_train(backbone: nn.Module) -> None:
    """Let nothing of a backbone train but its adapters."""
    for name, parameter in backbone.named_parameters():
        parameter.requires_grad = ".lora_" in name


def choose_layers(wanted: Any, linears: list[str], backbone_name: str) -> list[str]:
    """The linear layers that get adapters.

    Args:
        wanted: `auto`, all of them; or last parts of their names, such as `qkv`.
        linears: Names of the linear layers that a pass calls.
        backbone_name: Name of the backbone, for the error.

    Raises:
        UserError: If there are none, or a name fits none.
    """
    if not linears:
        raise UserError(
            f"model.lora: {backbone_name} has no linear layers, so no adapters; leave it out, or set model.freeze"
        )
    if wanted == "auto":
        return linears
    chosen: list[str] = []
    for part in wanted:
        found = [name for name in linears if name == part or name.endswith(f".{part}")]
        if not found:
            parts = sorted({name.rpartition(".")[2] for name in linears})
            raise UserError(
                f"model.lora.target_modules: no linear layer of {backbone_name} is called {part}; it has "
                f"{', '.join(parts)}"
            )
        chosen += [name for name in found if name not in chosen]
    return chosen


def merged_state(backbone: nn.Module) -> dict[str, Tensor]:
    """The tensors of a backbone by the names that they have without adapters, with the adapters added in."""
    state = {
        key.replace(".base_layer.", "."): value.detach()
        for key, value in backbone.state_dict().items()
        if ".lora_" not in key
    }
    for name, layer in backbone.named_modules():
        if hasattr(layer, "lora_A"):
            state[f"{name}.weight"] = state[f"{name}.weight"] + layer.get_delta_weight(ADAPTER).detach()
    return state
