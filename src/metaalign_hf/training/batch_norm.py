"""What batch normalisation of the backbone does while adapting."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from ..citations import cite
from ..errors import UserError

__all__ = [
    "freeze_batch_norm",
    "recalibrate_batch_norm",
    "require_batch_norm",
    "resolve_batch_norm",
    "running_statistics",
]

CITATION = """\
@inproceedings{li2017revisiting,
  title     = {Revisiting Batch Normalization for Practical Domain Adaptation},
  author    = {Li, Yanghao and Wang, Naiyan and Shi, Jianping and Liu, Jiaying and Hou, Xiaodi},
  booktitle = {International Conference on Learning Representations, Workshop Track},
  year      = {2017}
}"""
cite("batch_norm/recalibrate_bn", CITATION)


def resolve_batch_norm(setting: str, pretrained: bool) -> str:
    """`auto` -> `frozen` for pretrained backbones, `mixed` for those from scratch; the rest as it is.

    A network that trains from scratch needs live statistics; fine-tuning with small batches of two domains destroys
    pretrained ones.
    """
    if setting != "auto":
        return setting
    return "frozen" if pretrained else "mixed"


def freeze_batch_norm(module: nn.Module) -> None:
    """Put every batch normalisation of the module in eval mode: it uses its running statistics and leaves them."""
    for layer in module.modules():
        if isinstance(layer, nn.modules.batchnorm._BatchNorm):
            layer.eval()


def running_statistics(module: nn.Module) -> dict[str, Tensor]:
    """Copies of the running statistics of every batch normalisation, by name; for `load_state_dict(strict=False)`."""
    return {
        f"{name}.{key}": value.clone()
        for name, layer in module.named_modules()
        if isinstance(layer, nn.modules.batchnorm._BatchNorm)
        for key, value in layer.named_buffers(recurse=False)
    }


def require_batch_norm(
    module: nn.Module, setting: str = "training.recalibrate_bn", instead: str = "none"
) -> list[nn.modules.batchnorm._BatchNorm]:
    """Every batch normalisation of the module that has running statistics.

    Args:
        module: Any module.
        setting: What needs them, for the error.
        instead: Its value that needs none.

    Raises:
        UserError: If there is none.
    """
    layers = [
        layer
        for layer in module.modules()
        if isinstance(layer, nn.modules.batchnorm._BatchNorm) and layer.running_mean is not None
    ]
    if not layers:
        raise UserError(f"{setting}: the model has no batch normalisation; leave it at {instead}")
    return layers


@torch.no_grad()
def recalibrate_batch_norm(module: nn.Module, batches: Iterable[Tensor]) -> None:
    """Replace the running statistics of every batch normalisation by their mean over the batches.

    Only these layers are in training mode meanwhile: no dropout. Every process must be given the same batches.

    Source: Li et al., "Revisiting Batch Normalization For Practical Domain Adaptation" (AdaBN), ICLR Workshops 2017.

    Args:
        module: Called with `pixel_values`; it is left in the mode it was in.
        batches: Pixel values `(B, 3, H, W)` of the target domain, on any device, of equal sizes.

    Raises:
        UserError: If the module has no batch normalisation, or there is no batch of at least two images.
    """
    layers = require_batch_norm(module)
    device = next(module.parameters()).device
    modes = {part: part.training for part in module.modules()}
    momenta = [layer.momentum for layer in layers]
    count = 0
    try:
        module.eval()
        for layer in layers:
            layer.reset_running_stats()
            layer.momentum = None  # the plain mean over the batches
            layer.train()
        for pixel_values in batches:
            if len(pixel_values) > 1:
                module(pixel_values=pixel_values.to(device))
                count += 1
    finally:
        for layer, momentum in zip(layers, momenta, strict=True):
            layer.momentum = momentum
        for part, training in modes.items():
            part.training = training
    if count == 0:
        raise UserError("training.recalibrate_bn: it needs a batch of two target images; raise evaluation_batch_size")
