"""What the sections of a configuration have in common."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from ..checks import Limits, check_entries
from .reading import refuse_unread

__all__ = ["Section"]


@dataclass
class Section:
    """A section of the configuration. It is checked when it is made, and again before a run, by `check`."""

    SECTION: ClassVar[str]
    LIMITS: ClassVar[Mapping[str, Limits]]

    def __post_init__(self) -> None:
        self.check()

    def check(self) -> None:
        """Refuse values that no run can use.

        Raises:
            UserError: For the first one.
        """
        check_entries(self, f"{self.SECTION}.", self.LIMITS)
        self.check_values()
        refuse_unread(self.SECTION, self)

    def check_values(self) -> None:
        """Refuse values by rules that `LIMITS` cannot state, before keys that nothing would read; most have none."""
