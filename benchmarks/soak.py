"""A long run with everything that could leak: evaluations, checkpoints, workers and pushes to a Hub on this machine.

    python benchmarks/soak.py                # ten minutes
    python benchmarks/soak.py --minutes 2

A sampler reads memory (of the run and its data workers), open files and threads of the process every second. Flat means
that the last quarter of the run does not need more than the second quarter: the first one is warm-up. The result goes
to `results/soak.json`.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
RESULT = ROOT / "benchmarks" / "results" / "soak.json"
sys.path.insert(0, str(ROOT))  # for the Hub of the tests


def memory(process: int) -> float:
    """Resident memory of a process and its children in MB."""
    total = 0
    for entry in os.listdir("/proc"):
        try:
            fields = Path(f"/proc/{entry}/stat").read_text().rpartition(")")[2].split()
            if process in (int(entry), int(fields[1])):
                total += int(fields[21]) * os.sysconf("SC_PAGE_SIZE")
        except (OSError, ValueError, IndexError):
            continue
    return total / 1e6


class Sampler(threading.Thread):
    """Measures a process every second until it ends."""

    def __init__(self, process: subprocess.Popen) -> None:
        super().__init__(daemon=True)
        self.process = process
        self.rows: list[tuple[float, int, int]] = []

    def run(self) -> None:
        place = Path(f"/proc/{self.process.pid}")
        while self.process.poll() is None:
            time.sleep(1.0)
            try:
                row = memory(self.process.pid), len(os.listdir(place / "fd")), len(os.listdir(place / "task"))
            except OSError:
                return
            self.rows.append(row)

    def quarters(self) -> dict[str, list[float]]:
        """The median of each quarter."""
        size = max(1, len(self.rows) // 4)
        parts = [self.rows[i * size : (i + 1) * size] for i in range(4)]
        names = ("memory_mb", "open_files", "threads")
        return {
            name: [round(statistics.median(row[n] for row in part), 1) for part in parts]
            for n, name in enumerate(names)
        }


def main() -> None:
    parser = argparse.ArgumentParser(description="Run for a while and see whether memory and file handles stay flat.")
    parser.add_argument("--minutes", type=float, default=10.0)
    options = parser.parse_args()
    from runs import machine
    from tests.helpers.hub_server import HubServer

    # The Hub keeps what is pushed in memory, so it is not in the process that is measured.
    with tempfile.TemporaryDirectory() as scratch, HubServer({"hf_alice": "alice"}) as hub:
        output = Path(scratch, "run")
        command = [sys.executable, "-m", "metaalign_cli", "train", "--config", str(ROOT / "tests/helpers/tiny.yaml")]
        command += ["--training.output_dir", str(output), "--training.max_steps", "10000000"]
        command += ["--training.max_time", f"{options.minutes * 60:.0f}s", "--training.ema_decay", "0.99"]
        command += ["--training.evaluate_every", "200", "--training.checkpoint_every", "50"]
        command += ["--training.evaluation_batch_size", "100", "--data.num_workers", "1"]
        command += ["--hub.repo_id", "alice/soak", "--hub.push_every", "1", "--training.trackers", "[tensorboard]"]
        environment = {**os.environ, **hub.environment(Path(scratch, "home"), token="hf_alice")}
        run = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL)
        sampler = Sampler(run)
        sampler.start()
        sampler.join()
        assert run.wait() == 124, f"the run ended with {run.returncode} before its time"
        lines = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
        quarters = sampler.quarters()
        limits = {"memory_mb": 1.02, "open_files": 1.0, "threads": 1.0}
        result = {
            "minutes": options.minutes,
            "steps": lines[-1]["step"],
            "evaluations": sum("evaluation" in line for line in lines),
            "checkpoints": lines[-1]["step"] // 50,
            "pushes": len(hub.repos["alice/soak"].commits) if "alice/soak" in hub.repos else 0,
            "median_by_quarter": quarters,
            "flat": {
                name: quarters[name][3] <= quarters[name][1] * limit + (2 if name != "memory_mb" else 0)
                for name, limit in limits.items()
            },
            "machine": machine(),
        }
    if options.minutes >= 2:
        RESULT.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
