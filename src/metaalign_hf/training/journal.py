"""What a run says while it goes on: lines on the console and in `log.txt`, `metrics.jsonl` and trackers."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from accelerate import Accelerator
from rich.console import Console

from ..configuration import Config
from ..errors import UserError, one_line
from ..run_folder import LOG_FILE, METRICS_FILE

if TYPE_CHECKING:
    from matplotlib.figure import Figure

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
        self.trackers = bool(config.training.trackers)
        self._early: list[str] | None = []

    def say(self, line: str) -> None:
        """Print a line as it is, and keep it in the log file."""
        self.console.print(line, soft_wrap=True, highlight=False, markup=False)
        entry = f"{datetime.now().astimezone().isoformat(timespec='seconds')} {line}\n"
        if self._early is not None:
            self._early.append(entry)
        else:
            self._write(entry)

    def open_log(self) -> None:
        """From now on the run's folder may be written; what was said before is written first."""
        early, self._early = self._early or [], None
        self._write("".join(early))

    def _write(self, text: str) -> None:
        if self.accelerator.is_main_process and text:
            with (Path(self.config.training.output_dir) / LOG_FILE).open("a", encoding="utf-8") as file:
                file.write(text)

    def start_trackers(self) -> None:
        """Open the trackers, which are told the configuration.

        Raises:
            UserError: If one cannot be opened.
        """
        if self.trackers:
            try:
                self.accelerator.init_trackers(
                    "metaalign",
                    config=_flat_scalars(self.config),
                    init_kwargs=self.config.training.tracker_options or {},
                )
            except Exception as error:  # of whatever library
                names = ", ".join(self.config.training.trackers)
                raise UserError(f"training.trackers: {names} could not be started ({one_line(error)})") from error

    def end_trackers(self) -> None:
        """Close the trackers."""
        self._tracked(self.accelerator.end_training)

    def log(self, step: int, values: dict[str, Any]) -> None:
        """Append a line to the metrics, and send its numbers to the trackers."""
        if self.accelerator.is_main_process:
            with (Path(self.config.training.output_dir) / METRICS_FILE).open("a") as file:
                file.write(json.dumps({"step": step, **values}) + "\n")
        numbers = {k: v for k, v in values.items() if isinstance(v, int | float)}
        self._tracked(lambda: self.accelerator.log(numbers, step=step))

    def show(self, step: int, name: str, figure: Figure) -> None:
        """Send a figure to the trackers that take images; called on the main process alone."""

        def send() -> None:
            from matplotlib.backends.backend_agg import FigureCanvasAgg

            canvas = FigureCanvasAgg(figure)
            canvas.draw()
            pixels = np.asarray(canvas.buffer_rgba())[None, :, :, :3].copy()
            for tracker in self.accelerator.trackers:
                if hasattr(tracker, "log_images"):
                    order = {"dataformats": "NHWC"} if tracker.name == "tensorboard" else {}
                    tracker.log_images({name: pixels}, step=step, **order)

        self._tracked(send)

    def _tracked(self, send: Callable[[], None]) -> None:
        """Send something to the trackers. They are a convenience: one that fails never ends a run."""
        if not self.trackers:
            return
        try:
            send()
        except Exception as error:  # of whatever library
            self.trackers = False
            names = ", ".join(self.config.training.trackers)
            self.say(
                f"Warning: the tracker failed ({one_line(error)}); nothing more is sent to {names}, the run goes on, "
                f"and {METRICS_FILE} has every number."
            )


def _flat_scalars(config: Config) -> dict[str, int | float | str | bool]:
    flat: dict[str, int | float | str | bool] = {}
    for section, values in asdict(config).items():
        for key, value in values.items():
            flat[f"{section}.{key}"] = value if isinstance(value, int | float | str | bool) else json.dumps(value)
    return flat
