"""Pushing a checkpoint: one push is one commit, so that a reader never sees half of it."""

from __future__ import annotations

import logging
import shlex
import tempfile
from collections.abc import Callable
from pathlib import Path

from ..configuration import HubConfig
from ..configuration.hub import license_notes
from ..errors import UserError
from ..models import save_native
from ..models.adapter_files import export_adapter
from ..progress import no_model_progress_bars
from ..reports import model_card, read_record, record_folder
from ..run_folder import CARD_FILE, FIGURES_FOLDER, holds_adapters_alone
from .errors import retry
from .eval_results import eval_results
from .fetch import fetch, load_checkpoint
from .public import curve_figures, may_write_card, public_files, target_pictures
from .repository import Repository

__all__ = ["push", "push_command"]

logger = logging.getLogger(__name__)


def push(
    checkpoint: str | Path,
    repo_id: str,
    *,
    native: bool = False,
    adapter: bool = False,
    private: bool | None = None,
    revision: str | None = None,
    create_pr: bool = False,
    commit_message: str | None = None,
    license: str | None = None,
    images: bool = False,
    benchmark_task: str | None = None,
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
        adapter: Push the low-rank adapters and the heads alone, for this library and peft on top of the base model.
        private: Whether a new repository is private; None takes the Hub's default.
        revision: Branch, made when missing; None is main.
        create_pr: Open a pull request instead of committing; the repository must exist.
        commit_message: Message of the commit.
        license: Licence for the card.
        images: Also publish the picture of target images that the run left, and show it in the card. Only if those
            images may be published.
        benchmark_task: Also write the target's score to `.eval_results/`, for this task of the target's data set, which
            is registered on the Hub as a benchmark.
        token: Access token; by default that of `HF_TOKEN` or `hf auth login`.
        overwrite: Replace the files of a repository whose model is not of metaalign-hf.
        attempts: How often to try when the Hub does not answer or fails.
        retry_seconds: Seconds to wait before the second try; doubled for each further try.
        report: Called with a line for every failed try, and where the Hub may not know the licence.

    Returns:
        The address of the commit or pull request.

    Raises:
        HubError: If the Hub refuses, or fails every time.
        UserError: If the checkpoint cannot be read or has no native form, or no adapters, or adapters alone, or
            these no base model on the Hub, or the run was not tested on a split of a data set of the Hub.
    """
    if create_pr and revision is not None:
        raise UserError("push: a pull request goes to main; leave out the revision")
    if native and adapter:
        raise UserError("push: the plain model and its adapters are two forms; leave out one of native and adapter")
    for note in license_notes(license):
        report(note)
    folder = fetch(str(checkpoint), token)
    if holds_adapters_alone(folder) and not (native or adapter):
        raise UserError(f"push: {checkpoint} holds adapters without their base model; say --adapter, or --native")
    pictures = target_pictures(record_folder(folder)) if images else []
    if images and not pictures:
        raise UserError(f"push: {checkpoint} holds no picture of target images, which --images publishes; leave it out")
    form = "the plain transformers model" if native else "the adapters" if adapter else "the adapted checkpoint"
    message = commit_message or f"Push {form}"
    with tempfile.TemporaryDirectory() as scratch:
        architecture = _write_native(str(folder), Path(scratch)) if native else None
        base = _write_adapter(str(folder), Path(scratch)) if adapter else None
        record = read_record(folder)
        results = {} if benchmark_task is None else eval_results(record, benchmark_task)
        place = Path(scratch) if native or adapter else folder

        def once() -> str:
            target = Repository(repo_id, private, revision, create_pr, overwrite, token)
            target.prepare()
            figures = curve_figures(record, record_folder(folder), Path(scratch) / FIGURES_FOLDER)
            names, shown = ([f"{FIGURES_FOLDER}/{path.name}" for path in paths] for paths in (figures, pictures))
            card = model_card(
                record,
                repo_id=target.repo_id,
                native=native,
                architecture=architecture,
                adapter_of=base,
                figures=names,
                pictures=shown,
                license=license,
            )
            if place == folder and not may_write_card(folder):
                card = (folder / CARD_FILE).read_text()
            files = (
                public_files(place, record_folder(folder))
                | dict(zip([*names, *shown], [*figures, *pictures], strict=True))
                | results
                | {CARD_FILE: card.encode()}
            )
            return target.commit(files, message)

        return retry(once, attempts, retry_seconds, report)


def push_command(folder: Path, config: HubConfig) -> str:
    """The command that pushes a finished run's folder as `config` says."""
    words = ["metaalign", "push", str(folder), str(config.repo_id)]
    words += ["--private"] if config.private else []
    words += ["--create-pr"] if config.create_pr else []
    words += ["--adapter"] if config.adapter else []
    words += ["--images"] if config.images else []
    words += ["--overwrite"] if config.overwrite else []
    for name in ("revision", "commit_message", "license"):
        if (value := getattr(config, name)) is not None:
            words += [f"--{name.replace('_', '-')}", value]
    return shlex.join(words)


def _write_native(checkpoint: str, folder: Path) -> str:
    """Save the plain model and its image processor; returns the class name."""
    model, processor = load_checkpoint(checkpoint)
    if not hasattr(model, "export_native"):
        raise UserError(f"push: checkpoint {checkpoint} is a native {type(model).__name__} already; leave out --native")
    native = model.export_native(processor)
    with no_model_progress_bars():
        save_native(native, folder)
    processor.save_pretrained(folder)
    return type(native).__name__


def _write_adapter(checkpoint: str, folder: Path) -> str:
    """Save adapters, classifier and image processor; returns the name of the base model."""
    model, processor = load_checkpoint(checkpoint)
    base = export_adapter(model, folder, "push: --adapter")
    processor.save_pretrained(folder)
    return base
