"""Which objective is meta-train in which step."""

from __future__ import annotations

from dataclasses import dataclass

from .inner_step import require_name
from .report import ROLES

__all__ = ["SCHEDULES", "Roles"]

SCHEDULES = ("alternate", "task", "alignment")


@dataclass(frozen=True)
class Roles:
    """The schedule of the roles, a pure function of the step number.

    Args:
        schedule: `alternate`: the roles swap every `swap_every` steps. `task` or `alignment`: that objective is always
            meta-train.
        first: The objective that is meta-train in step 0 of the schedule `alternate`.
        swap_every: Steps between swaps.

    Raises:
        ValueError: If a name is unknown, or `swap_every` is below 1.
    """

    schedule: str = "alternate"
    first: str = "task"
    swap_every: int = 1

    def __post_init__(self) -> None:
        require_name("first", self.first, ROLES)
        require_name("roles", self.schedule, SCHEDULES)
        if self.swap_every < 1:
            raise ValueError(f"swap_every is {self.swap_every}: it must be 1 or more")

    def meta_train(self, step: int) -> str:
        """The objective that is meta-train in the given step."""
        if self.schedule != "alternate":
            return self.schedule
        swapped = (step // self.swap_every) % 2 == 1
        return ROLES[1 - ROLES.index(self.first)] if swapped else self.first
