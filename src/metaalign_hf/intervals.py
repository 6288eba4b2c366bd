"""Means with their 95 % intervals, and differences that are paired by seed."""

from __future__ import annotations

import math
import statistics
from collections.abc import Hashable, Mapping, Sequence
from typing import TypeVar

__all__ = ["mean_and_interval", "paired_differences", "with_interval"]

K = TypeVar("K", bound=Hashable)


def mean_and_interval(values: Sequence[float]) -> tuple[float, float]:
    """Mean and half-width of its 95 % confidence interval (Student's t); NaN for a single value."""
    from scipy.stats import t

    if len(values) < 2:
        return statistics.fmean(values), math.nan
    half = t.ppf(0.975, len(values) - 1) * statistics.stdev(values) / math.sqrt(len(values))
    return statistics.fmean(values), float(half)


def with_interval(values: Sequence[float], sign: str = "") -> str:
    """A mean with its 95 % interval, for a table; `sign` is `+` for differences."""
    mean, half = mean_and_interval(values)
    return f"{mean:{sign}z.1f} ± {half:.1f}"


def paired_differences(own: Mapping[K, float], other: Mapping[K, float]) -> list[float]:
    """Differences of the figures that have the same key, such as a seed, in both; in the order of `own`."""
    return [value - other[key] for key, value in own.items() if key in other]
