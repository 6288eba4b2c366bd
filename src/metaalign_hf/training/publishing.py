"""Pushing a run to the Hub, now and then while it goes on and once at its end."""

from __future__ import annotations

from pathlib import Path

from accelerate.utils import broadcast_object_list

from ..configuration.hub import HubConfig
from ..hub import BackgroundPusher, HubError
from .journal import Journal
from .weights import Weights

__all__ = ["Publisher"]


class Publisher:
    """Pushes from the main process; every process calls it.

    Args:
        config: What to push to; without a repository nothing happens.
        folder: The run's folder.
        journal: Where failures are told.
        writes: Whether this process is the main one.
    """

    def __init__(self, config: HubConfig, folder: Path, journal: Journal, writes: bool) -> None:
        self.config, self.journal = config, journal
        self.evaluations = 0
        pusher = None if config.repo_id is None else BackgroundPusher(config, folder, journal.say)
        self.pusher = pusher if writes else None

    def prepare(self) -> None:
        """The main process asks the Hub; all stop where it refuses.

        Raises:
            HubError: If it does.
        """
        refusal: list[str | None] = [None]
        if self.pusher is not None:
            try:
                self.pusher.prepare()
            except HubError as error:
                refusal = [str(error)]
        if self.config.repo_id is not None:
            broadcast_object_list(refusal)
        if refusal[0] is not None:
            raise HubError(refusal[0])

    def evaluated(self, step: int, weights: Weights) -> None:
        """Push the model as it was just evaluated, at every `push_every`-th evaluation before the last one."""
        self.evaluations += 1
        if self.config.repo_id is None or not self.config.push_every or self.evaluations % self.config.push_every:
            return
        state = weights.gathered()
        if self.pusher is not None:
            self.pusher.push_state(step, lambda folder: weights.write(folder, state))

    def finish(self) -> None:
        """Push the finished folder, and wait for it.

        Raises:
            HubError: If the push fails for good.
        """
        if self.pusher is not None:
            self.journal.say(f"Pushed: {self.pusher.finish()}")
