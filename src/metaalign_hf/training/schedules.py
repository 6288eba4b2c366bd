"""Learning rate and training progress as pure functions of the step, so that resuming has nothing to restore."""

from __future__ import annotations

import math

__all__ = ["SCHEDULES", "evaluation_interval", "learning_rate_factor", "progress"]

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


def evaluation_interval(source_steps: int, max_steps: int, batch_images: int, evaluated_images: int) -> int:
    """Steps of the adaptation phase between evaluations that nobody asked for: a tenth of the phase, 100 or more.

    More, where evaluations would take a tenth of the run. Costs are counted in forward passes, so that no clock
    decides: a training image costs three (one forward, one backward), and an adaptation step sees both domains.

    Args:
        source_steps: Steps of the source phase.
        max_steps: Steps of the adaptation phase.
        batch_images: Images of one domain in a step, on all processes together.
        evaluated_images: Images that one evaluation sends through the model.

    Returns:
        The interval; the two evaluations at the ends of the phases are always made.
    """
    trained = 3 * batch_images * (source_steps + 2 * max_steps)
    between = max(0, trained // (10 * max(evaluated_images, 1)) - 2)
    return max(max_steps // 10, 100, -(-max_steps // (between + 1)))
