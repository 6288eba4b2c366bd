"""Times as people write them."""

from __future__ import annotations

import math
import re

from ..errors import UserError

__all__ = ["seconds_of"]

_PARTS = re.compile(r"(?:(\d+)d)?(?:(\d+)h)?(?:(\d+)m)?(?:(\d+)s)?")
_SECONDS = (86_400, 3_600, 60, 1)


def seconds_of(value: float | str, key: str) -> float:
    """Seconds of a number, or of a text such as `1d`, `3h50m` or `45s`.

    Args:
        value: The number or text.
        key: What it is the value of, for the error.

    Raises:
        UserError: If it is neither, or not above 0.
    """
    if isinstance(value, str):
        found = _PARTS.fullmatch(value.strip().lower().replace(" ", ""))
        counts = [int(count or 0) for count in found.groups()] if found and len(value) < 30 else []
        seconds = float(sum(count * size for count, size in zip(counts, _SECONDS, strict=False)))
    else:
        seconds = float(value)
    if not math.isfinite(seconds) or seconds <= 0:
        raise UserError(f"{key} is {value}: it must be seconds above 0, or a text such as 3h50m, 90m or 45s, or null")
    return seconds
