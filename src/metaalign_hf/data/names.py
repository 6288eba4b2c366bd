"""Display names that are different for each domain of a run."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from ..configuration import DomainConfig

__all__ = ["named_apart"]

_SETTINGS = ("config_name", "train_split", "revision", "root", "kind")


def named_apart(domains: Sequence[DomainConfig]) -> list[DomainConfig]:
    """The same domains; those whose names would be the same are given the names of what tells them apart.

    Of `day/coco/ann.json` and `night/coco/ann.json` that is the nearest parent folder that differs: `day` and `night`.
    Ends of the paths that differ, or else a setting such as the split, serve where no folder does. A name that the
    user gave stays.

    Args:
        domains: All domains of a run.

    Returns:
        The domains in the same order.
    """
    named = list(domains)
    shown = [domain.describe() for domain in domains]
    for name in dict.fromkeys(shown):
        same = [index for index, other in enumerate(shown) if other == name and domains[index].name is None]
        found = _apart([domains[index] for index in same], set(shown)) if shown.count(name) > 1 and same else None
        for index, distinct in zip(same, found or [], strict=bool(found)):
            named[index] = replace(domains[index], name=distinct)
    return named


def _apart(domains: Sequence[DomainConfig], taken: set[str]) -> list[str] | None:
    """A different name for each, none of them taken; None where nothing tells them apart."""
    paths = [_parts(domain) for domain in domains]
    deepest = min(len(parts) for parts in paths)
    folders = [[parts[-depth] for parts in paths] for depth in range(2, deepest + 1)]
    ends = [["/".join(parts[-depth:]) for parts in paths] for depth in range(2, deepest + 1)]
    settings = [[f"{domain.describe()} ({getattr(domain, key)})" for domain in domains] for key in _SETTINGS]
    # `org/name` of a data set is one name; its last part alone does not name a folder.
    choices = (
        [*ends, *settings] if any(domain.kind == "dataset" for domain in domains) else [*folders, *ends, *settings]
    )
    return next((names for names in choices if len({*names} - taken) == len(domains)), None)


def _parts(domain: DomainConfig) -> tuple[str, ...]:
    place = domain.path or domain.annotations or ""
    if domain.kind == "dataset" and not os.path.exists(os.path.expanduser(place)):
        return Path(place).parts
    return Path(os.path.abspath(os.path.expanduser(place))).parts[1:]
