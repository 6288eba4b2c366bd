"""Signals, the time limit and the lock: what a run that is stopped from outside leaves, and who may write."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from metaalign_hf.cli import run
from metaalign_hf.configuration.durations import seconds_of
from metaalign_hf.errors import UserError
from tests.helpers.runs import TINY, assert_same_run, launch, signalled, train

LONG = ["--training.max_steps", "26", "--training.evaluate_every", "10"]


def arguments(output, *options):
    return ["train", "--config", TINY, "--training.output_dir", str(output), *options]


def test_a_signal_finishes_the_step_saves_and_exits_with_its_code_and_the_run_goes_on_as_if_never_stopped(
    tmp_path, capsys
):
    train(tmp_path / "whole", *LONG)
    output = tmp_path / "stopped"
    for number, code, step in ((signal.SIGTERM, 143, 2), (signal.SIGINT, 130, 9), (signal.SIGHUP, 129, 16)):
        capsys.readouterr()
        assert signalled(arguments(output, *LONG, "--training.resume", "auto"), output, step, number) == code
        error = capsys.readouterr().err
        assert "stopped after step" in error and "--training.resume auto" in error
        assert not (output / "summary.json").exists() and not (output / ".lock").exists()
    assert run(arguments(output, *LONG, "--training.resume", "auto")) == 0
    assert_same_run(tmp_path / "whole", output)
    sessions = json.loads((output / "run.json").read_text())["sessions"]
    assert sessions[0]["after_step"] == 0 and len(sessions) == 4
    assert {"python", "torch"} <= set(sessions[0]["versions"]) and sessions[0]["seed"] == 0
    assert "Resuming" in (output / "log.txt").read_text()


def test_a_second_signal_ends_a_step_that_hangs(tmp_path):
    script = (
        "import metaalign_cli, time\n"
        "from metaalign_hf.interruption import Interruption\n"
        "stop = Interruption()\n"
        "with stop.heard(), stop.patient():\n"
        "    print('ready', flush=True)\n"
        "    while True:\n"
        "        time.sleep(0.05)\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGTERM)
    process.send_signal(signal.SIGTERM)  # as a terminal and a launcher hand it on twice: one request
    time.sleep(1.2)
    assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=10)
    assert process.returncode == 143 and "once more to stop at once" in errors and "stopped at once" in errors


def test_a_time_limit_saves_and_exits_with_124(tmp_path, capsys):
    output, long = tmp_path / "run", ["--training.max_steps", "100000"]
    assert run(arguments(output, *long, "--training.max_time", "1s")) == 124
    assert "because its time is up" in capsys.readouterr().err
    (checkpoint,) = (output / "checkpoints").iterdir()
    assert run(arguments(output, *long, "--training.max_time", "0.01", "--training.resume", "auto")) == 124
    assert f"Resuming {output} after step {int(checkpoint.name[5:])}" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize(("text", "seconds"), [("3h50m", 13_800), ("90m", 5_400), ("1d 1s", 86_401), (2.5, 2.5)])
def test_times_are_read(text, seconds):
    assert seconds_of(text, "x") == seconds


@pytest.mark.parametrize("text", ["", "h", "0s", "3 hours", "-1", "1m3h", 0.0, float("inf")])
def test_other_times_are_refused(text):
    with pytest.raises(UserError, match=r"^x is .*3h50m"):
        seconds_of(text, "x")


def test_one_process_writes_a_folder_and_its_lock_dies_with_it(tmp_path, capsys):
    output = tmp_path / "run"
    options = [*LONG, "--training.resume", "auto"]
    other = subprocess.Popen(
        [sys.executable, "-m", "metaalign_cli", *arguments(output, *options, "--training.max_steps", "1000000")],
        stdout=subprocess.DEVNULL,
    )
    try:
        deadline = time.time() + 60
        metrics = output / "metrics.jsonl"  # after some evaluations of the adaptation no new file is to be expected
        while not (metrics.exists() and '"step": 40,' in metrics.read_text()) and time.time() < deadline:
            time.sleep(0.05)
        before = sorted(path.name for path in output.iterdir())
        assert run(arguments(output, *LONG)) == 2
        error = capsys.readouterr().err
        assert f"is being written by process {other.pid} on " in error and error.count("\n") == 1
        assert sorted(path.name for path in output.iterdir()) == before
    finally:
        other.kill()
        other.wait()
    assert (output / ".lock").exists(), "nobody was left to take it away"
    assert run(arguments(output, *LONG, "--training.resume", "never")) == 2
    assert "holds another run" in capsys.readouterr().err
    assert run(arguments(output, *options, "--training.max_steps", "1000000", "--training.max_time", "0.01")) == 124


@pytest.mark.slow
@pytest.mark.parametrize("apart", [0.0, 0.3])
def test_of_two_runs_that_start_together_one_is_refused(apart, tmp_path):
    output = tmp_path / "run"
    command = [sys.executable, "-m", "metaalign_cli", *arguments(output, *LONG)]
    runs = []
    for _ in range(2):
        runs.append(subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True))
        time.sleep(apart)
    errors = [process.communicate(timeout=120)[1] for process in runs]
    assert sorted(process.returncode for process in runs) == [0, 2], errors
    (refused,) = (e for process, e in zip(runs, errors, strict=True) if process.returncode == 2)
    assert "is being written by" in refused or "holds another run" in refused
    train(tmp_path / "alone", *LONG)
    assert_same_run(tmp_path / "alone", output)
    assert os.listdir(output).count(".lock") == 0


@pytest.mark.slow
@pytest.mark.parametrize("average", [[], ["--training.ema_decay", "0.9"]], ids=["weights", "average"])
def test_two_processes_evaluate_the_model_that_is_saved(average, tmp_path):
    """Each process moves running statistics by its own images; figures are of one model, the one on the disk."""
    output = tmp_path / "run"
    ended = launch(output, *average, "--training.batch_norm", "mixed", "--training.max_steps", "12")
    assert ended.returncode == 0, ended.stderr
    summary = json.loads((output / "summary.json").read_text())
    for domain, name in (("uci_digits", "source"), ("mnist", "target")):
        figures = tmp_path / f"{name}.json"
        assert run(["evaluate", str(output), "--data", domain, "--output", str(figures)]) == 0
        assert json.loads(figures.read_text())["average_precision"] == pytest.approx(
            summary[f"{name}_average_precision_after"], abs=1e-6
        )


def test_the_runs_in_a_folder_are_listed(tmp_path, capsys):
    train(tmp_path / "runs" / "done", "--training.source_steps", "0", "--training.max_steps", "1")
    stopped = tmp_path / "runs" / "more" / "stopped"
    assert run(arguments(stopped, "--training.max_time", "0.001", "--coordination.method", "source_only")) == 124
    (tmp_path / "runs" / "odd").mkdir()
    (tmp_path / "runs" / "odd" / "training_config.yaml").write_text("[1, 2")
    capsys.readouterr()
    assert run(["runs", str(tmp_path / "runs"), "--json"]) == 0
    newest, oldest = (json.loads(line) for line in capsys.readouterr().out.splitlines())
    assert newest["state"] == "stopped after 1 of 10 steps, checkpoint at 1" and newest["target"] == "mnist"
    summary = json.loads((tmp_path / "runs" / "done" / "summary.json").read_text())
    assert oldest["state"] == "finished, 1 steps" and oldest["target_after"] == summary["target_accuracy_after"]
    assert run(["runs", str(tmp_path / "runs")]) == 0
    table = capsys.readouterr().out
    assert "uci_digits -> mnist" in table and "metaalign + dann" in table
    assert "source_only" in table and "source_only +" not in table and "no labels" not in table
    unlabelled = {**summary, "target_accuracy_before": None, "target_accuracy_after": None}
    (tmp_path / "runs" / "done" / "summary.json").write_text(json.dumps(unlabelled))
    assert run(["runs", str(tmp_path / "runs")]) == 0
    assert capsys.readouterr().out.count("no labels") == 2
    assert run(["runs", str(tmp_path / "runs" / "odd")]) == 2
    assert run(["runs", str(tmp_path / "none")]) == 2
    assert "does not exist" in capsys.readouterr().err
