"""`metaalign runs`."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..errors import UserError
from ..run_folder import CHECKPOINTS_FOLDER, CONFIG_FILE, METRICS_FILE, SUMMARY_FILE, with_present_names
from ..run_lock import running
from .options import Parser, table_console

__all__ = ["Run", "find_runs", "runs"]


def runs(arguments: list[str]) -> None:
    """List the runs under a folder.

    Args:
        arguments: The words after `metaalign runs`.

    Raises:
        UserError: If there are none.
    """
    parser = Parser("runs", "List the runs under a folder, the newest first.", on_checkpoint=False)
    parser.add_argument("folder", type=Path, help="a folder of runs, or of folders of runs")
    parser.add_argument("--json", action="store_true", help="print one JSON object a line instead of a table")
    options = parser.read(arguments)
    if not options.folder.is_dir():
        raise UserError(f"folder {options.folder} does not exist")
    found = find_runs(options.folder)
    if not found:
        raise UserError(f"no run in {options.folder}: a run's folder holds {CONFIG_FILE}")
    if options.json:
        for run in found:
            print(json.dumps(asdict(run)))
        return
    from rich.table import Table

    table = Table()
    table.add_column("run", overflow="fold")
    for name in ("source -> target", "method", "state"):
        table.add_column(name)
    for name in ("measure", "before", "after", "seed"):
        table.add_column(name, justify="right" if name != "measure" else "left")
    for run in found:
        # Without a measure the run is not finished.
        none = "no labels" if run.measure else ""
        shares = [none if x is None else f"{100 * x:.1f} %" for x in (run.target_before, run.target_after)]
        method = " + ".join([run.method, *(run.alignment if run.method != "source_only" else [])])
        table.add_row(
            str(Path(run.name).relative_to(options.folder)),
            f"{run.source} -> {run.target}",
            method,
            run.state,
            run.measure,
            *shares,
            str(run.seed),
        )
    table_console().print(table)


@dataclass
class Run:
    """A run, as its folder describes it.

    Attributes:
        name: Its folder, as it was found.
        source: Name of the source.
        target: Name of the target.
        method: How task and alignment share a step.
        alignment: Names of the objectives.
        seed: Its seed.
        state: `finished`, `running`, or `stopped`, and after how many steps.
        measure: Name of the target's figure; empty while there is none.
        target_before: The figure at the end of the source phase, 0..1.
        target_after: The same at the end.
    """

    name: str
    source: str
    target: str
    method: str
    alignment: list[str]
    seed: Any
    state: str
    measure: str = ""
    target_before: float | None = None
    target_after: float | None = None


def find_runs(folder: Path) -> list[Run]:
    """The runs in a folder, at most three levels deep, the newest first; what is not readable is left out."""
    places = {path.parent for depth in range(4) for path in folder.glob("*/" * depth + CONFIG_FILE)}
    found = []
    for place in sorted(places, key=lambda path: (path / CONFIG_FILE).stat().st_mtime, reverse=True):
        try:
            found.append(_read(place))
        except (OSError, ValueError, KeyError, TypeError, AttributeError, UserError):
            continue
    return found


def _read(folder: Path) -> Run:
    import yaml

    from ..text_files import read_text, read_yaml

    try:
        config = read_yaml(read_text(folder / CONFIG_FILE, "the configuration"), "the configuration")
    except yaml.YAMLError as error:
        raise UserError(str(error)) from error
    training = config["training"]
    total = training["source_steps"] + training["max_steps"]
    common = {"name": str(folder), "method": config["coordination"]["method"], "seed": training["seed"]}
    if (folder / SUMMARY_FILE).is_file():
        summary = with_present_names(json.loads((folder / SUMMARY_FILE).read_text()))
        measure = str(summary.get("metric", "accuracy"))
        return Run(
            **common,
            source=summary["source"],
            target=summary["target"],
            alignment=list(summary["alignment"]),
            state=f"finished, {total} steps",
            measure=measure,
            target_before=summary.get(f"target_{measure}_before"),
            target_after=summary.get(f"target_{measure}_after"),
        )
    state = "running" if running(folder) is not None else "stopped"
    saved = [path.name[5:] for path in (folder / CHECKPOINTS_FOLDER).glob("step-*") if path.name[5:].isdigit()]
    kept = f", checkpoint at {max(map(int, saved))}" if saved else ", no checkpoint"
    return Run(
        **common,
        source=_domain(config["data"]["source"]),
        target=_domain(config["data"]["target"]),
        alignment=_names(config["model"]["alignment"]),
        state=f"{state} after {_last_step(folder)} of {total} steps{kept}",
    )


def _last_step(folder: Path) -> int:
    try:
        with (folder / METRICS_FILE).open("rb") as file:
            file.seek(max(0, file.seek(0, 2) - 65_536))
            rows = file.read().splitlines()
    except OSError:
        return 0
    for row in reversed(rows):
        try:
            return int(json.loads(row)["step"])
        except (ValueError, KeyError, TypeError):
            continue
    return 0


def _domain(values: Any) -> str:
    if isinstance(values, list):
        return " + ".join(map(_domain, values))
    if values is None or values.get("kind") is None:
        return "given"
    from ..configuration import DomainConfig

    return DomainConfig(**{**asdict(DomainConfig()), **values}).describe()


def _names(alignment: Any) -> list[str]:
    entries = alignment if isinstance(alignment, list) else [alignment]
    names = [entry.get("name") if isinstance(entry, dict) else entry for entry in entries]
    return [str(name) for name in names if name is not None]
