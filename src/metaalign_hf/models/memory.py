"""Where loaded tensors lie."""

from __future__ import annotations

from torch import nn

__all__ = ["align_memory"]


def align_memory(model: nn.Module) -> None:
    """Move tensors that lie anywhere in the mapped file to aligned memory.

    Matrix products of unaligned and aligned memory may differ in the last bit, and a loaded model must give the very
    logits that the saved one gave.
    """
    for tensor in [*model.parameters(), *model.buffers()]:
        if tensor.device.type == "cpu" and tensor.data_ptr() % 64:
            tensor.data = tensor.data.clone()
