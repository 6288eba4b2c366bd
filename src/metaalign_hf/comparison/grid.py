"""A grid of runs, one for each method and seed, each in a folder of its own; what is done is never done again."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..configuration import Config, parse_config
from ..errors import UserError
from ..run_folder import SUMMARY_FILE, with_present_names
from ..tasks import Measure, task_named
from ..training import adapt
from ..training.given import recorded_config
from ..training.run_folder import differences
from .methods import Method

__all__ = ["Grid", "run_grid"]


@dataclass
class Grid:
    """The runs of a comparison.

    Attributes:
        methods: Names of the methods; the first one is what the others are compared with.
        seeds: The seeds.
        summaries: The summary of each run by method and seed.
    """

    methods: list[str]
    seeds: list[int]
    summaries: dict[tuple[str, int], dict[str, Any]] = field(default_factory=dict)

    @property
    def measure(self) -> Measure:
        """The figure that heads the tables."""
        first = next(iter(self.summaries.values()))
        return task_named(first.get("task", "image-classification")).measure(first.get("metric"))

    def figures(self, method: str, key: str) -> dict[int, float]:
        """A figure of a method's summaries by seed, in percent; without the runs that do not have it."""
        found = {seed: self.summaries.get((method, seed), {}).get(key) for seed in self.seeds}
        return {seed: 100 * value for seed, value in found.items() if value is not None}


def run_grid(
    base: Sequence[str], methods: Sequence[Method], seeds: Sequence[int], folder: Path, say: Callable[[str], None]
) -> Grid:
    """Make the runs that are missing; an interrupted one goes on, a finished one is read.

    Every configuration, and what the folders hold, is checked before the first run begins.

    Args:
        base: Options of `metaalign train` that all runs share.
        methods: The methods.
        seeds: The seeds.
        folder: Each run is in `METHOD/seed-N` of it.
        say: Takes a line for every run.

    Raises:
        UserError: If a configuration is wrong, or a folder holds another run.
    """
    planned = {
        (method.name, seed): _config(base, method, seed, folder / method.name / f"seed-{seed}")
        for seed in seeds
        for method in methods
    }
    done = {key: _finished(config) for key, config in planned.items()}
    grid = Grid([method.name for method in methods], list(seeds))
    for number, (key, config) in enumerate(planned.items(), 1):
        name, seed = key
        found = done[key]
        say(f"run {number} of {len(planned)}: {name}, seed {seed}{', done before' if found else ''}")
        grid.summaries[key] = found or with_present_names(adapt(config).to_dict())
    return grid


def _config(base: Sequence[str], method: Method, seed: int, folder: Path) -> Config:
    own = ["--training.output_dir", str(folder), "--training.seed", str(seed), "--training.resume", "auto"]
    try:
        return parse_config([*base, *method.options, *own])
    except UserError as error:
        raise UserError(f"method {method.name}: {error}") from error


def _finished(config: Config) -> dict[str, Any] | None:
    """The summary of a run that is done; None where it is to be made, or to go on."""
    folder = Path(config.training.output_dir)
    if not (folder / SUMMARY_FILE).is_file():
        return None
    if told := differences(config, recorded_config(config, None, None)):
        raise UserError(f"--output: {folder} holds a run with {told}; choose another folder, or remove it")
    return with_present_names(json.loads((folder / SUMMARY_FILE).read_text()))
