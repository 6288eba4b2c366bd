"""The mean cosine of task and alignment gradients over a run."""

from __future__ import annotations

from typing import Any

import torch

from ..coordination import StepReport

__all__ = ["MeanCosines"]


class MeanCosines:
    """Sums the cosines that steps report, on the device, so that no step waits for a number.

    Args:
        device: The device.
    """

    def __init__(self, device: torch.device) -> None:
        self.total, self.penalty_total = torch.zeros((), device=device), torch.zeros((), device=device)
        self.count = 0

    def add(self, report: StepReport) -> None:
        """Count a step, if it reports a cosine."""
        if report.cosine is None or report.skipped:
            return
        self.total += report.cosine
        self.count += 1
        if report.penalty_cosine is not None:
            self.penalty_total += report.penalty_cosine

    @property
    def mean(self) -> float | None:
        """The mean cosine; None where no step reported one."""
        return float(self.total) / self.count if self.count else None

    @property
    def penalty_mean(self) -> float | None:
        """The mean cosine of the task gradient and that of a penalty of both losses."""
        return float(self.penalty_total) / self.count if self.count else None

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps, as JSON values."""
        totals = {"cosine_sum": float(self.total), "penalty_cosine_sum": float(self.penalty_total)}
        return {**totals, "cosine_count": self.count}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what `state_dict` gave."""
        self.total += state["cosine_sum"]
        self.penalty_total += state["penalty_cosine_sum"]
        self.count = state["cosine_count"]
