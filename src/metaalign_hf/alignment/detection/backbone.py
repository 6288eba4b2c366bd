"""Alignment of backbone maps, as SWDA and MetaAlign do it: strongly where local, weakly where global."""

from __future__ import annotations

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..base import AlignmentOutput
from ..reversal import reversal_strength, reverse_gradient
from .base import AlignmentLevel, DetectionAlignmentBatch, DetectorWidths, domain_mean, register_level

__all__ = ["BackboneGlobal", "BackbonePixel"]


CITATION = """\
@inproceedings{saito2019strong,
  title     = {Strong-Weak Distribution Alignment for Adaptive Object Detection},
  author    = {Saito, Kuniaki and Ushiku, Yoshitaka and Harada, Tatsuya and Saenko, Kate},
  booktitle = {Proceedings of the IEEE/CVF Conference on Computer Vision and Pattern Recognition},
  year      = {2019}
}"""


@register_level("backbone_pixel", citation=CITATION)
class BackbonePixel(AlignmentLevel):
    """Strong local alignment: a discriminator at every position of the finest backbone map, least squares.

    With d in 0..1 the output at a position, the mean over an image's positions and a domain's images::

        L = mean_s d^2 / 2 + mean_t (1 - d)^2 / 2

    1x1 convolutions C-256-128-1 without bias, ReLU between, a sigmoid at the end, weights from N(0, 0.01).

    Source: Saito et al., "Strong-Weak Distribution Alignment for Adaptive Object Detection", CVPR 2019, section 3.1,
    and the published code of MetaAlign.

    Args:
        widths: Channel counts of the detector's features.
        ceiling: Gradient reversal at the end of training.
    """

    maps_suffice = True

    def __init__(self, widths: DetectorWidths, *, ceiling: float = 1.0) -> None:
        super().__init__(widths)
        self.ceiling = ceiling
        channels = (widths.maps[0], 256, 128, 1)
        layers: list[nn.Module] = []
        for fan_in, fan_out in pairwise(channels):
            convolution = nn.Conv2d(fan_in, fan_out, 1, bias=False)
            nn.init.normal_(convolution.weight, std=0.01)
            layers += [convolution, nn.ReLU()]
        self.discriminator = nn.Sequential(*layers[:-1])

    def forward(self, batch: DetectionAlignmentBatch) -> AlignmentOutput:
        """The least-squares loss of the finest map."""
        level = batch.maps[0]
        strength = reversal_strength(batch.progress, self.ceiling)
        share = self.discriminator(reverse_gradient(level.values, strength)).sigmoid().squeeze(1)
        is_target = (batch.domain_labels != 0).to(share.dtype)[:, None, None]
        source, target = domain_mean((share - is_target).square(), level.mask, batch.domain_labels, "backbone_pixel")
        return AlignmentOutput((source + target) / 2, {"domain_loss": ((source + target) / 2).detach()})


class _ChannelNorm(nn.GroupNorm):
    """Group normalisation at each position by itself: it mixes neither images nor positions, so no padding enters."""

    def forward(self, x: Tensor) -> Tensor:
        """Normalise `(B, C, H, W)`."""
        batch, channels, height, width = x.shape
        positions = x.permute(0, 2, 3, 1).reshape(-1, channels)
        return super().forward(positions).view(batch, height, width, channels).permute(0, 3, 1, 2)


@register_level("backbone_global", citation=CITATION)
class BackboneGlobal(AlignmentLevel):
    """Weak global alignment: one answer for each image from the coarsest backbone map, focal loss.

    With p the probability of the right domain::

        L = mean_s -(1 - p)^gamma log(p) / 2 + mean_t -(1 - p)^gamma log(p) / 2

    so that images which are easy to tell apart, and hence too different to be aligned, count little. Three 3x3
    convolutions of stride 2, C-512-128-128, each with norm, ReLU and dropout, the mean over the image, and a linear
    layer to two classes. The published batch normalisation is replaced by group normalisation at each position: it
    neither mixes the two domains nor reads padding.

    Source: Saito et al., CVPR 2019, section 3.2, and the published code of MetaAlign.

    Args:
        widths: Channel counts of the detector's features.
        gamma: Focus of the loss; 0 is the plain cross entropy.
        dropout: Dropout probability after each convolution.
        ceiling: Gradient reversal at the end of training.
    """

    maps_suffice = True

    def __init__(
        self, widths: DetectorWidths, *, gamma: float = 5.0, dropout: float = 0.5, ceiling: float = 1.0
    ) -> None:
        super().__init__(widths)
        if gamma < 0:
            raise ValueError(f"gamma is {gamma}; it must be 0 or more")
        self.gamma = gamma
        self.ceiling = ceiling
        channels = (widths.maps[-1], 512, 128, 128)
        self.convolutions = nn.ModuleList(
            nn.Conv2d(fan_in, fan_out, 3, stride=2, padding=1, bias=False) for fan_in, fan_out in pairwise(channels)
        )
        self.norms = nn.ModuleList(_ChannelNorm(1, width) for width in channels[1:])
        self.dropout = nn.Dropout(dropout)
        self.output = nn.Linear(channels[-1], 2)
        for convolution in self.convolutions:
            assert isinstance(convolution, nn.Conv2d)
            nn.init.kaiming_normal_(convolution.weight, nonlinearity="relu")
        nn.init.normal_(self.output.weight, std=0.01)
        nn.init.zeros_(self.output.bias)

    def forward(self, batch: DetectionAlignmentBatch) -> AlignmentOutput:
        """The focal loss of the coarsest map."""
        level = batch.maps[-1]
        strength = reversal_strength(batch.progress, self.ceiling)
        x, mask = reverse_gradient(level.values, strength), level.mask
        for convolution, norm in zip(self.convolutions, self.norms, strict=True):
            if mask is not None:
                # What lies in the padding must look as what lies beyond the canvas: zero.
                x = x.masked_fill(~mask[:, None], 0.0)
                mask = mask[:, ::2, ::2]
            x = self.dropout(F.relu(norm(convolution(x))))
        if mask is None:
            pooled = x.mean((2, 3))
        else:
            weight = mask[:, None].to(x.dtype)
            pooled = (x * weight).sum((2, 3)) / weight.sum((2, 3)).clamp_min(1.0)
        log_probabilities = self.output(pooled).log_softmax(1)
        domains = (batch.domain_labels != 0).long()
        right = log_probabilities.gather(1, domains[:, None]).squeeze(1)
        errors = -((1 - right.exp()) ** self.gamma) * right
        source, target = domain_mean(errors, None, batch.domain_labels, "backbone_global")
        accuracy = (right > torch.log(torch.tensor(0.5, device=right.device))).float().mean()
        loss = (source + target) / 2
        return AlignmentOutput(loss, {"domain_loss": loss.detach(), "domain_accuracy": accuracy.detach()})
