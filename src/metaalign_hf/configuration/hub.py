"""The typed configuration of pushing to the Hub."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from ..checks import Limits, check_entries

__all__ = ["HubConfig"]


@dataclass
class HubConfig:
    """Pushing to the Hub during and after a run. The token comes from HF_TOKEN or hf auth login, never from a file.

    Args:
        repo_id: Repository to push to, `organisation/name` or `name`; null pushes nothing.
        private: Whether a new repository is private; null takes the Hub's default.
        revision: Branch to push to, made when missing; null is main.
        create_pr: Open a pull request instead of committing; the repository must exist. Then nothing is pushed before
            the end.
        commit_message: Message of the final commit.
        license: Licence for the model card, such as apache-2.0; null states none.
        push_every: Push in the background at every so many evaluations; 0 pushes only at the end.
        attempts: How often a push is tried when the Hub does not answer or fails.
        retry_seconds: Wait before the second try; it doubles from try to try.
        overwrite: Replace what another kind of model has in the repository.
    """

    repo_id: str | None = None
    private: bool | None = None
    revision: str | None = None
    create_pr: bool = False
    commit_message: str | None = None
    license: str | None = None
    push_every: int = 0
    attempts: int = 5
    retry_seconds: float = 2.0
    overwrite: bool = False

    LIMITS: ClassVar[Mapping[str, Limits]] = {
        "push_every": Limits(0),
        "attempts": Limits(1),
        "retry_seconds": Limits(0),
    }

    def __post_init__(self) -> None:
        self.check()

    def check(self) -> None:
        """Refuse values that no run can use.

        Raises:
            UserError: For the first one.
        """
        check_entries(self, "hub.", self.LIMITS)
