"""What the accuracy benchmarks share: runs that are pinned as JSON and never repeated."""

from __future__ import annotations

import json
import platform
import tempfile
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

from metaalign_hf import adapt, load_config
from metaalign_hf.run_folder import with_present_names

ROOT = Path(__file__).parents[1]
only_pinned = False
"""Whether a run that is not pinned is refused instead of made."""
RESULTS = ROOT / "benchmarks" / "results"


def machine() -> dict[str, str]:
    """What a figure depends on besides the code."""
    import torch

    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"{platform.machine()} CPU"
    libraries = {name: version(name) for name in ("torch", "transformers", "timm", "accelerate")}
    return {"device": device, "threads": str(torch.get_num_threads()), "python": platform.python_version(), **libraries}


def pinned_run(
    name: str, config_file: Path, overrides: dict[str, Any], pretrained: Callable[[], Path] | None = None
) -> dict[str, Any]:
    """The summary of a run; read from `results/NAME.json` where the same run was made before.

    Args:
        name: Name of the run; may hold slashes.
        config_file: Configuration.
        overrides: Dotted keys that differ from it.
        pretrained: Says where pretrained weights are; the place does not identify the run.

    Returns:
        The run's `summary.json`, its evaluations and the overrides.
    """
    path = RESULTS / f"{name}.json"
    if path.exists():
        found = json.loads(path.read_text())
        if found["overrides"] == overrides:
            return with_present_names(found)
    may_run(name)
    with tempfile.TemporaryDirectory() as folder:
        places = {"training.output_dir": f"{folder}/run"}
        if pretrained is not None:
            places["model.pretrained"] = str(pretrained())
        config = load_config(config_file, {**overrides, **places})
        summary = adapt(config).to_dict()
        lines = map(json.loads, Path(folder, "run", "metrics.jsonl").read_text().splitlines())
        evaluations = [line for line in lines if "evaluation" in line]
    for key in ("output_dir", "notes", "evaluate_command"):
        summary.pop(key)
    path.parent.mkdir(parents=True, exist_ok=True)
    found = {"config": config_file.name, "overrides": overrides, **summary, "evaluations": evaluations}
    path.write_text(json.dumps(found, indent=1) + "\n")
    return found


def may_run(name: str) -> None:
    """Raise SystemExit where runs may not be made."""
    if only_pinned:
        raise SystemExit(f"the run {name} is not pinned")


class PinnedRows:
    """Figures of short runs, one JSON line each, that are never made twice.

    Args:
        folder: Holds the lines; every `*.jsonl` in it is read.
        name: The file of new lines, so that several processes write apart.
    """

    def __init__(self, folder: Path, name: str) -> None:
        self.path = folder / f"{name}.jsonl"
        self.found: dict[tuple[Any, ...], dict[str, float]] = {}
        for path in sorted(folder.glob("*.jsonl")):
            for line in path.read_text().splitlines():
                row = json.loads(line)
                self.found[tuple(row.pop("run"))] = row

    def __call__(self, key: tuple[Any, ...], make: Callable[[], dict[str, float]]) -> dict[str, float]:
        """The figures of the run with this key, rounded to five places; `make` makes them where they are missing."""
        if key not in self.found:
            may_run(str(key))
            self.found[key] = {name: round(float(value), 5) for name, value in make().items()}
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a") as file:
                file.write(json.dumps({"run": key, **self.found[key]}) + "\n")
        return self.found[key]
