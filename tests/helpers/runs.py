"""Runs from the command line, and what they leave behind."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from metaalign_hf.cli import run
from metaalign_hf.training import keeping

ROOT = Path(__file__).parents[2]
TINY = str(Path(__file__).with_name("tiny.yaml"))
TINY_DETECTION = str(Path(__file__).with_name("tiny_detection.yaml"))


def train(output: Path, *options: str) -> dict:
    assert run(["train", "--config", TINY, "--training.output_dir", str(output), *options]) == 0
    return json.loads((output / "summary.json").read_text())


def lines(output: Path) -> list[dict]:
    return [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]


def weights(output: Path) -> dict[str, torch.Tensor]:
    return load_file(output / "model.safetensors")


def assert_same_run(first: Path, second: Path) -> None:
    assert lines(first) == lines(second)
    a, b = weights(first), weights(second)
    assert a.keys() == b.keys()
    for name in a:
        assert torch.equal(a[name], b[name]), name


def run_until_checkpoint(arguments: list[str]) -> None:
    """A run that is killed when its first checkpoint is written."""
    script = (
        "import sys, os, signal\n"
        "from metaalign_hf.training import keeping\n"
        "from metaalign_hf.cli import run\n"
        "save = keeping.save_checkpoint\n"
        "def save_and_die(*args, **keywords):\n"
        "    save(*args, **keywords)\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
        "keeping.save_checkpoint = save_and_die\n"
        "run(sys.argv[1:])\n"
    )
    died = subprocess.run([sys.executable, "-c", script, *arguments], capture_output=True, check=False)
    assert died.returncode == -signal.SIGKILL


def when_reached(output: Path, step: int, act: Callable[[], object]) -> threading.Thread:
    """Does something, from a thread, once a run has logged a step."""
    metrics = output / "metrics.jsonl"

    def wait() -> None:
        for _ in range(60_000):
            if metrics.exists() and f'{{"step": {step}, ' in metrics.read_text():
                act()
                return
            time.sleep(0.001)

    thread = threading.Thread(target=wait, daemon=True)
    thread.start()
    return thread


def signalled(arguments: list[str], output: Path, step: int, number: int) -> int:
    """The exit code of a run in this process that gets a signal once it has logged a step."""
    thread = when_reached(output, step, lambda: os.kill(os.getpid(), number))
    code = run(arguments)
    thread.join()
    return code


def stopped_at_a_checkpoint(monkeypatch: pytest.MonkeyPatch, arguments: list[str]) -> int:
    """The exit code of a run that is interrupted right after its first checkpoint."""
    save = keeping.save_checkpoint

    def save_and_stop(*args, **keywords):
        save(*args, **keywords)
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(keeping, "save_checkpoint", save_and_stop)
        return run(arguments)


def launch(output: Path, *options: str, config: str = TINY) -> subprocess.CompletedProcess:
    # --multi_gpu starts two gloo processes where there is no GPU; --cpu would silently start one.
    command = ["accelerate", "launch", "--multi_gpu", "--num_processes", "2", "--num_machines", "1"]
    command += ["--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0"]
    command += ["scripts/train.py", "--config", config, "--training.output_dir", str(output), *options]
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "OMP_NUM_THREADS": "1",
    }
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False, timeout=300)


def two_runs(folder: Path, cells: dict[str, tuple[str, list[str], dict[str, str] | None]], *more: str) -> str:
    """What `two_runs.py` prints."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    command += ["-m", "tests.helpers.two_runs", str(folder), json.dumps(cells), *more]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False, timeout=600)
    assert done.returncode == 0, done.stderr[-20000:]
    return done.stdout
