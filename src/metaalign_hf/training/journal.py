"""What a run says while it goes on: lines on the console, `metrics.jsonl` and trackers."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from rich.console import Console

from ..configuration import Config
from ..run_folder import METRICS_FILE

__all__ = ["Journal"]


class Journal:
    """Writes from the main process alone; every process may call it.

    Args:
        config: The whole configuration.
        accelerator: Knows the processes and the trackers.
        console: Where lines go, which is quiet on the other processes.
    """

    def __init__(self, config: Config, accelerator: Accelerator, console: Console) -> None:
        self.config, self.accelerator, self.console = config, accelerator, console

    def say(self, line: str) -> None:
        """Print a line as it is."""
        self.console.print(line, soft_wrap=True, highlight=False, markup=False)

    def start_trackers(self) -> None:
        """Open the trackers, which are told the configuration."""
        if self.config.training.trackers:
            self.accelerator.init_trackers("metaalign", config=_flat_scalars(self.config))

    def end_trackers(self) -> None:
        """Close the trackers."""
        if self.config.training.trackers:
            self.accelerator.end_training()

    def log(self, step: int, values: dict[str, Any]) -> None:
        """Append a line to the metrics, and send its numbers to the trackers."""
        training = self.config.training
        if self.accelerator.is_main_process:
            with (Path(training.output_dir) / METRICS_FILE).open("a") as file:
                file.write(json.dumps({"step": step, **values}) + "\n")
        if training.trackers:
            self.accelerator.log({k: v for k, v in values.items() if isinstance(v, int | float)}, step=step)


def _flat_scalars(config: Config) -> dict[str, int | float | str | bool]:
    flat: dict[str, int | float | str | bool] = {}
    for section, values in asdict(config).items():
        for key, value in values.items():
            flat[f"{section}.{key}"] = value if isinstance(value, int | float | str | bool) else json.dumps(value)
    return flat
