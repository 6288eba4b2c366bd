"""Learning rate and training progress as pure functions of the step, so that resuming has nothing to restore."""

from __future__ import annotations

import math

__all__ = ["SCHEDULES", "learning_rate_factor", "progress"]

SCHEDULES = ("inverse", "cosine", "constant")


def learning_rate_factor(schedule: str, step: int, total: int, warmup: int = 0) -> float:
    """Factor on the learning rate in a step.

    `inverse` is `(1 + 0.001 i)^-0.75` (GVB, MetaAlign), `cosine` is `(1 + cos(pi i / total)) / 2`; both times
    `min(1, (i + 1) / warmup)`.

    Args:
        schedule: One of `SCHEDULES`.
        step: Step i of the phase, from 0.
        total: Number of steps of the phase.
        warmup: Steps of linear warm-up.

    Returns:
        The factor.
    """
    factor = {
        "inverse": (1 + 0.001 * step) ** -0.75,
        "cosine": 0.5 * (1 + math.cos(math.pi * step / max(total, 1))),
        "constant": 1.0,
    }[schedule]
    return factor * min(1.0, (step + 1) / warmup) if warmup else factor


def progress(step: int, total: int) -> float:
    """Share of the adaptation phase that is done at the start of a step, in 0..1."""
    return min(1.0, step / max(total, 1))
