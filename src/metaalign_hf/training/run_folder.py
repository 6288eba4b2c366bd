"""The folder of a run: what is written where, and that no other run is overwritten."""

from __future__ import annotations

import json
import shlex
from collections.abc import Set
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

import yaml
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list

from ..configuration import Config, DataConfig, DomainConfig
from ..disk import refuse_unwritable, write_whole
from ..errors import UserError
from ..run_folder import CHECKPOINTS_FOLDER, CONFIG_FILE, LOCK_FILE, METRICS_FILE, SUMMARY_FILE
from ..run_lock import RunLock, running
from .checkpoints import checkpoints, damage, step_of

__all__ = [
    "as_new_run",
    "check_output_dir",
    "differences",
    "open_run_folder",
    "recorded_steps",
    "skipped_checkpoints",
    "take_folder",
    "truncate_metrics",
    "write_config",
]

_STEPS = "training.max_steps"
_MOST_KEYS = 5

# A resumed run may differ in these: they do not change what is computed.
_FREE = {
    "data.cache_folder",
    "data.cache_gigabytes",
    "data.num_workers",
    "data.on_bad_image",
    "training.checkpoint_every",
    "training.keep_checkpoints",
    "training.max_bad_steps",
    "training.max_time",
    "training.output_dir",
    "training.resume",
    "training.tracker_options",
    "training.trackers",
}


def open_run_folder(config: Config, recorded: dict[str, Any]) -> tuple[RunLock, Path | None]:
    """Take the run's folder, for this process alone. Nothing but the lock is written.

    Args:
        config: The run's configuration.
        recorded: What `training_config.yaml` will say of it.

    Returns:
        The lock, and the checkpoint to resume from, or None to start from the beginning.

    Raises:
        UserError: If another process writes there, or as `check_output_dir` raises it.
    """
    folder = Path(config.training.output_dir)
    if (writer := running(folder)) is not None:
        raise UserError(
            f"training.output_dir: {folder} is being written by {writer}; wait for it, end it, or choose another folder"
        )
    check_output_dir(config, recorded)
    lock = RunLock(folder, "training.output_dir")
    try:
        # Once more: another run may have come and gone meanwhile.
        return lock, check_output_dir(config, recorded)
    except BaseException:
        lock.release()
        raise


def take_folder(config: Config, recorded: dict[str, Any], accelerator: Accelerator, cleanup: ExitStack) -> Path | None:
    """As `open_run_folder`, by the main process for all of them.

    Args:
        config: The run's configuration.
        recorded: What `training_config.yaml` will say of it.
        accelerator: Knows the processes.
        cleanup: Lets go of the folder.

    Returns:
        The checkpoint to resume from, or None to start from the beginning.
    """
    found: list[tuple[str | None, Path | None]] = [(None, None)]
    if accelerator.is_main_process:
        try:
            lock, checkpoint = open_run_folder(config, recorded)
            cleanup.callback(lock.release)
            found = [(None, checkpoint)]
        except UserError as error:
            found = [(str(error), None)]
    broadcast_object_list(found)
    refusal, checkpoint = found[0]
    if refusal is not None:
        raise UserError(refusal)
    return checkpoint


def check_output_dir(config: Config, recorded: dict[str, Any]) -> Path | None:
    """Make sure that the run may write to its folder. Nothing is written.

    Args:
        config: The run's configuration.
        recorded: What `training_config.yaml` will say of it.

    Returns:
        The checkpoint to resume from, or None to start from the beginning.

    Raises:
        UserError: If the folder holds something else, another run, or a finished one that is not to become longer.
    """
    folder = Path(config.training.output_dir)
    refuse_unwritable(folder, "training.output_dir")
    resume = config.training.resume
    if not folder.exists() or all(path.name == LOCK_FILE for path in folder.iterdir()):
        if resume not in ("auto", "never"):
            raise UserError(f"training.resume: {folder} holds no run to go on with; use auto or never")
        return None
    if not (folder / CONFIG_FILE).exists():
        raise UserError(f"training.output_dir: {folder} is not empty and holds no run; choose another folder")
    if resume == "never":
        raise UserError(
            f"training.output_dir: {folder} holds another run; choose another folder, or --training.resume auto "
            "to go on with it"
        )
    before, now = _flat_configs(config, recorded)
    longer = isinstance(steps := before.get(_STEPS), int) and now[_STEPS] > steps
    if told := differences(config, recorded, {_STEPS} if longer else set()):
        raise UserError(f"training.resume: {folder} holds a run with {told}; resume with the same configuration")
    checkpoint = _newest(folder) if resume == "auto" else _named(folder, str(resume))
    if (folder / SUMMARY_FILE).exists():
        if not longer:
            more = f"for more steps, raise {_STEPS} (where nothing depends on it); " if checkpoint is not None else ""
            raise UserError(
                f"training.resume: the run in {folder} is finished; there is nothing to resume; {more}"
                f"{as_new_run(config)}"
            )
        if checkpoint is None:
            raise UserError(
                f"{_STEPS}: the run in {folder} is finished and cannot become longer, because it kept no checkpoint "
                f"(training.checkpoint_every); {as_new_run(config)}"
            )
    return checkpoint


def differences(config: Config, recorded: dict[str, Any], free: Set[str] = frozenset()) -> str:
    """In which keys the run in the folder differs from this one, in words; empty where it is the same run.

    Args:
        config: The run's configuration; its folder holds a run.
        recorded: What `training_config.yaml` will say of it.
        free: Further keys that may differ.
    """
    before, now = _flat_configs(config, recorded)
    keys = sorted({*before, *now} - _FREE - free)
    differing = [key for key in keys if before.get(key) != now.get(key) and not key.startswith("hub.")]
    told = ", ".join(f"{key} = {before.get(key)!r}, not {now.get(key)!r}" for key in differing[:_MOST_KEYS])
    more = f", and {len(differing) - _MOST_KEYS} more keys differ" if len(differing) > _MOST_KEYS else ""
    return f"{told}{more}"


def _flat_configs(config: Config, recorded: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The configuration of the run in the folder and that of this one, by dotted keys."""
    found = yaml.safe_load((Path(config.training.output_dir) / CONFIG_FILE).read_text()) or {}
    return _flat(_with_defaults(found, config)), _flat(recorded)


def _named(folder: Path, path: str) -> Path:
    """The checkpoint of this run that a path names."""
    found = {checkpoint.resolve(): checkpoint for checkpoint in checkpoints(folder)}
    chosen = found.get(Path(path).resolve())
    if chosen is None:
        known = ", ".join(str(checkpoint) for checkpoint in found.values()) or "none"
        raise UserError(f"training.resume: {path} is not a checkpoint of the run in {folder}; its checkpoints: {known}")
    if (reason := damage(chosen)) is not None:
        raise UserError(f"training.resume: checkpoint {chosen} is damaged ({reason}); name another, or use auto")
    return chosen


def _newest(folder: Path) -> Path | None:
    """The newest checkpoint that is not damaged; None where there is none at all."""
    found = checkpoints(folder)
    chosen = next((checkpoint for checkpoint in reversed(found) if damage(checkpoint) is None), None)
    if found and chosen is None:
        raise UserError(
            f"training.resume: every checkpoint in {folder / CHECKPOINTS_FOLDER} is damaged ({found[-1].name}: "
            f"{damage(found[-1])}); put back a copy, or delete that folder to start from the beginning"
        )
    return chosen


def skipped_checkpoints(folder: Path, chosen: Path | None) -> list[str]:
    """For each damaged checkpoint that is newer than the chosen one, a line that says so."""
    newer = [c for c in checkpoints(folder) if chosen is not None and step_of(c) > step_of(chosen)]
    found = [(c, damage(c)) for c in newer]
    return [f"Warning: checkpoint {c} is damaged ({reason}), and skipped." for c, reason in found if reason is not None]


def recorded_steps(config: Config) -> int | None:
    """`training.max_steps` of the run that the folder holds; None where it holds none."""
    path = Path(config.training.output_dir) / CONFIG_FILE
    steps = _flat(yaml.safe_load(path.read_text()) or {}).get(_STEPS) if path.exists() else None
    return steps if isinstance(steps, int) else None


def as_new_run(config: Config) -> str:
    """How to train on from the model of a run that cannot become longer."""
    folder = Path(config.training.output_dir)
    if not (folder / SUMMARY_FILE).exists():
        return f"finish it with {_STEPS} {recorded_steps(config)}, and then start a new run from its model"
    phase = " --training.source_steps 0" if config.training.source_steps else ""
    options = shlex.join(["--model.checkpoint", str(folder), "--training.output_dir", f"{folder}-more"])
    return f"to train on from its model, start a new run: {options}{phase}"


def write_config(folder: Path, recorded: dict[str, Any]) -> None:
    """Write the resolved configuration, with which `metaalign train --config` repeats the run.

    Args:
        folder: The run's folder.
        recorded: The configuration, as `recorded_config` makes it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    values = {**recorded, "training": {**recorded["training"], "resume": "never"}}
    # A finished run that becomes longer is not finished any more. First, so that a kill leaves nothing half said.
    (folder / SUMMARY_FILE).unlink(missing_ok=True)
    write_whole(folder / CONFIG_FILE, yaml.safe_dump(values, sort_keys=False))


def truncate_metrics(folder: Path, step: int, total: int) -> None:
    """Drop the lines of `metrics.jsonl` after `step`: a resumed run writes them again.

    The evaluation at the end of a run that is now longer becomes one by the way.

    Args:
        folder: The run's folder.
        step: Steps taken.
        total: Steps of the whole run.
    """
    path = folder / METRICS_FILE
    if not path.exists():
        return
    kept = []
    for line in path.read_text().splitlines():
        try:
            values = json.loads(line)
            if values["step"] > step:
                continue
            if values.get("evaluation") == "after" and values["step"] < total:
                line = json.dumps({**values, "evaluation": f"step {values['step']}"})
            kept.append(line + "\n")
        except (json.JSONDecodeError, KeyError):
            break  # the line that the run was killed in
    write_whole(path, "".join(kept))


def _with_defaults(recorded: dict[str, Any], config: Config) -> dict[str, Any]:
    """A recorded configuration, in which keys that did not exist yet when it was written have their defaults."""
    defaults = asdict(Config(data=DataConfig(config.data.target, config.data.target)))
    known = {**recorded, **{name: {**values, **(recorded.get(name) or {})} for name, values in defaults.items()}}
    domain = asdict(DomainConfig())
    for name, value in known["data"].items():
        if isinstance(value, dict):
            known["data"][name] = {**domain, **value}
        elif isinstance(value, list) and name == "source":
            known["data"][name] = [{**domain, **entry} for entry in value]
    return known


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        name = f"{prefix}{key}"
        if isinstance(value, dict) and value:
            flat.update(_flat(value, f"{name}."))
        else:
            flat[name] = value
    return flat
