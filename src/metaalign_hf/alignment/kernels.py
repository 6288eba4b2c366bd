"""Maximum mean discrepancy: Gaussian kernels on distances, and the two unbiased estimators."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, get_args

import torch
from torch import Tensor

from ..errors import UserError

__all__ = ["Estimator", "check_kernels", "discrepancy", "gaussian_kernel", "row_distances"]

Estimator = Literal["quadratic", "linear"]


def row_distances(source: Tensor, target: Tensor, estimator: Estimator) -> Tensor:
    """Squared Euclidean distances of the pairs of rows that an estimator compares, at least in single precision.

    Args:
        source: Rows `(n, C)`, n of 2 or more.
        target: Rows `(m, C)`, m of 2 or more.
        estimator: `quadratic` compares all n + m rows, `linear` each row with its neighbours only.

    Returns:
        `quadratic`: `(n + m, n + m)`, the diagonal 0 but for rounding. `linear`: `(4, h)`, the distances ss', tt', st'
        and s't of the h = min(n, m) // 2 quadruples (s, s', t, t') of consecutive rows; rows that do not fill a
        quadruple are left out.
    """
    # Distances are differences of large numbers: half precision, which autocast would choose, loses them.
    with torch.autocast(source.device.type, enabled=False):
        dtype = torch.promote_types(source.dtype, torch.float32)
        source, target = source.to(dtype), target.to(dtype)
        if estimator == "linear":
            rows = 2 * (min(len(source), len(target)) // 2)
            s, s2 = source[:rows:2], source[1:rows:2]
            t, t2 = target[:rows:2], target[1:rows:2]
            return torch.stack([(a - b).square().sum(1) for a, b in ((s, s2), (t, t2), (s, t2), (s2, t))])
        both = torch.cat([source, target])
        both = both - both.mean(0)  # distances do not change, their rounding errors shrink
        squares = both.square().sum(1)
        return squares.unsqueeze(1) + squares.unsqueeze(0) - 2 * both @ both.T


def gaussian_kernel(
    distances: Tensor, estimator: Estimator, multipliers: Sequence[float], bandwidth: float | None = None
) -> Tensor:
    """`k(d) = mean_m exp(-d / (m b))` of squared distances d.

    Args:
        distances: As `row_distances` returns them for the same estimator.
        estimator: The estimator.
        multipliers: The factors m, one for each Gaussian.
        bandwidth: b; None takes the mean distance between different rows, held constant.

    Returns:
        The kernel, of the shape of the distances.
    """
    scale: Tensor | float
    if bandwidth is None:
        pairs = distances.numel() - (len(distances) if estimator == "quadratic" else 0)
        scale = (distances.detach().sum() / pairs).clamp_min(torch.finfo(distances.dtype).tiny)
    else:
        scale = bandwidth
    return torch.stack([(-distances / (m * scale)).exp() for m in multipliers]).mean(0)


def discrepancy(kernel: Tensor, source_rows: int, estimator: Estimator) -> Tensor:
    """The unbiased estimate of the squared maximum mean discrepancy; it may fall below 0.

    `quadratic` (Gretton et al., JMLR 2012, equation 3)::

        sum_{i != j} k(s_i, s_j) / (n (n - 1)) + sum_{i != j} k(t_i, t_j) / (m (m - 1)) - 2 mean_ij k(s_i, t_j)

    `linear` (the same, section 6; DAN, equation 5)::

        mean over quadruples of k(s, s') + k(t, t') - k(s, t') - k(s', t)

    Args:
        kernel: As `gaussian_kernel` returns it, or a product of such kernels.
        source_rows: Number n of source rows.
        estimator: The estimator.

    Returns:
        A scalar.
    """
    if estimator == "linear":
        return (kernel[0] + kernel[1] - kernel[2] - kernel[3]).mean()
    within = []
    for block in (kernel[:source_rows, :source_rows], kernel[source_rows:, source_rows:]):
        within.append((block.sum() - block.diagonal().sum()) / (len(block) * (len(block) - 1)))
    return within[0] + within[1] - 2 * kernel[:source_rows, source_rows:].mean()


def check_kernels(objective: str, estimator: str, multipliers: Sequence[float], **bandwidths: float | None) -> None:
    """Refuse options that name no kernel.

    Raises:
        UserError: If the estimator is unknown, or a multiplier or bandwidth is not a positive finite number.
    """
    if estimator not in get_args(Estimator):
        raise UserError(f"alignment {objective}: estimator is {estimator!r}; it must be quadratic or linear")

    def positive(value: object) -> bool:
        return isinstance(value, int | float) and math.isfinite(value) and value > 0

    if not isinstance(multipliers, list | tuple) or not multipliers or not all(map(positive, multipliers)):
        raise UserError(f"alignment {objective}: multipliers is {multipliers!r}; it must list numbers above 0")
    for name, value in bandwidths.items():
        if value is not None and not positive(value):
            raise UserError(f"alignment {objective}: {name} is {value!r}; it must be a number above 0")
