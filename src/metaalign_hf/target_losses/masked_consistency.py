"""Masked image consistency: what the student says of an image with patches left out is what the teacher says of all."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from ..errors import UserError
from .base import OfLogits, TargetContext
from .logits import LogitsLoss, PseudoLabels
from .registry import register_target_loss
from .views import masked_view

__all__ = ["MaskedConsistency"]

CITATION = """\
@inproceedings{hoyer2023mic,
  title     = {MIC: Masked Image Consistency for Context-Enhanced Domain Adaptation},
  author    = {Hoyer, Lukas and Dai, Dengxin and Wang, Haoran and Van Gool, Luc},
  booktitle = {Proceedings of the IEEE/CVF Conference on Computer Vision and Pattern Recognition},
  year      = {2023}
}"""


@register_target_loss("masked_consistency", citation=CITATION)
class MaskedConsistency(LogitsLoss):
    """Cross entropy of the student on masked target images, with labels of the average of the weights.

    With p_i = softmax(teacher(x_i)) `(K,)` on the whole image, y_i = argmax p_i and M a mask of random patches::

        q_i = max p_i
        L   = mean_i q_i CE(student(M x_i), y_i)

    The student must tell a class from the context that is left.

    Source: Hoyer et al., "MIC: Masked Image Consistency for Context-Enhanced Domain Adaptation", CVPR 2023, section 3;
    for classification patches of 64 pixels on images of 224, of which 70 % are masked.

    Args:
        context: The classes, and the image processor.
        mask_size: Side of a patch in pixels; null takes 2/7 of the image's side, as published.
        mask_ratio: Share of the patches that is masked, 0..1.
        quality: How much a label counts: `confidence`, or `none`, all alike.

    Raises:
        UserError: If a value is out of range, or a patch is larger than the image.
    """

    needs_teacher = True

    def __init__(
        self,
        context: TargetContext,
        *,
        mask_size: int | None = None,
        mask_ratio: float = 0.7,
        quality: Literal["confidence", "none"] = "confidence",
    ) -> None:
        super().__init__()
        key = "training.target_losses masked_consistency:"
        side = None if context.processor is None else int(context.processor.crop_size["height"])
        if mask_size is not None and (isinstance(mask_size, bool) or not isinstance(mask_size, int) or mask_size < 1):
            raise UserError(f"{key} mask_size is {mask_size!r}: it must be a whole number of pixels, 1 or more")
        if mask_size is not None and side is not None and mask_size > side:
            raise UserError(
                f"{key} mask_size is {mask_size}: a patch must fit into the image of {side} x {side} pixels"
            )
        if isinstance(mask_ratio, bool) or not isinstance(mask_ratio, int | float) or not 0 <= mask_ratio <= 1:
            raise UserError(f"{key} mask_ratio is {mask_ratio!r}: it must lie in 0..1")
        if quality not in ("confidence", "none"):
            raise UserError(f"{key} quality is {quality!r}: it must be confidence or none")
        self.mask_size = mask_size or max(1, round((side or 224) * 2 / 7))
        self.mask_ratio, self.quality = float(mask_ratio), quality

    def view(self, pixel_values: Tensor) -> Tensor:
        """The masked image."""
        return masked_view(pixel_values, self.mask_size, self.mask_ratio)

    def losses(self, taught: Sequence[Tensor]) -> tuple[list[OfLogits], dict[str, float]]:
        """The weighted cross entropy; and the teacher's mean confidence."""
        found = self.label(taught)
        confidence = torch.cat([logits.softmax(1).max(1).values for logits in taught]).mean()
        return [labels.loss for labels in found], {"masked_consistency_confidence": float(confidence)}

    @torch.no_grad()
    def label(self, taught: Sequence[Tensor]) -> list[PseudoLabels]:
        """The teacher's labels and their weights, from its logits `(B, K)`."""
        found = [logits.float().softmax(1).max(1) for logits in taught]
        alike = self.quality == "none"
        return [PseudoLabels(best.indices, torch.ones_like(best.values) if alike else best.values) for best in found]
