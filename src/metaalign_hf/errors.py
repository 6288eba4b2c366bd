"""The one error that a user of the command line or the Python API is meant to read, and what others say in one line."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches

__all__ = ["UserError", "brief", "did_you_mean", "one_line"]


class UserError(ValueError):
    """Bad input, told in one line: what is wrong, where (file, row, key), and what would be right.

    The command line prints the line and exits with code 2, without a traceback.
    """


def one_line(error: BaseException, first: bool = False) -> str:
    """What an error says, in one line; its class where it says nothing.

    Args:
        error: Any error, such as one of a library.
        first: Its first line alone, where the rest is for developers.
    """
    lines = str(error).strip().splitlines()
    return (lines[0].strip() if first and lines else " ".join(" ".join(lines).split())) or type(error).__name__


def brief(value: object, most: int = 200) -> str:
    """A value as Python writes it, cut off after `most` characters."""
    text = repr(value)
    return text if len(text) <= most else f"{text[:most]}..."


def did_you_mean(name: str, known: Iterable[str], otherwise: str = "", n: int = 1, cutoff: float = 0.6) -> str:
    """A question for a name that is unknown, such as `did you mean resnet18 or resnet34?`.

    Args:
        name: The unknown name.
        known: All names.
        otherwise: What is said where none of them is like it.
        n: How many are named at most.
        cutoff: How like it they must be, in 0..1.
    """
    near = get_close_matches(name, list(known), n=n, cutoff=cutoff)
    return f"did you mean {' or '.join(near)}?" if near else otherwise
