"""Law 7: a run that is stopped at any step and goes on is the run that never stopped, weights and logs bit for bit."""

import itertools
import json
import os
import random
import signal
import subprocess
import sys
import time

import pytest

from metaalign_hf.cli import run
from metaalign_hf.training.checkpoints import checkpoints, damage
from tests.helpers.runs import TINY, TINY_DETECTION, assert_same_run, launch, lines, signalled, two_runs

REMEMBERED = ["--coordination.direction", "remembered"]
ROLE = [*REMEMBERED, "--coordination.remember", "role"]
EVERY = ["--training.evaluate_every", "1", "--training.selection_images", "40"]
TEACHER = [
    "--training.ema_decay",
    "0.9",
    "--training.pseudo_label_weight",
    "1",
    "--training.pseudo_label_threshold",
    "0",
]

CELLS = {
    "accumulation, by domain, selection at every step": [
        *("--training.gradient_accumulation_steps", "2", "--training.batch_norm", "per_domain"),
        *EVERY,
    ],
    "role pair, average": [*ROLE, "--training.ema_decay", "0.9", "--coordination.swap_every", "2"],
    "memory, accumulation": [*REMEMBERED, "--training.gradient_accumulation_steps", "3", *EVERY],
    "joint, average": ["--coordination.method", "joint", "--training.ema_decay", "0.9", *EVERY],
    "heun": ["--coordination.method", "heun", "--optimizer.name", "adamw"],
    "a share, accumulation": [
        *("--coordination.method", "joint", "--coordination.alignment_share", "0.25"),
        *("--training.gradient_accumulation_steps", "2"),
    ],
    "weights of groups": ["--coordination.groups", "stage"],
    "last stage": ["--coordination.inner_scope", "last_stage", "--training.batch_norm", "train"],
    "taught by its average": ["--training.target_losses", "[{name: self_training, threshold: 0.1}]", *EVERY],
    "recalibrated": ["--training.recalibrate_bn", "target", *EVERY],
    "cosine, clipped": [
        "--optimizer.schedule",
        "cosine",
        "--training.max_grad_norm",
        "0.5",
        "--model.alignment",
        "gvb",
    ],
}
_DOMAINS = "accumulation, by domain, selection at every step"
DETECTION = {
    _DOMAINS: [
        *("--training.gradient_accumulation_steps", "2", "--training.batch_norm", "per_domain"),
        *("--training.batch_size", "2", "--training.evaluate_every", "1", "--training.selection_images", "8"),
    ],
    "teacher": TEACHER,
    "role pair": [*ROLE, "--coordination.swap_every", "2"],
}
TWO = {
    "by domain, role pair, workers": [
        *(*ROLE, "--coordination.swap_every", "2", "--training.batch_norm", "per_domain", "--data.num_workers", "2"),
        *EVERY,
    ],
    "detection, by domain, taught by counts": [
        *("--training.target_losses", "[{name: mean_teacher, threshold: counts}]", "--training.ema_decay", "0.9"),
        *DETECTION[_DOMAINS],
    ],
}


def arguments(output, *options, config=TINY):
    return ["train", "--config", config, "--training.output_dir", str(output), *options]


@pytest.mark.parametrize("cell", list(CELLS)[:2])
def test_stopped_anywhere(cell, tmp_path):
    options = [*CELLS[cell], "--training.max_steps", "16"]
    assert run(arguments(tmp_path / "whole", *options)) == 0
    output, step = tmp_path / "stopped", 1
    for number in (signal.SIGTERM, signal.SIGINT):
        assert signalled(arguments(output, *options, "--training.resume", "auto"), output, step, number) == 128 + number
        step = lines(output)[-1]["step"] + 3
    assert run(arguments(output, *options, "--training.resume", "auto")) == 0
    assert_same_run(tmp_path / "whole", output)


def stopped_after_every_step(output, *options, config=TINY) -> int:
    """Takes one step a start, since the time is always up; returns how often it was started."""
    for starts in itertools.count(1):
        limit = ["--training.resume", "auto", "--training.max_time", "0.001"]
        code = run(arguments(output, *options, *limit, config=config))
        if code != 124:
            assert code == 0
            return starts
    raise AssertionError


@pytest.mark.slow
@pytest.mark.parametrize(
    ("cell", "workers"), [*((cell, "0") for cell in CELLS), *((cell, "2") for cell in list(CELLS)[:2])]
)
def test_stopped_after_every_step(cell, workers, tmp_path):
    options = [*CELLS[cell], "--data.num_workers", workers]
    assert run(arguments(tmp_path / "whole", *options)) == 0
    # The last step is followed by a stop, too, and then there is only the end to come.
    assert stopped_after_every_step(tmp_path / "stopped", *options) == 11
    assert_same_run(tmp_path / "whole", tmp_path / "stopped")


@pytest.mark.slow
@pytest.mark.parametrize("workers", ["0", "2"])
@pytest.mark.parametrize("cell", list(DETECTION))
def test_a_detector_stopped_after_every_step(cell, workers, tmp_path):
    options = ["--training.evaluate_every", "3", *DETECTION[cell], "--data.num_workers", workers]
    assert run(arguments(tmp_path / "whole", *options, config=TINY_DETECTION)) == 0
    assert stopped_after_every_step(tmp_path / "stopped", *options, config=TINY_DETECTION) == 8
    assert_same_run(tmp_path / "whole", tmp_path / "stopped")


@pytest.mark.slow
def test_two_processes_stopped_and_going_on(tmp_path):
    options = ["--training.ema_decay", "0.9", "--training.gradient_accumulation_steps", "2", *EVERY]
    whole = launch(tmp_path / "whole", *options)
    assert whole.returncode == 0, whole.stderr
    output, on = tmp_path / "stopped", ["--training.resume", "auto"]
    for steps in (1, 2):
        stopped = launch(output, *options, *on, "--training.max_time", "0.001")
        assert f"stopped after step {steps}, because its time is up" in stopped.stderr, stopped.stderr
    ended = launch(output, *options, *on)
    assert ended.returncode == 0, ended.stderr
    assert_same_run(tmp_path / "whole", output)


@pytest.mark.slow
def test_two_processes_stopped_after_every_step(tmp_path):
    cells = {name: (TINY_DETECTION if "detection" in name else TINY, options, None) for name, options in TWO.items()}
    said = two_runs(tmp_path, cells)
    assert said.count("stopped 10 times") == said.count("stopped 7 times") == 1


STARTER = """
import os, sys
from metaalign_hf.cli import run
import metaalign_hf.training, metaalign_hf.tasks.classification.task
for _ in sys.stdin:
    process = os.fork()  # so that a start costs no imports
    if not process:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        os._exit(run(sys.argv[1:]))
    print(process, flush=True)
    print(os.waitpid(process, 0)[1], flush=True)
"""


@pytest.mark.slow
def test_thirty_kills_at_random_moments_cost_at_most_the_steps_since_the_last_checkpoint(tmp_path):
    """Some of them while a checkpoint is written: a checkpoint follows every second step."""
    options = ["--training.max_steps", "4000", "--training.checkpoint_every", "2", "--training.evaluate_every", "500"]
    options += ["--training.log_every", "1", "--training.batch_size", "4", "--training.evaluation_batch_size", "1000"]
    output, generator = tmp_path / "killed", random.Random(0)
    command = arguments(output, *options, "--training.resume", "auto")
    start = subprocess.Popen(
        [sys.executable, "-c", STARTER, *command], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    in_a_save, reached = 0, 0
    for kill in range(30):
        print(file=start.stdin, flush=True)
        process = int(start.stdout.readline())
        deadline = time.monotonic() + 120
        while _last(output) <= reached:
            assert time.monotonic() < deadline
            time.sleep(0.002)
        time.sleep(generator.uniform(0, 0.6))
        for _ in range(2000 if kill % 3 == 0 else 0):
            if _saving(output):
                break
            time.sleep(0.0005)
        os.kill(process, signal.SIGKILL)
        assert int(start.stdout.readline()) == signal.SIGKILL
        in_a_save += _saving(output)
        reached, saved = _last(output), checkpoints(output)
        assert saved and all(damage(folder) is None for folder in saved)
        assert int(saved[-1].name[5:]) >= reached - 2
    start.stdin.close()
    start.wait()
    assert in_a_save > 0, "no kill was in the middle of a save"
    assert run(arguments(output, *options, "--training.resume", "auto", "--training.max_time", "0.5")) == 124
    assert signalled(arguments(tmp_path / "whole", *options), tmp_path / "whole", _last(output), signal.SIGTERM) == 143
    mine, other = ([line for line in lines(o) if line["step"] <= _last(output)] for o in (output, tmp_path / "whole"))
    assert mine == other


def _last(output) -> int:
    """The last step in the log, of which the very last line may be cut."""
    step = 0
    try:
        for line in (output / "metrics.jsonl").read_text().splitlines()[-3:]:
            step = json.loads(line)["step"]
    except (OSError, ValueError):
        pass
    return step


def _saving(output) -> bool:
    return any((output / "checkpoints").glob("*.partial"))
