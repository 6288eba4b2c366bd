"""A run as a report shows it."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml
from torch import Tensor

from ...errors import UserError
from ...run_folder import BASELINE_FOLDER, CONFIG_FILE, METRICS_FILE, model_config_file
from ...tasks import task_chosen_by
from ..outputs import read_outputs
from ..record import RunRecord, read_metrics, read_record, without_local_paths

__all__ = ["STATES", "Points", "ShownRun", "open_run", "points"]

Points = list[tuple[float, float]]
Outputs = dict[str, dict[str, Tensor]]

STATES = {"before": "before adaptation", "after": "after adaptation"}
"""What a model of the run is called in figures."""


@dataclass(frozen=True)
class ShownRun:
    """A run and what its folder holds of it.

    Attributes:
        name: What it is called in legends and tables.
        folder: Its folder.
        record: Its record.
        outputs: What the model said of test images, by `before` and `after`.
        baseline: The same of the source-only run beside it; empty where there is none.
    """

    name: str
    folder: Path
    record: RunRecord
    outputs: Outputs = field(default_factory=dict)
    baseline: Outputs = field(default_factory=dict)

    @property
    def title(self) -> str:
        """Which domains the run is about."""
        summary, data = self.record.summary, self.record.training.get("data") or {}
        found = [str(summary.get(name) or _named(data.get(name)) or name) for name in ("source", "target")]
        return " → ".join(found)

    @property
    def method(self) -> str:
        """How task and alignment share a step, and the objectives."""
        coordination = self.record.training.get("coordination") or {}
        method = str(self.record.summary.get("method") or coordination.get("method") or "")
        if method == "metaalign" and coordination.get("direction"):
            method += f", {coordination['direction']}"
        names = list(self.record.summary.get("alignment") or [])
        return f"{method} with {' + '.join(names)}" if names and method != "source_only" else method

    @property
    def labels(self) -> list[str]:
        """The class names."""
        return self.record.labels

    @property
    def models(self) -> dict[str, dict[str, Tensor]]:
        """What each model said of test images, by what it is called; that of the source-only run is the last."""
        found = {word: self.outputs.get(when, {}) for when, word in STATES.items()}
        return {**found, "source alone, as many steps": self.baseline.get("after", {})}

    def scores(self, domain: str) -> tuple[float | None, float | None]:
        """The figure that heads the tables before and after, 0..1; of an unfinished run the first and the last one."""
        name, summary = f"{domain}_{self.record.measure.name}", self.record.summary
        if summary:
            return summary.get(f"{name}_before"), summary.get(f"{name}_after")
        found = [line[name] for line in self.record.evaluations if line.get(name) is not None]
        return (found[0], found[-1]) if found else (None, None)

    @property
    def labelled(self) -> bool:
        """Whether the target's test images have labels."""
        return any(value is not None for value in self.scores("target"))


def open_run(folder: Path, name: str | None = None) -> ShownRun:
    """Read a run, finished or not.

    Args:
        folder: Its folder.
        name: What to call it; by default the folder's name.

    Raises:
        UserError: If the folder holds no run, or a file in it cannot be read.
    """
    if not folder.is_dir():
        raise UserError(f"run {folder}: there is no such folder")
    if not (folder / CONFIG_FILE).is_file() or not (folder / METRICS_FILE).is_file():
        lists = f"`metaalign runs {folder}` lists those below it"
        raise UserError(f"run {folder}: it holds no run, which has {CONFIG_FILE} and {METRICS_FILE}; {lists}")
    record = read_record(folder) if model_config_file(folder).is_file() else _unfinished(folder)
    outputs, baseline = read_outputs(folder), read_outputs(folder / BASELINE_FOLDER)
    return ShownRun(name or folder.resolve().name, folder, record, outputs, baseline)


def _unfinished(folder: Path) -> RunRecord:
    """The record of a run that has saved no model yet."""
    try:
        training = yaml.safe_load((folder / CONFIG_FILE).read_text()) or {}
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"run {folder}: {CONFIG_FILE} cannot be read ({error})") from error
    model = {"architectures": [task_chosen_by(training.get("model") or {}).architectures]}
    record = RunRecord(model, training, {}, read_metrics(folder), read_metrics(folder / BASELINE_FOLDER))
    return replace(record, training=without_local_paths(record.training))


def points(lines: Iterable[dict[str, Any]], key: str, factor: float = 1.0) -> Points:
    """Steps and values of the lines that have a finite number under a key."""
    found = [(line["step"], line.get(key)) for line in lines]
    return [(step, factor * v) for step, v in found if isinstance(v, int | float) and math.isfinite(v)]


def _named(domain: Any) -> str:
    if isinstance(domain, list):
        return " + ".join(filter(None, map(_named, domain)))
    if not isinstance(domain, dict):
        return str(domain or "")
    return str(domain.get("domain") or domain.get("name") or str(domain.get("path") or "").rstrip("/").split("/")[-1])
