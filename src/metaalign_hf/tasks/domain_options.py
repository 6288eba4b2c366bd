"""The command that evaluates a checkpoint on a run's own target."""

from __future__ import annotations

import json
from dataclasses import asdict

from ..data import DomainConfig
from .summary import quoted

__all__ = ["evaluate_command"]


def evaluate_command(folder: str, target: DomainConfig) -> str:
    """A command line that a shell runs as it is.

    Args:
        folder: The checkpoint's folder.
        target: The domain to evaluate on.

    Returns:
        `metaalign evaluate FOLDER --data DOMAIN`, with the options that refine the domain.
    """
    options = []
    defaults = asdict(DomainConfig.parse(target.short_form()))
    for key, value in asdict(target).items():
        if value != defaults[key] and value is not None:
            options += [f"--data.{key}", json.dumps(value) if isinstance(value, list) else str(value)]
    return quoted("metaalign", "evaluate", folder, "--data", target.short_form(), *options)
