"""How a run was run: each start of it appends to `run.json` in its folder, which stays on the machine."""

from __future__ import annotations

import json
import os
import platform
import re
import subprocess
import sys
from datetime import datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from ..configuration import Config
from ..disk import write_whole
from ..run_folder import RUN_FILE

__all__ = ["record_session", "versions"]

_PACKAGES = ("metaalign-hf", "torch", "torchvision", "transformers", "timm", "accelerate", "datasets", "numpy")
_TOKEN = re.compile(r"hf_[A-Za-z0-9]{8,}")


def versions() -> dict[str, str]:
    """The versions of what a run depends on."""
    found = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:  # run from its source
            continue
    return found


def record_session(folder: Path, config: Config, accelerator: Accelerator, step: int) -> None:
    """Append this start of the run; the configuration is in `training_config.yaml`.

    Args:
        folder: The run's folder.
        config: The configuration.
        accelerator: Knows device and processes.
        step: The step that it goes on after.
    """
    path = folder / RUN_FILE
    session = {
        "started": datetime.now().astimezone().isoformat(timespec="seconds"),
        "after_step": step,
        "command": [_TOKEN.sub("hf_...", word) for word in sys.argv],
        "folder": os.getcwd(),
        "commit": _commit(),
        "seed": config.training.seed,
        "device": str(accelerator.device),
        "processes": accelerator.num_processes,
        "machine": f"{platform.system()} {platform.machine()}",
        "versions": versions(),
    }
    write_whole(path, json.dumps({"sessions": [*_sessions(path), session]}, indent=2) + "\n")


def _sessions(path: Path) -> list[Any]:
    try:
        found = json.loads(path.read_text())["sessions"]
        return found if isinstance(found, list) else []
    except (OSError, ValueError, KeyError, TypeError):
        return []


def _commit() -> str | None:
    """The git commit of the working directory, with `+` where files differ from it; None outside of a repository."""
    try:
        found = _git("rev-parse", "HEAD")
        if found.returncode != 0:
            return None
        return found.stdout.strip() + ("" if _git("diff-index", "--quiet", "HEAD").returncode == 0 else "+")
    except (OSError, subprocess.SubprocessError):
        return None


def _git(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["git", *arguments], capture_output=True, text=True, check=False, timeout=5)
