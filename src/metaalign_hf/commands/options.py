"""Arguments of the commands, and checks before a model is loaded."""

from __future__ import annotations

import argparse
import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from ..disk import writing
from ..errors import UserError, did_you_mean
from ..tasks import TaskKind, known_tasks

if TYPE_CHECKING:
    from rich.console import Console

__all__ = [
    "TAKES",
    "Parser",
    "at_least_one",
    "default_batch_sizes",
    "refuse_existing",
    "refuse_options_of_others",
    "share",
    "split_off",
    "split_off_settings",
    "table_console",
]


class Parser(argparse.ArgumentParser):
    """Arguments of a command, by default one on a checkpoint; wrong ones raise `UserError`."""

    def __init__(self, command: str, description: str, on_checkpoint: bool = True) -> None:
        super().__init__(prog=f"metaalign {command}", description=description)
        if on_checkpoint:
            self.add_argument("checkpoint", help="folder, Hub id or id@revision of a checkpoint")

    def error(self, message: str) -> NoReturn:
        """Raise the message that argparse would print."""
        raise UserError(f"{self.prog.removeprefix('metaalign ')}: {message}; see {self.prog} --help")

    def read(self, arguments: list[str]) -> argparse.Namespace:
        """The options.

        Raises:
            UserError: If an argument is missing, unknown or wrong.
        """
        # Unknown options first: one of them may be a misspelt required option, which argparse would report as missing.
        known = [option for action in self._actions for option in action.option_strings]
        for word in arguments:
            name = word.partition("=")[0]
            if name == "--":
                break
            if name.startswith("--") and not any(option.startswith(name) for option in known):
                hint = did_you_mean(name, known)
                self.error(f"unknown option {name}{f' ({hint})' if hint else ''}")
        return self.parse_args(arguments)


def at_least_one(text: str) -> int:
    """An argparse type: a whole number, 1 or more."""
    try:
        number = int(text)
    except ValueError:
        number = 0
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text} was given: it must be a whole number, 1 or more")
    return number


def default_batch_sizes() -> str:
    """The batch size where none is given."""
    first, *others = known_tasks()
    return ", ".join([str(first.batch_size), *(f"or {kind.batch_size} for {kind.noun}s" for kind in others)])


def share(text: str) -> float:
    """An argparse type: a number in 0..1."""
    try:
        number = float(text)
    except ValueError:
        number = -1.0
    if not 0 <= number <= 1:
        raise argparse.ArgumentTypeError(f"{text} was given: it must be a number from 0 to 1")
    return number


TAKES: dict[str, dict[str, Any]] = {
    "count": {"type": at_least_one, "metavar": "N"},
    "share": {"type": share},
    "folder": {"type": Path},
    "nothing": {"action": "store_true", "default": None},
}
"""How argparse reads the options of tasks."""


def refuse_options_of_others(own: TaskKind, options: argparse.Namespace) -> None:
    """Refuse options that another task than the checkpoint's knows.

    Raises:
        UserError: If one was given.
    """
    for kind in known_tasks():
        for option in kind.options:
            if kind != own and getattr(options, option.name, None) is not None:
                raise UserError(f"{option.flag} is for {kind.noun}s; {options.checkpoint} is a {own.noun}")


def split_off(arguments: list[str], prefix: str | tuple[str, ...]) -> tuple[list[str], list[str]]:
    """Separate the options that start with `prefix` (or one of several), each with its value, from the rest."""
    return _split(arguments, lambda word: word.startswith(prefix))


def split_off_settings(arguments: list[str], *also: str) -> tuple[list[str], list[str]]:
    """Separate options with a dot in their name, which are entries of a configuration, and `also`, from the rest."""

    def wanted(word: str) -> bool:
        name = word.partition("=")[0]
        return name.startswith("--") and ("." in name or name in also)

    return _split(arguments, wanted)


def _split(arguments: list[str], wanted: Callable[[str], bool]) -> tuple[list[str], list[str]]:
    kept, split = [], []
    rest = list(arguments)
    while rest:
        word = rest.pop(0)
        if wanted(word):
            split += [word] if "=" in word or not rest else [word, rest.pop(0)]
        else:
            kept.append(word)
    return kept, split


def refuse_existing(path: Path) -> None:
    """Refuse to overwrite a file or a folder with something in it, and make the folder that it goes into.

    Raises:
        UserError: If it exists, or its folder cannot be made.
    """
    with writing(path):
        if path.is_symlink() or (path.exists() and not (path.is_dir() and not any(path.iterdir()))):
            raise UserError(f"{path} exists; choose another name, or remove it first")
        try:
            path.absolute().parent.mkdir(parents=True, exist_ok=True)
        except FileExistsError as error:
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR)) from error


def table_console() -> Console:
    """Where tables are printed: in a file or a pipe they are not cut to a terminal that is not there."""
    from rich.console import Console

    console = Console()
    return console if console.is_terminal else Console(width=200)
