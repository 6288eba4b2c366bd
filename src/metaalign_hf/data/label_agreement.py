"""Class names of two domains that do not agree, in one line that says what to do."""

from __future__ import annotations

from collections.abc import Sequence
from difflib import get_close_matches

from ..errors import UserError

__all__ = ["UNKNOWN", "differing_classes", "open_names", "some"]


UNKNOWN = "unknown"
"""What images are called whose class a model does not know; under `label_policy: open` a class, the last one."""


def differing_classes(
    source: tuple[str, Sequence[str]], target: tuple[str, Sequence[str]], enough: int, opens: bool
) -> UserError:
    """The error for a source and a target whose class names differ.

    Args:
        source: Name of the source and its class names.
        target: The same of the target.
        enough: As many common classes make a pair under `label_policy: shared`.
        opens: Whether `label_policy: open` is possible.
    """
    shared = [name for name in source[1] if name in target[1]]
    only_source = [name for name in source[1] if name not in target[1]]
    only_target = [name for name in target[1] if name not in source[1]]
    parts = [
        f"{domain} lacks {some([repr(name) for name in names])}"
        for domain, names in ((target[0], only_source), (source[0], only_target))
        if names
    ]
    spelled = {_plain(name): name for name in only_target}
    alike = [f"{name!r} and {spelled[_plain(name)]!r}" for name in only_source if _plain(name) in spelled]
    if not alike:
        near = ((name, get_close_matches(name, only_target, n=1, cutoff=0.8)) for name in only_source)
        alike = [f"{name!r} and {found[0]!r}" for name, found in near if found]
    if alike:
        advice = f"rename what differs in spelling only ({some(alike)})"
    elif len(shared) >= enough:
        keep = f", or source to keep the {len(source[1])} of {source[0]}" if only_source else ""
        keep += f", or open to count {target[0]}'s other classes as {UNKNOWN}" if only_target and opens else ""
        advice = f"use data.label_policy: shared to keep the {len(shared)} classes of both{keep}"
    else:
        advice = "the two domains need the same class names"
    counts = f"{source[0]} has {len(source[1])} classes, {target[0]} {len(target[1])}"
    return UserError(f"class names differ: {counts}: {'; '.join(parts)}; {advice}")


def open_names(names: Sequence[str], labels: Sequence[str]) -> list[str]:
    """Class names of a domain, with `unknown` for those that are not among the labels, if that is one of these.

    Args:
        names: The domain's class names.
        labels: Those of the model or pair.
    """
    return [UNKNOWN if UNKNOWN in labels and name not in labels else name for name in names]


def some(names: Sequence[str], most: int = 5) -> str:
    """The first names, and how many more there are."""
    listed = ", ".join(str(name) for name in list(names)[:most])
    return f"{listed} and {len(names) - most} more" if len(names) > most else listed


def _plain(name: str) -> str:
    return "".join(character for character in name.lower() if character.isalnum())
