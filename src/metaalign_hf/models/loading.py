"""What every loaded checkpoint must be: complete, and in aligned memory."""

from __future__ import annotations

from typing import Any

from torch import nn

from ..errors import UserError

__all__ = ["align_memory", "refuse_lost_tensors"]


def refuse_lost_tensors(info: dict[str, Any], place: Any) -> None:
    """Refuse a checkpoint that lacks a tensor of its model.

    Args:
        info: The loading info of `from_pretrained`.
        place: Where the checkpoint is, for the error.

    Raises:
        UserError: If tensors are missing or have another shape than the configuration says.
    """
    lost = sorted({*info["missing_keys"], *(str(key) for key in info["mismatched_keys"])})
    if lost:
        raise UserError(f"checkpoint {place}: {len(lost)} tensors are missing or misshapen, e.g. {lost[0]}")


def align_memory(model: nn.Module) -> None:
    """Move tensors that lie anywhere in the mapped file to aligned memory.

    Matrix products of unaligned and aligned memory may differ in the last bit, and a loaded model must give the very
    logits that the saved one gave.
    """
    for tensor in [*model.parameters(), *model.buffers()]:
        if tensor.device.type == "cpu" and tensor.data_ptr() % 64:
            tensor.data = tensor.data.clone()
