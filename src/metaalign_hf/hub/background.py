"""Pushing a run while it goes on."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

from ..configuration import HubConfig
from ..errors import UserError
from ..progress import no_hub_progress_bars
from ..reports import model_card, read_record
from ..run_folder import CARD_FILE, FIGURES_FOLDER, PUSH_FOLDER, RECORD_FILES
from .errors import HubError, retry
from .public import curve_figures, public_files
from .pushing import push, push_command
from .repository import Repository

__all__ = ["BackgroundPusher"]


class BackgroundPusher:
    """Pushes a run to the Hub: regularly during training, and once at the end.

    At most one push is in flight; a push that is due meanwhile is skipped, because a later one has newer weights. A
    push that fails is tried again with growing waits and then reported; it never stops the run. The final push waits.

    Args:
        config: What to push to.
        folder: The run's folder.
        report: Called, from any thread, with a line about every failure.
        token: Access token; by default that of the environment or login.
    """

    def __init__(
        self, config: HubConfig, folder: Path, report: Callable[[str], None], token: str | None = None
    ) -> None:
        assert config.repo_id is not None
        if config.create_pr and config.revision is not None:
            raise UserError("hub.revision: a pull request (hub.create_pr) goes to main; leave out the revision")
        self.config, self.folder, self.report = config, folder, report
        self.target = Repository(
            config.repo_id, config.private, config.revision, config.create_pr, config.overwrite, token
        )
        self.thread: threading.Thread | None = None
        self.stopping = threading.Event()

    def prepare(self) -> None:
        """Before the run: check the token and make the repository.

        Raises:
            HubError: If the Hub refuses. A Hub that cannot be reached is reported only: it may be back by the end.
        """
        try:
            self.target.prepare()
        except HubError as error:
            if not error.temporary:
                raise
            self.report(f"{error}; the run goes on, and pushes are tried again")

    def push_state(self, step: int, save: Callable[[Path], None]) -> None:
        """Push in the background, if no push is in flight.

        Args:
            step: Steps taken so far.
            save: Writes model and image processor into a folder; it is called before this returns, so that training
                may go on changing the weights.
        """
        if self.config.create_pr or self.config.adapter:
            return  # one push, at the end
        if self.thread is not None and self.thread.is_alive():
            self.report(f"step {step} is not pushed: the push before it is still under way")
            return
        staged = self._staged()
        try:
            shutil.rmtree(staged, ignore_errors=True)
            staged.mkdir(parents=True)
            save(staged)
            for name in RECORD_FILES[1:]:
                if (self.folder / name).is_file():
                    shutil.copyfile(self.folder / name, staged / name)
        except OSError as error:  # a full disk, for example
            self.report(f"step {step} is not pushed: {error}")
            return
        self.thread = threading.Thread(target=self._push_staged, args=(staged, step), daemon=True)
        self.thread.start()

    def finish(self) -> str:
        """Push the finished folder, and wait for it.

        Returns:
            The address of the commit or pull request.

        Raises:
            HubError: If the push fails for good. The folder is complete, and the error names the command that pushes
                it.
        """
        self.stopping.set()  # a background push that waits for its next try is overtaken by this one
        if self.thread is not None:
            self.thread.join()
        shutil.rmtree(self._staged(), ignore_errors=True)
        settings = asdict(self.config)
        del settings["repo_id"], settings["push_every"]
        try:
            return push(self.folder, self.target.repo_id, token=self.target.token, report=self.report, **settings)
        except Exception as error:  # the run is complete; the user must learn how to push it
            command = push_command(self.folder, self.config)
            raise HubError(f"{error}. The run is finished and its folder complete; push it with: {command}") from error

    def _staged(self) -> Path:
        return self.folder / PUSH_FOLDER

    def _push_staged(self, staged: Path, step: int) -> None:
        config = self.config

        def once() -> None:
            self.target.prepare()
            record = read_record(staged)
            figures = curve_figures(record, staged, staged / FIGURES_FOLDER)
            names = [f"{FIGURES_FOLDER}/{path.name}" for path in figures]
            card = model_card(record, repo_id=self.target.repo_id, figures=names, license=config.license)
            files = public_files(staged, staged) | dict(zip(names, figures, strict=True)) | {CARD_FILE: card.encode()}
            self.target.commit(files, f"Push the state after step {step}")

        try:
            with no_hub_progress_bars():
                retry(once, config.attempts, config.retry_seconds, self.report, self.stopping)
        except Exception as error:  # an exception in a thread would be lost
            self.report(f"step {step} was not pushed: {error}")
