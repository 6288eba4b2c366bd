"""Side by side with other libraries: the pairs, network, budget and seeds of `accuracy.py`, through theirs and ours.

    python benchmarks/peers.py                        # makes an environment for each library, then runs and tables
    python benchmarks/peers.py --environments FOLDER  # takes the environments `FOLDER/LIBRARY` where they exist

Each library trains the small network of `frozen.py` for 500 steps of SGD on the same frozen features, with its own
losses, weights and steps, the same discriminator and the same schedule of the learning rate. Its learning rate is
chosen as in `accuracy.py`, without target labels, from one more: other libraries weight their losses differently. Our
rows are those of `accuracy.py`. Score: mean over classes of the target's recall on its test split, of the last network,
in points.

`--only seconds` and `--only memory` pin what an ordinary network costs, in a process each: a ResNet-18 from scratch on
images of 64 pixels, 32 of either domain in a step, after two steps to warm up. Time is the median of rounds in which
the libraries take turns; memory the peak of what is resident in four steps, less what was there before.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import sysconfig
import tempfile
import venv
from functools import cache
from itertools import chain
from pathlib import Path
from statistics import median
from typing import Any

import torch
from rich import box
from rich.table import Table
from safetensors.torch import save_file

import accuracy
from accuracy import CHOICE_SEEDS, FAMILIES, PAIRS, PAIRS_SHORT, SEEDS, SHORT, principal
from frozen_features import frozen_features
from metaalign_hf.intervals import with_interval
from readme import publish
from runs import RESULTS, PinnedRows, machine, may_run

REQUIREMENTS = {
    "pytorch-adapt": ("pytorch-adapt==0.0.83", "setuptools<81"),
    "skada": ("skada[deep]==0.6.0",),
}
"""What pip installs; pytorch-adapt needs the `pkg_resources` of an older setuptools."""
VERSIONS = ("torch", "torchmetrics", "pytorch-adapt", "skada", "skorch")
OBJECTIVES = ("dann", "cdan", "mcc")
RATES = (*accuracy.RATES, 0.1)
OURS = ("joint", "remembered")
COSTS = {"seconds": ("seconds_per_step", 5, 12), "memory": ("peak_mib", 1, 4)}
"""By the file that pins it, the figure of an ordinary network, and its rounds and steps."""
FOLDER = RESULTS / "peers"
WORKER = Path(__file__).with_name("peers_worker.py")

Key = tuple[Any, ...]


def environment(library: str, folder: Path) -> Path:
    """The Python of a library's environment, which is made where it is missing and shares this one's torch."""
    place = folder / library
    if not place.exists():
        venv.create(place, with_pip=True)
        python = place / "bin" / "python"
        below = subprocess.run(
            [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"],
            capture_output=True,
            text=True,
            check=True,
        )
        # Its own packages come first; torch is the one of this environment, so that it takes no part in the comparison.
        Path(below.stdout.strip(), "shared.pth").write_text(sysconfig.get_path("purelib") + "\n")
        subprocess.run([python, "-m", "pip", "install", "--quiet", *REQUIREMENTS[library]], check=True)
    return place / "bin" / "python"


class Peers:
    """Runs of a library, pinned in `results/peers/*.jsonl`.

    Args:
        folder: Holds the environments.
        features: Where the frozen features are kept.
    """

    def __init__(self, folder: Path, features: Path) -> None:
        self.rows = PinnedRows(FOLDER, "runs")
        self.folder, self.features = folder, features
        self.workers: dict[str, subprocess.Popen[str]] = {}

    @cache  # noqa: B019
    def data(self) -> Path:
        """The domains of all pairs, as the worker reads them."""
        path = self.folder / "data.safetensors"
        found, features = {}, frozen_features(self.features)
        for pair in PAIRS:
            for end, domain in zip(("source", "target"), principal(features, pair), strict=True):
                place = f"{' -> '.join(pair)}.{end}"
                found[f"{place}.features"] = domain.features
                found[f"{place}.labels"] = domain.labels.clone()
                found[f"{place}.is_test"] = domain.is_test.to(torch.uint8)
        self.folder.mkdir(parents=True, exist_ok=True)
        save_file(found, path)
        return path

    def start(self, library: str, *data: str) -> subprocess.Popen[str]:
        """A process that runs jobs of a library, on this file of features where they are of the small network."""
        python = sys.executable if library == "metaalign_hf" else environment(library, self.folder)
        command = [str(python), str(WORKER), library, *data]
        return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def ask(self, worker: subprocess.Popen[str], **job: Any) -> dict[str, float]:
        """What a worker finds."""
        assert worker.stdin is not None and worker.stdout is not None
        worker.stdin.write(json.dumps(job) + "\n")
        worker.stdin.flush()
        line = worker.stdout.readline()
        if not line:
            raise SystemExit(f"the worker ended with {worker.wait()} in {job}")
        found: dict[str, float] = json.loads(line)
        return found

    def __call__(self, library: str, objective: str, rate: float, pair: accuracy.Pair, seed: int) -> dict[str, float]:
        """The figures of a run."""

        def make() -> dict[str, float]:
            if library not in self.workers:
                self.workers[library] = self.start(library, str(self.data()))
            job = {
                "objective": objective,
                "form": "",
                "pair": " -> ".join(pair),
                "lr": rate,
                "steps": SHORT,
                "seed": seed,
            }
            return self.ask(self.workers[library], **job)

        return self.rows((library, objective, rate, " -> ".join(pair), seed), make)

    def rate(self, library: str, objective: str, family: str) -> float:
        """The learning rate, chosen as in `accuracy.py`."""
        means = {}
        for rate in RATES:
            found = [self(library, objective, rate, p, seed) for p in FAMILIES[family] for seed in CHOICE_SEEDS]
            means[rate] = tuple(sum(run[key] for run in found) / len(found) for key in ("source_class_mean", "bnm"))
        least = max(source for source, _ in means.values()) - 0.05
        return max((rate for rate in RATES if means[rate][0] >= least), key=lambda rate: means[rate][1])

    def scores(self, library: str, objective: str, family: str) -> list[float]:
        """Target scores by pair and seed, in points."""
        rate = self.rate(library, objective, family)
        return [
            100 * self(library, objective, rate, pair, seed)["target_class_mean"]
            for pair in FAMILIES[family]
            for seed in SEEDS
        ]

    def seconds(self, library: str, objective: str) -> float:
        """Seconds per step on the small network, the median of the runs."""
        return median(
            run["seconds_per_step"] for key, run in self.rows.found.items() if key[:2] == (library, objective)
        )

    def costs(self, name: str) -> dict[str, float]:
        """A figure of `COSTS` for each library, objective and, of ours, form; pinned in a file of its own."""
        path = FOLDER / f"{name}.json"
        if path.exists():
            found: dict[str, float] = json.loads(path.read_text())
            return found
        may_run(name)
        figure, rounds, steps = COSTS[name]
        libraries = [(library, "") for library in REQUIREMENTS] + [("metaalign_hf", form) for form in OURS]
        every: dict[str, list[float]] = {}
        for seed in range(rounds):
            for objective in OBJECTIVES:
                for library, form in libraries:
                    worker = self.start(library)
                    job = {"objective": objective, "form": form, "pair": "", "lr": 0.01, "seed": seed}
                    self.ask(worker, **job, steps=2, network="resnet18")  # what is loaded once is not counted
                    figures = self.ask(worker, **job, steps=steps, network="resnet18")
                    every.setdefault(", ".join(filter(None, (objective, library, form))), []).append(figures[figure])
                    worker.communicate()
        found = {key: round(median(values), 4) for key, values in every.items()}
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(found, indent=1) + "\n")
        return found

    def versions(self) -> dict[str, dict[str, str]]:
        """Versions of what matters in every environment."""
        code = (
            "import json, sys; from importlib.metadata import PackageNotFoundError, version\n"
            "found = {}\n"
            "for name in sys.argv[1:]:\n"
            "    try: found[name] = version(name)\n"
            "    except PackageNotFoundError: pass\n"
            "print(json.dumps(found))"
        )
        found = {}
        for library in REQUIREMENTS:
            command = [str(environment(library, self.folder)), "-c", code, *VERSIONS]
            answer = subprocess.run(command, capture_output=True, text=True, check=True).stdout
            found[library] = json.loads(answer)
        return found


def complete(peers: Peers, library: str, objective: str, family: str) -> bool:
    """Whether all runs on a family of pairs are pinned."""
    pairs = {" -> ".join(pair) for pair in FAMILIES[family]}
    found = [key for key in peers.rows.found if key[:2] == (library, objective) and key[3] in pairs]
    return len(found) == len(pairs) * (len(RATES) * len(CHOICE_SEEDS) + len(SEEDS))


def table(peers: Peers) -> Table:
    """Scores, times on this small network, and paired differences of our default to every other row.

    A library shows where all its runs on a family of pairs are pinned, and has a mean and a time where all are.
    """
    runs = accuracy.Runs("1", peers.features)

    def ours(objective: str, form: str, family: str) -> list[float]:
        return runs.scores(objective, form, SHORT, family)

    def theirs(library: str, objective: str, family: str) -> list[float]:
        return peers.scores(library, objective, family) if complete(peers, library, objective, family) else []

    seconds = json.loads(accuracy.SECONDS.read_text())
    found = Table(box=box.MARKDOWN, title=f"{SHORT} steps, {len(SEEDS)} seeds: target class mean (points)")
    for column in ("objective", "library", *PAIRS_SHORT, "mean", "our default less this", "ms a step"):
        found.add_column(column)
    for objective in OBJECTIVES:
        rows = [(name, {family: theirs(name, objective, family) for family in FAMILIES}) for name in REQUIREMENTS]
        rows += [(f"metaalign_hf, {form}", {f: ours(objective, form, f) for f in FAMILIES}) for form in OURS]
        for name, own in rows:
            if not any(own.values()):
                continue
            cells, less = [], []
            for family, scores in own.items():
                apart = [scores[i : i + len(SEEDS)] for i in range(0, len(scores), len(SEEDS))]
                cells += [with_interval(of_pair) for of_pair in apart] or [""] * len(FAMILIES[family])
                if scores:
                    less += [a - b for a, b in zip(ours("cdan", "remembered", family), scores, strict=True)]
            every = list(chain(*own.values()))
            mean = f"{sum(every) / len(every):.1f}" if all(own.values()) else ""
            difference = with_interval(less, "+") if any(less) else ""
            step = seconds[objective][name.split(", ")[1]] if ", " in name else peers.seconds(name, objective)
            milliseconds = f"{1000 * step:.1f}" if mean else ""
            found.add_row(objective, name, *cells, mean, difference, milliseconds)
    return found


def tables() -> dict[str, Table]:
    """The table of the README, from pinned runs."""
    return {"peers": table(Peers(Path(), Path()))}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    scratch = Path(tempfile.gettempdir())
    parser.add_argument("--environments", type=Path, default=scratch / "metaalign_peers", help="where they are or go")
    parser.add_argument("--features", type=Path, default=scratch / "frozen_features.safetensors", help="a cache")
    parser.add_argument("--only", choices=(*REQUIREMENTS, *COSTS), help="only these runs, no table")
    options = parser.parse_args()
    torch.set_num_threads(1)
    peers = Peers(options.environments, options.features)
    if options.only in COSTS:
        peers.costs(options.only)
        return
    for library in REQUIREMENTS if options.only is None else (options.only,):
        for family in FAMILIES:
            for objective in OBJECTIVES:
                peers.scores(library, objective, family)
    FOLDER.mkdir(parents=True, exist_ok=True)
    (FOLDER / "machine.json").write_text(json.dumps({**machine(), "environments": peers.versions()}, indent=1) + "\n")
    if not options.only:
        publish(tables())


if __name__ == "__main__":
    main()
