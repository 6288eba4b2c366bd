"""What is going on: live bars on a terminal, elsewhere a line every ten seconds.

A command or a run opens a display; whatever works under it, from the training loop to a validator, opens a `stage`, or
hands what it goes through to `track`. Without a display both are silent, so a library call prints nothing.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TypeVar

from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn
from transformers.utils.logging import (
    disable_progress_bar,
    enable_progress_bar,
    get_verbosity,
    is_progress_bar_enabled,
    set_verbosity,
    set_verbosity_error,
)

__all__ = ["Stage", "display", "no_hub_progress_bars", "no_model_progress_bars", "quiet_loading", "stage", "track"]

T = TypeVar("T")

SECONDS = 10.0
"""Between two lines, where there is no terminal."""


@dataclass
class Stage:
    """Something that takes a while.

    Attributes:
        title: What is being done.
        total: How many units there are; None where nobody knows.
        unit: What they are.
        done: How many are done.
        images: Images seen since the stage began here.
        figures: Makes figures to show, such as losses; asked only when they are shown.
    """

    title: str
    total: int | None = None
    unit: str = "images"
    done: int = 0
    images: int = 0
    figures: Callable[[], Mapping[str, float]] = dict
    _first: int = field(init=False)
    _started: float = field(init=False, default_factory=time.perf_counter)
    _elsewhere: float = field(init=False, default=0.0)

    def __post_init__(self) -> None:
        self._first = self.done

    def advance(self, count: int = 1, images: int | None = None) -> None:
        """Add to the units done, and to the images that they hold; by default the units are images."""
        self.done += count
        self.images += count if images is None else images

    def note(self) -> str:
        """Figures, images a second (time in inner stages does not count) and the time left (it does)."""
        elapsed, done = time.perf_counter() - self._started, self.done - self._first
        words = [f"{name.replace('_', ' ')} {value:.3g}" for name, value in self.figures().items()]
        if self.images:
            words.append(f"{self.images / max(elapsed - self._elsewhere, 1e-9):.3g} images/s")
        if self.total is not None and done:
            words.append(f"{_clock(elapsed / done * (self.total - self.done))} left")
        return ", ".join(words)

    def line(self) -> str:
        """Everything in one line."""
        counted = "" if self.total is None else f" {self.done} of {self.total} {self.unit}"
        note = self.note()
        if self.total is None and not note:
            note = f"{_clock(time.perf_counter() - self._started)} so far"
        return f"{self.title}:{counted}{',' if counted and note else ''}{' ' if note else ''}{note}"


class _Display:
    """Shows the open stages until it is closed: all of them as bars, or the innermost one as lines."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.open: list[tuple[Stage, TaskID]] = []
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[note]}"),
        )
        # Answers go to standard output, and stay there where the bars are on standard error.
        own = not console.stderr
        self.bars = Progress(
            *columns,
            console=console,
            transient=True,
            redirect_stdout=own,
            redirect_stderr=own,
            disable=not console.is_terminal,
        )
        self.closed = threading.Event()
        # A thread of its own: a single step, or an export, may take longer than the time between two lines.
        self.thread = threading.Thread(target=self._tick, daemon=True)

    def _tick(self) -> None:
        while not self.closed.wait(0.25 if self.console.is_terminal else SECONDS):
            opened = list(self.open)
            if self.console.is_terminal:
                for shown, bar in opened:
                    if bar in self.bars.task_ids:
                        self.bars.update(bar, completed=shown.done, note=shown.note())
            elif opened:
                self.console.print(opened[-1][0].line(), soft_wrap=True, highlight=False, markup=False)


_current: _Display | None = None


@contextmanager
def display(console: Console | None = None) -> Iterator[None]:
    """Show the stages that are opened inside. A display inside another one changes nothing.

    Args:
        console: Where to; by default standard error.
    """
    global _current
    if _current is not None or (console is not None and console.quiet):
        yield
        return
    _current = shown = _Display(console or Console(stderr=True))
    try:
        with shown.bars:
            shown.thread.start()
            yield
    finally:
        _current = None
        shown.closed.set()
        shown.thread.join()


@contextmanager
def stage(title: str, total: int | None = None, unit: str = "images", done: int = 0) -> Iterator[Stage]:
    """Open a stage, which is shown until it ends.

    Args:
        title: What is being done, such as `evaluating source`.
        total: How many units there are.
        unit: What they are.
        done: How many were done before.
    """
    opened, shown = Stage(title, total, unit, done), _current
    if shown is None:
        yield opened
        return
    bar = shown.bars.add_task(title, total=total, completed=done, note="")
    shown.open.append((opened, bar))
    try:
        yield opened
    finally:
        shown.open.remove((opened, bar))
        shown.bars.remove_task(bar)
        for outer, _ in shown.open:
            outer._elsewhere += time.perf_counter() - opened._started - opened._elsewhere


def track(
    items: Iterable[T], title: str, total: int | None, unit: str = "images", count: Callable[[T], int] = lambda _: 1
) -> Iterator[T]:
    """The same items, shown as a stage while they are gone through.

    Args:
        items: Such as the batches of an evaluation.
        title: What is being done.
        total: How many units they hold together.
        unit: What the units are; images are counted by the second.
        count: How many units an item holds.
    """
    with stage(title, total, unit) as opened:
        for item in items:
            yield item
            opened.advance(count(item), count(item) if unit == "images" else 0)


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


@contextmanager
def no_model_progress_bars() -> Iterator[None]:
    """Reading or writing the one file of a model needs no bar of its own."""
    shown, hidden_uploads = is_progress_bar_enabled(), are_progress_bars_disabled()
    disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            enable_progress_bar()  # which shows the bars of huggingface_hub as well
        if hidden_uploads:
            disable_progress_bars()


@contextmanager
def quiet_loading() -> Iterator[None]:
    """Transformers' table of tensors is in the way where the caller tells in one line what a checkpoint lacks."""
    verbosity = get_verbosity()
    set_verbosity_error()
    try:
        with no_model_progress_bars():
            yield
    finally:
        set_verbosity(verbosity)


@contextmanager
def no_hub_progress_bars() -> Iterator[None]:
    """An upload in the background must not draw over the training's own bar."""
    hidden = are_progress_bars_disabled()
    disable_progress_bars()
    try:
        yield
    finally:
        if not hidden:
            enable_progress_bars()
