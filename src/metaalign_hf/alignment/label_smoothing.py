"""Smoothed domain labels: a discriminator that may not be quite sure is a steadier opponent."""

from __future__ import annotations

from torch import Tensor

from ..citations import cite
from ..errors import UserError

__all__ = ["check_smoothing", "smoothed_domains"]

CITATION = """\
@inproceedings{zhang2023free,
  title     = {Free Lunch for Domain Adversarial Training: Environment Label Smoothing},
  author    = {Zhang, YiFan and Wang, Xue and Liang, Jian and Zhang, Zhang and Wang, Liang and Jin, Rong and
               Tan, Tieniu},
  booktitle = {International Conference on Learning Representations},
  year      = {2023}
}"""
cite("alignment/label_smoothing", CITATION)


def smoothed_domains(is_source: Tensor, smoothing: float) -> Tensor:
    """Targets of a discriminator: `1 - smoothing` for the source and `smoothing` for the target.

    Source: Zhang et al., "Free Lunch for Domain Adversarial Training: Environment Label Smoothing" (ELS), ICLR 2023,
    section 2, where gamma is `1 - smoothing`.

    Args:
        is_source: `(B,)`, 1 for rows of the source and 0 for rows of the target.
        smoothing: Share of the other domain, 0..0.5; 0 keeps the labels.

    Returns:
        The targets `(B,)`.
    """
    return is_source * (1 - 2 * smoothing) + smoothing


def check_smoothing(smoothing: float, objective: str) -> float:
    """Refuse a smoothing that is out of range; returns it.

    Raises:
        UserError: If it is.
    """
    if isinstance(smoothing, bool) or not isinstance(smoothing, int | float) or not 0 <= smoothing < 0.5:
        raise UserError(
            f"alignment {objective}: label_smoothing is {smoothing!r}; it must be a number from 0 to 0.5, such as 0.1"
        )
    return float(smoothing)
