"""The Hub: pulling checkpoints, and pushing them without anything that does not belong there.

Pushed are weights (safetensors), configuration, image processor, model card, figures and the record of the run; nothing
else in the folder is looked at, and paths of the machine are shortened to their last part. One push is one commit, so
that a reader never sees half of it. A token comes from an argument, the environment (`HF_TOKEN`) or `hf auth login`,
and is never written.
"""

from __future__ import annotations

import json
import logging
import re
import shlex
import shutil
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar

import yaml
from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, snapshot_download
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalTokenNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from .configuration import HubConfig
from .configuration.hub import license_notes
from .errors import UserError
from .progress import no_hub_progress_bars, no_model_progress_bars, quiet_loading
from .reports import (
    FIGURE_FILES,
    RunRecord,
    card_is_generated,
    model_card,
    read_record,
    record_folder,
    without_local_paths,
    write_figures,
)
from .tasks import task_of_architecture

__all__ = ["BackgroundPusher", "HubConfig", "HubError", "fetch", "load_checkpoint", "push"]

logger = logging.getLogger(__name__)

CARD = "README.md"
RECORDS = ("config.json", "training_config.yaml", "summary.json", "metrics.jsonl")
_WEIGHTS = re.compile(r"model(-\d+-of-\d+)?\.safetensors|model\.safetensors\.index\.json")
_PROCESSORS = ("preprocessor_config.json", "processor_config.json")
_TOKEN = re.compile(r"hf_[A-Za-z0-9]{20,}")
_TAG = "metaalign"
T = TypeVar("T")


class HubError(UserError):
    """What the Hub refused or failed to do, in one line.

    Attributes:
        temporary: Whether trying again may help.
    """

    def __init__(self, message: str, temporary: bool = False) -> None:
        super().__init__(message)
        self.temporary = temporary


def fetch(checkpoint: str, token: str | None = None, what: str = "checkpoint") -> Path:
    """The folder of a checkpoint: as it is, or downloaded into the Hub's cache.

    Args:
        checkpoint: A folder, `org/name` or `org/name@revision` (branch, tag or commit).
        token: Access token; by default that of the environment or login.
        what: What errors call it.

    Returns:
        The folder; it holds a configuration and safetensors weights.

    Raises:
        UserError: If there is no such folder or repository, or it holds no safetensors weights.
    """
    if Path(checkpoint).expanduser().is_dir():
        folder = Path(checkpoint).expanduser()
    else:
        if checkpoint.startswith((".", "/", "~")) or checkpoint.count("/") > 1:
            raise UserError(f"{what} {checkpoint}: there is no such folder")
        repo_id, _, revision = checkpoint.partition("@")
        patterns = [
            CARD,
            *RECORDS,
            *_PROCESSORS,
            "model*.safetensors",
            "model.safetensors.index.json",
            *(f"figures/{name}" for name in FIGURE_FILES),
        ]
        with _explained(f"{what} {checkpoint}"):
            folder = Path(snapshot_download(repo_id, revision=revision or None, token=token, allow_patterns=patterns))
    if not (folder / "config.json").is_file():
        raise UserError(f"{what} {checkpoint}: it holds no config.json, so it is no model of transformers")
    if not any(_WEIGHTS.fullmatch(path.name) for path in folder.iterdir()):
        raise UserError(
            f"{what} {checkpoint}: it holds no safetensors weights; pickled ones (.bin, .pt) are never loaded"
        )
    return folder


def load_checkpoint(checkpoint: str, token: str | None = None) -> tuple[Any, Any]:
    """A checkpoint, adapted or native, of a folder or the Hub, with its image processor.

    Args:
        checkpoint: As `fetch` takes it.
        token: Access token.

    Returns:
        The model in evaluation mode, and the image processor.

    Raises:
        UserError: If it cannot be found or loaded, lacks a tensor, or is no vision model.
    """
    import transformers

    from . import models  # noqa: F401  (registers the Auto classes)
    from .models.loading import refuse_lost_tensors

    folder = fetch(checkpoint, token)
    try:
        names = json.loads((folder / "config.json").read_text()).get("architectures") or [""]
        kind = getattr(transformers, task_of_architecture(names[0]).auto_class)
        processor = transformers.AutoImageProcessor.from_pretrained(folder)
        with quiet_loading():
            model, info = kind.from_pretrained(folder, use_safetensors=True, output_loading_info=True)
    except UserError as error:
        raise UserError(str(error).replace(str(folder), checkpoint)) from error
    except Exception as error:  # damaged files make the libraries raise nearly anything
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise UserError(f"checkpoint {checkpoint} cannot be loaded: {lines[0]}") from error
    refuse_lost_tensors(info, checkpoint)
    return model.eval(), processor


def push(
    checkpoint: str | Path,
    repo_id: str,
    *,
    native: bool = False,
    private: bool | None = None,
    revision: str | None = None,
    create_pr: bool = False,
    commit_message: str | None = None,
    license: str | None = None,
    token: str | None = None,
    overwrite: bool = False,
    attempts: int = 5,
    retry_seconds: float = 2.0,
    report: Callable[[str], None] = logger.warning,
) -> str:
    """Push a checkpoint to the Hub, and wait until it is there.

    Args:
        checkpoint: A run's folder, a saved model, or the Hub id of a checkpoint.
        repo_id: `organisation/name`, or `name` for your own namespace. Made when missing.
        native: Push the plain transformers model, which needs no metaalign-hf, instead of the full checkpoint.
        private: Whether a new repository is private; None takes the Hub's default.
        revision: Branch, made when missing; None is main.
        create_pr: Open a pull request instead of committing; the repository must exist.
        commit_message: Message of the commit.
        license: Licence for the card.
        token: Access token; by default that of `HF_TOKEN` or `hf auth login`.
        overwrite: Replace the files of a repository whose model is not of metaalign-hf.
        attempts: How often to try when the Hub does not answer or fails.
        retry_seconds: Wait before the second try; it doubles from try to try.
        report: Called with a line for every failed try, and where the Hub may not know the licence.

    Returns:
        The address of the commit or pull request.

    Raises:
        HubError: If the Hub refuses, or fails every time.
        UserError: If the checkpoint cannot be read or has no native form.
    """
    if create_pr and revision is not None:
        raise UserError("push: a pull request goes to main; leave out the revision")
    for note in license_notes(license):
        report(note)
    folder = fetch(str(checkpoint), token)
    message = commit_message or ("Push the plain transformers model" if native else "Push the adapted checkpoint")
    with tempfile.TemporaryDirectory() as scratch:
        architecture = _write_native(str(folder), Path(scratch)) if native else None
        record = read_record(folder)
        place = Path(scratch) if native else folder

        def once() -> str:
            target = _Target(repo_id, private, revision, create_pr, overwrite, token)
            target.prepare()
            figures = _figures(record, record_folder(folder), Path(scratch) / "figures")
            names = [f"figures/{path.name}" for path in figures]
            card = model_card(
                record,
                repo_id=target.repo_id,
                native=native,
                architecture=architecture,
                figures=names,
                license=license,
            )
            if not native and not _may_write_card(folder):
                card = (folder / CARD).read_text()
            files = (
                _public_files(place, record_folder(folder))
                | dict(zip(names, figures, strict=True))
                | {CARD: card.encode()}
            )
            return target.commit(files, message)

        return _retry(once, attempts, retry_seconds, report)


def write_card(folder: Path, repo_id: str | None = None, license: str | None = None) -> list[Path]:
    """Write the figures and the model card of a run into its folder; a card that somebody has edited stays.

    Args:
        folder: The run's folder, with the model saved in it.
        repo_id: Where it will be on the Hub.
        license: Licence for the card.

    Returns:
        The files written.
    """
    record = read_record(folder)
    written = write_figures(record, folder / "figures")
    if _may_write_card(folder):
        names = [f"figures/{path.name}" for path in written]
        (folder / CARD).write_text(model_card(record, repo_id=repo_id, figures=names, license=license))
        written.append(folder / CARD)
    return written


class BackgroundPusher:
    """Pushes a run to the Hub: now and then while it goes on, and once at its end.

    At most one push is in flight; what comes due meanwhile is left out, because a later one brings newer weights. A
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
        if config.push_every < 0 or config.attempts < 1:
            raise UserError("hub.push_every must be 0 or more, and hub.attempts 1 or more")
        self.config, self.folder, self.report = config, folder, report
        self.target = _Target(
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
        if self.config.create_pr:
            return  # one pull request, at the end
        if self.thread is not None and self.thread.is_alive():
            self.report(f"step {step} is not pushed: the push before it is still under way")
            return
        staged = self._staged()
        try:
            shutil.rmtree(staged, ignore_errors=True)
            staged.mkdir(parents=True)
            save(staged)
            for name in RECORDS[1:]:
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
        config = self.config
        try:
            return push(
                self.folder,
                self.target.repo_id,
                private=config.private,
                revision=config.revision,
                create_pr=config.create_pr,
                commit_message=config.commit_message,
                license=config.license,
                token=self.target.token,
                overwrite=config.overwrite,
                attempts=config.attempts,
                retry_seconds=config.retry_seconds,
                report=self.report,
            )
        except Exception as error:  # whatever it was, the run is safe and the user must know how to go on
            command = push_command(self.folder, config)
            raise HubError(f"{error}. The run is finished and its folder complete; push it with: {command}") from error

    def _staged(self) -> Path:
        return self.folder / ".push"

    def _push_staged(self, staged: Path, step: int) -> None:
        config = self.config

        def once() -> None:
            self.target.prepare()
            record = read_record(staged)
            figures = _figures(record, staged, staged / "figures")
            names = [f"figures/{path.name}" for path in figures]
            card = model_card(record, repo_id=self.target.repo_id, figures=names, license=config.license)
            files = _public_files(staged, staged) | dict(zip(names, figures, strict=True)) | {CARD: card.encode()}
            self.target.commit(files, f"Push the state after step {step}")

        try:
            with no_hub_progress_bars():
                _retry(once, config.attempts, config.retry_seconds, self.report, self.stopping)
        except Exception as error:  # a thread has nobody else to tell
            self.report(f"step {step} was not pushed: {error}")


def push_command(folder: Path, config: HubConfig) -> str:
    """The command that pushes a finished run's folder as `config` says."""
    words = ["metaalign", "push", str(folder), str(config.repo_id)]
    words += ["--private"] if config.private else []
    words += ["--create-pr"] if config.create_pr else []
    words += ["--overwrite"] if config.overwrite else []
    for name in ("revision", "commit_message", "license"):
        if (value := getattr(config, name)) is not None:
            words += [f"--{name.replace('_', '-')}", value]
    return shlex.join(words)


class _Target:
    """A repository to commit to."""

    def __init__(
        self,
        repo_id: str,
        private: bool | None,
        revision: str | None,
        create_pr: bool,
        overwrite: bool,
        token: str | None,
    ) -> None:
        if not re.fullmatch(r"([\w.-]+/)?[\w.-]+", repo_id):
            raise UserError(f"push: {repo_id!r} is no repository; write organisation/name")
        self.repo_id, self.private, self.revision = repo_id, private, revision
        self.create_pr, self.overwrite, self.token = create_pr, overwrite, token
        self.ready = False
        self.api = HfApi(token=token, library_name="metaalign-hf", library_version=version("metaalign-hf"))

    def prepare(self) -> None:
        """Check the token, and make repository and branch where they are missing; once."""
        if self.ready:
            return
        with _explained(f"push to {self.repo_id}"):
            user = self.api.whoami()["name"]
            if "/" not in self.repo_id:
                self.repo_id = f"{user}/{self.repo_id}"
            if not self.create_pr:
                self.api.create_repo(self.repo_id, private=self.private, exist_ok=True)
            if self.revision is not None:
                self.api.create_branch(self.repo_id, branch=self.revision, exist_ok=True)
        self.ready = True

    def commit(self, files: dict[str, Path | bytes], message: str) -> str:
        """Commit the files on top of what was looked at, and remove weights that they replace."""
        with _explained(f"push to {self.repo_id}"):
            info = self.api.model_info(self.repo_id, revision=self.revision)
            there = [sibling.rfilename for sibling in info.siblings or []]
            if "config.json" in there and _TAG not in (info.tags or []) and not self.overwrite:
                raise HubError(
                    f"push to {self.repo_id}: it holds another model, which is not of metaalign-hf; choose another "
                    "name, or replace it with --overwrite"
                )
            operations: list[CommitOperationAdd | CommitOperationDelete] = [
                CommitOperationAdd(name, content if isinstance(content, bytes) else str(content))
                for name, content in sorted(files.items())
            ]
            outdated = [name for name in there if _WEIGHTS.fullmatch(name) and name not in files]
            operations += [CommitOperationDelete(name) for name in outdated]
            done = self.api.create_commit(
                self.repo_id,
                operations,
                commit_message=message,
                revision=self.revision,
                create_pr=self.create_pr,
                parent_commit=info.sha,
            )
        return str(done.pr_url or done.commit_url)


def _public_files(folder: Path, records: Path) -> dict[str, Path | bytes]:
    """What may be published of a folder: weights as they are, texts without local paths; card and figures not yet.

    Args:
        folder: Where weights, configuration and image processor are.
        records: Where the record of the run is.
    """
    files: dict[str, Path | bytes] = {}
    for path in folder.iterdir():
        if _WEIGHTS.fullmatch(path.name):
            files[path.name] = path
    for place, names in ((folder, ("config.json", *_PROCESSORS)), (records, RECORDS[1:])):
        for name in names:
            if (place / name).is_file():
                text = _published(name, (place / name).read_text())
                if _TOKEN.search(text):
                    raise UserError(f"push: {place / name} holds what looks like an access token; remove it first")
                files[name] = text.encode()
    return files


def _published(name: str, text: str) -> str:
    """A text without local paths; unchanged where it has none."""
    if name.endswith(".jsonl"):
        return "".join(f"{_published('.json', line)}\n" for line in text.splitlines())
    values = yaml.safe_load(text) if name.endswith(".yaml") else json.loads(text)
    public = without_local_paths(values)
    if public == values:
        return text
    if name.endswith(".yaml"):
        return yaml.safe_dump(public, sort_keys=False)
    return json.dumps(public, indent=2) + "\n" if "\n" in text else json.dumps(public)


def _figures(record: RunRecord, folder: Path, scratch: Path) -> list[Path]:
    """The figures of curves that lie in the folder, or else freshly drawn ones; no other picture, as of images."""
    there = [path for name in FIGURE_FILES if (path := folder / "figures" / name).is_file()]
    return there or write_figures(record, scratch)


def _may_write_card(folder: Path) -> bool:
    card = folder / CARD
    return not card.is_file() or card_is_generated(card.read_text())


def _write_native(checkpoint: str, folder: Path) -> str:
    """Save the plain model and its image processor; returns the class name."""
    model, processor = load_checkpoint(checkpoint)
    if not hasattr(model, "export_native"):
        raise UserError(f"push: checkpoint {checkpoint} is a native {type(model).__name__} already; leave out --native")
    native = model.export_native(processor)
    with no_model_progress_bars():
        native.save_pretrained(folder)
    processor.save_pretrained(folder)
    return type(native).__name__


def _retry(
    action: Callable[[], T],
    attempts: int,
    wait: float,
    report: Callable[[str], None],
    stopping: threading.Event | None = None,
) -> T:
    """Run an action again after temporary failures, waiting longer from try to try."""
    pause = stopping or threading.Event()
    for attempt in range(1, attempts + 1):
        try:
            return action()
        except HubError as error:
            if not error.temporary or attempt == attempts:
                raise
            report(f"{error}; try {attempt} of {attempts}, the next in {wait:g} s")
        if pause.wait(wait):
            raise HubError("given up in favour of a newer push")
        wait *= 2
    raise AssertionError("unreachable")


@contextmanager
def _explained(what: str) -> Iterator[None]:
    """Turn what the client raises into one line that says what to do."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        explanation = _explanation(error)
        if explanation is None:
            raise
        raise HubError(f"{what}: {explanation[0]}", temporary=explanation[1]) from error


def _explanation(error: Exception) -> tuple[str, bool] | None:
    """What went wrong, and whether trying again may help; None for what is no failure of the Hub."""
    response = getattr(error, "response", None)
    status = response.status_code if response is not None else None
    login = "log in with `hf auth login`, or set HF_TOKEN"
    if isinstance(error, OfflineModeIsEnabled):
        return "HF_HUB_OFFLINE is set, so the Hub is not asked", False
    if isinstance(error, LocalTokenNotFoundError):
        return f"there is no access token; {login}", False
    if isinstance(error, HFValidationError):
        return f"this is no repository id ({str(error).splitlines()[0]})", False
    if isinstance(error, GatedRepoError):
        return "access to it must be asked for on its page on the Hub first", False
    if isinstance(error, RevisionNotFoundError):
        return "the repository has no such branch, tag or commit", False
    if isinstance(error, RepositoryNotFoundError):
        return f"the Hub has no such repository, or your token may not see it; {login}", False
    if status == 401:
        return f"the Hub does not know the access token; {login}", False
    if status == 403:
        return "your token may not write there; use your own namespace, or a token with write access to it", False
    if status == 412:
        return "somebody else committed to it in the same moment", True
    if status is not None and (status >= 500 or status in (408, 429)):
        return f"the Hub failed (status {status})", True
    if isinstance(error, HfHubHTTPError):
        return " ".join(str(error).split()), False
    if isinstance(error, EntryNotFoundError):  # of a download: no answer, and nothing in the cache
        reason = _root(error)
        if isinstance(reason, OfflineModeIsEnabled):
            return "it is not in the cache, and HF_HUB_OFFLINE is set", False
        return _explanation(reason) if reason is not error else ("it is not in the cache", False)
    if type(error).__module__.split(".")[0] in ("httpx", "httpx2", "httpcore", "httpcore2", "requests"):
        return f"the Hub cannot be reached ({' '.join(str(error).split()) or type(error).__name__})", True
    if isinstance(error, ConnectionError | TimeoutError):
        return f"the Hub cannot be reached ({error})", True
    if isinstance(error, ValueError) and "metadata in README" in str(error):
        return f"the Hub refuses the model card: {' '.join(str(error).split())}", False
    return None


def _root(error: BaseException) -> Any:
    while error.__cause__ is not None:
        error = error.__cause__
    return error
