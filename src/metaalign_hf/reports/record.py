"""The record of a run, read back from its folder: all that a model card may state.

Everything a record holds may be published: paths of the machine are shortened to their last part.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from ..errors import UserError, one_line
from ..run_folder import (
    BASELINE_FOLDER,
    CONFIG_FILE,
    METRICS_FILE,
    SELECTED_FOLDER,
    SUMMARY_FILE,
    model_config_file,
    with_present_names,
)
from ..tasks import Measure, TaskKind, task_of_architecture

__all__ = ["HUB_ID", "RunRecord", "hub_dataset", "read_metrics", "read_record", "record_folder", "without_local_paths"]

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
"""What an id on the Hub looks like, `organisation/name`."""

# An absolute path (`/home/ann/art`, `~/art`, `C:\\Users\\ann`) wherever it stands in a text; with blanks if in quotes.
_PART = r"[^\s\"'<>,;:()/]+"
_ABSOLUTE = re.compile(
    rf"(?<=')(?:[\w-]+:)?(?:/|~/)[^'\n]+(?=')|(?<=\")(?:[\w-]+:)?(?:/|~/)[^\"\n]+(?=\")"
    rf"|(?<![\w/.~])(?:file://)?(?:/{_PART}(?:/{_PART})+|~[\w.-]*(?:/{_PART})+)/?"
    r"|\b[A-Za-z]:\\[^\s\"'<>,;()]+"
)
# Entries that are useful on this machine only.
_LOCAL = {"evaluate_command"}
# Entries of a configuration that may name a file or folder, absolute or not.
_PLACES = {"path", "root", "labels_file", "test_path", "output_dir", "checkpoint", "backbone", "pretrained"}
_PLACES |= {"backbone_name", "detector", "detector_name", "_name_or_path", "name"}


def hub_dataset(domain: Mapping[str, Any]) -> str | None:
    """The id of the data set on the Hub that a domain's configuration names; None where it names none."""
    path = str(domain.get("path") or "")
    return path if domain.get("kind") == "dataset" and HUB_ID.fullmatch(path) else None


@dataclass(frozen=True)
class RunRecord:
    """The contents of a run's folder that describe the run.

    Attributes:
        model: The model's `config.json`.
        training: `training_config.yaml`; empty for a model that was saved without a run.
        summary: `summary.json`; empty as long as the run goes on.
        metrics: The lines of `metrics.jsonl`.
        baseline: Those of the source-only baseline, where one was trained beside the run.
    """

    model: dict[str, Any]
    training: dict[str, Any] = field(default_factory=dict)
    summary: dict[str, Any] = field(default_factory=dict)
    metrics: list[dict[str, Any]] = field(default_factory=list)
    baseline: list[dict[str, Any]] = field(default_factory=list)

    @property
    def evaluations(self) -> list[dict[str, Any]]:
        """The lines with evaluations, in order."""
        return [line for line in self.metrics if "evaluation" in line]

    @property
    def task(self) -> TaskKind:
        """The task of the model."""
        return task_of_architecture((self.model.get("architectures") or [""])[0])

    @property
    def measure(self) -> Measure:
        """The figure that heads the run's tables."""
        return self.task.measure(self.training.get("training", {}).get("metric"))

    @property
    def labels(self) -> list[str]:
        """The class names in the order of the logits."""
        named = {int(index): name for index, name in self.model.get("id2label", {}).items()}
        return [named[index] for index in sorted(named)]


def read_record(folder: Path) -> RunRecord:
    """Read the record of a checkpoint's folder.

    Args:
        folder: A run's folder, a saved model, or a downloaded snapshot.

    Raises:
        UserError: If `config.json` is missing or a file is damaged.
    """
    config_file, folder = model_config_file(folder), record_folder(folder)
    if not config_file.is_file():
        raise UserError(f"checkpoint {config_file.parent}: it holds no {config_file.name}, so no model was saved here")
    try:
        model = json.loads(config_file.read_text())
        training = _load(folder / CONFIG_FILE, yaml.safe_load)
        summary = with_present_names(_load(folder / SUMMARY_FILE, json.loads))
        metrics, baseline = (read_metrics(place) for place in (folder, folder / BASELINE_FOLDER))
    except (json.JSONDecodeError, yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"checkpoint {folder}: a file of it cannot be read ({one_line(error)})") from error
    if config_file.parent != folder:
        summary = _of_selected(summary, metrics)
    return RunRecord(*(without_local_paths(values) for values in (model, training, summary, metrics, baseline)))


def record_folder(folder: Path) -> Path:
    """Where the record of the checkpoint in `folder` lies: there, or for a selected checkpoint in the run's folder."""
    run = folder.resolve().parent
    selected = folder.resolve().name == SELECTED_FOLDER and not (folder / CONFIG_FILE).exists()
    return run if selected and (run / CONFIG_FILE).exists() else folder


def _of_selected(summary: dict[str, Any], metrics: list[dict[str, Any]]) -> dict[str, Any]:
    """The summary with the figures of the selected checkpoint as those of "after"; others of "after" are dropped."""
    row = next((r for r in summary.get("checkpoints") or [] if r["checkpoint"].startswith("selected")), None)
    if row is None:
        return {}
    kept = {k: v for k, v in summary.items() if not k.endswith("_after") and "per_class" not in k}
    measured = [k.removeprefix("source_").removesuffix("_after") for k in summary if re.match("source_.*_after$", k)]
    found: dict[str, Any] = next(
        (x for x in reversed(metrics) if "evaluation" in x and x.get("step") == row["step"]), {}
    )
    for measure in measured:
        kept |= {f"source_{measure}_after": found.get(f"source_{measure}")}
        kept |= {f"target_{measure}_after": found.get(f"target_{measure}")}
    first = summary.get("metric") or measured[0]
    kept |= {f"source_{first}_after": row["source"], f"target_{first}_after": row["target"]}
    steps = row["step"] - summary.get("source_steps", 0)
    return kept | {"checkpoint": "selected", "adaptation_steps": steps}


def without_local_paths(value: Any, key: str = "") -> Any:
    """The same JSON value with every path of this machine shortened to its last part.

    Absolute paths are found anywhere in a text, except in class names; relative ones only in entries that name a
    place, and there only when the file or folder exists (`org/name` may be a Hub id as well as a folder).

    Args:
        value: Any JSON value.
        key: The entry that it is the value of.
    """
    if isinstance(value, dict):
        kept = ("id2label", "label2id", "label_names")
        shared = {k: v for k, v in value.items() if k not in _LOCAL}
        return {k: v if k in kept else without_local_paths(v, str(k)) for k, v in shared.items()}
    if isinstance(value, list | tuple):
        return [without_local_paths(item, key) for item in value]
    if not isinstance(value, str):
        return value
    if value.startswith(("/", "~/")) or (key in _PLACES and ("/" in value or "\\" in value) and _is_local(value)):
        return _last_part(value)
    return _ABSOLUTE.sub(lambda found: _last_part(found[0]), value)


def _is_local(text: str) -> bool:
    if text.startswith(("/", "~", "./", "../", ".\\")) or re.match(r"[A-Za-z]:\\", text):
        return True
    try:
        return Path(text).exists()
    except OSError:
        return False


def _last_part(text: str) -> str:
    return re.split(r"[/\\]", text.rstrip("/\\"))[-1]


def _load(path: Path, parse: Any) -> dict[str, Any]:
    return (parse(path.read_text()) or {}) if path.is_file() else {}


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """The lines of a run's `metrics.jsonl`; one that is being written is left out."""
    path = folder / METRICS_FILE
    lines = path.read_text().splitlines(keepends=True) if path.is_file() else []
    whole = [line for line in lines if line.endswith(("\n", "}"))]
    return [json.loads(line) for line in whole]
