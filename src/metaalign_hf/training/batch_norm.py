"""What batch normalisation of the backbone does while adapting."""

from __future__ import annotations

from torch import nn

__all__ = ["freeze_batch_norm", "resolve_batch_norm"]


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
