"""Running statistics that are estimated anew on the target (AdaBN)."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

from ..citations import cite
from ..errors import UserError
from .layers import require_batch_norm, running_statistics

__all__ = ["RECALIBRATION_IMAGES", "recalibrate_batch_norm"]

RECALIBRATION_IMAGES = 2048
"""Target images that re-estimate running statistics: enough for every channel, few enough to do often."""

CITATION = """\
@inproceedings{li2017revisiting,
  title     = {Revisiting Batch Normalization for Practical Domain Adaptation},
  author    = {Li, Yanghao and Wang, Naiyan and Shi, Jianping and Liu, Jiaying and Hou, Xiaodi},
  booktitle = {International Conference on Learning Representations, Workshop Track},
  year      = {2017}
}"""
cite("batch_norm/recalibrate_bn", CITATION)


@torch.no_grad()
def recalibrate_batch_norm(module: nn.Module, batches: Iterable[Tensor]) -> Callable[[], None]:
    """Replace the running statistics of every batch normalisation by their mean over the batches.

    Only these layers are in training mode meanwhile: no dropout. Every process must be given the same batches.

    Source: Li et al., "Revisiting Batch Normalization For Practical Domain Adaptation" (AdaBN), ICLR Workshops 2017.

    Args:
        module: Called with `pixel_values`; it is left in the mode it was in.
        batches: Pixel values `(B, 3, H, W)` of the target domain, on any device, of equal sizes.

    Returns:
        Puts the former statistics back when it is called.

    Raises:
        UserError: If the module has no batch normalisation, or there is no batch of at least two images.
    """
    layers = require_batch_norm(module)
    former = running_statistics(module)
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

    def put_back() -> None:
        module.load_state_dict(former, strict=False)

    return put_back
