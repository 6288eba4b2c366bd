"""Stopping a run from outside: a signal, or its own time limit."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

__all__ = ["TIME_IS_UP", "Interruption", "RunInterrupted", "told_interruption"]

TIME_IS_UP = 124
"""Exit code of a run that reached `training.max_time`, as of the program `timeout`."""

_SIGNALS = (signal.SIGINT, signal.SIGTERM, *((signal.SIGHUP,) if hasattr(signal, "SIGHUP") else ()))
# A terminal and a launcher may both hand on the same Ctrl-C, within milliseconds: that is one.
_APART = 1.0


class RunInterrupted(SystemExit):
    """The run was asked to stop, and has saved what it had.

    It is a `SystemExit`: a script that does not catch it ends with the code, without a traceback.

    Args:
        code: 130, 143 or 129 after SIGINT, SIGTERM or SIGHUP, and 124 at the time limit.
        said: What there is to say of it, in a line.
    """

    def __init__(self, code: int, said: str) -> None:
        super().__init__(code)
        self.said = said


@contextmanager
def told_interruption() -> Iterator[None]:
    """Print what there is to say of an interruption that goes through here; of several processes one prints."""
    try:
        yield
    except RunInterrupted as end:
        if os.environ.get("RANK", "0") == "0":
            print(f"metaalign: {end.said}", file=sys.stderr)
        raise


class Interruption:
    """Hears signals while `heard`. The first one is answered at the next moment that suits; the second one at once.

    Args:
        seconds: Time limit from now on; None for none.
    """

    def __init__(self, seconds: float | None = None) -> None:
        self.signal: int | None = None
        self._ends = None if seconds is None else time.monotonic() + seconds
        self._first = 0.0
        self._patient = False
        self._process = os.getpid()

    @property
    def code(self) -> int:
        """The exit code that is called for; 0 while nothing is."""
        if self.signal is not None:
            return 128 + self.signal
        return TIME_IS_UP if self._ends is not None and time.monotonic() >= self._ends else 0

    @contextmanager
    def heard(self) -> Iterator[None]:
        """Take the signals over; outside `patient` they end the run at once, with a line."""
        if threading.current_thread() is not threading.main_thread():
            yield  # Python lets the main thread alone set handlers
            return
        before = {number: signal.getsignal(number) for number in _SIGNALS}
        # What was ignored, as SIGHUP under nohup, stays ignored.
        taken = [number for number, handler in before.items() if handler is not signal.SIG_IGN]
        for number in taken:
            signal.signal(number, self._hear)
        try:
            yield
        finally:
            for number in taken:
                signal.signal(number, before[number] or signal.SIG_DFL)

    @contextmanager
    def patient(self) -> Iterator[None]:
        """Inside, the first signal is only noted: whoever works here looks at `code` between two steps."""
        self._patient = True
        try:
            yield
        finally:
            self._patient = False

    def _hear(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._process:  # a data worker: its parent tells it when to end
            if number != signal.SIGINT:
                os._exit(128 + number)
            return
        now = time.monotonic()
        if self.signal is None:
            self.signal, self._first = number, now
            if not self._patient:
                raise RunInterrupted(self.code, "stopped between trainings: there is nothing to save")
            name = signal.Signals(number).name
            _write(f"metaalign: {name}: finishing this step and saving; once more to stop at once\n")
        elif now - self._first >= _APART:
            # Not an exception, which could be caught, or wait for a call that does not return.
            _write("\x1b[?25h" if sys.stderr.isatty() else "")
            _write("metaalign: stopped at once; the last checkpoint is whole\n")
            os._exit(128 + number)


def _write(text: str) -> None:
    """To standard error, also in the middle of somebody's print."""
    os.write(2, text.encode())
