"""The command that evaluates a checkpoint on a run's own target."""

from __future__ import annotations

import json
import shlex
from dataclasses import asdict

from ..data import DomainConfig, PairDomains

__all__ = ["evaluate_command"]


def evaluate_command(folder: str, domains: PairDomains | None) -> str | None:
    """A command line that a shell runs as it is.

    Args:
        folder: The checkpoint's folder.
        domains: The domains of the run's pair; None for a pair made by hand.

    Returns:
        `metaalign evaluate FOLDER --data DOMAIN`, with the options that refine the target; None where it is not known.
    """
    if domains is None:
        return None
    target = domains.target
    options = []
    defaults = asdict(DomainConfig.parse(target.short_form()))
    for key, value in asdict(target).items():
        if value != defaults[key] and value is not None:
            options += [f"--data.{key}", json.dumps(value) if isinstance(value, list | bool) else str(value)]
    return shlex.join(["metaalign", "evaluate", folder, "--data", target.short_form(), *options])
