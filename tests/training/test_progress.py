"""A run says what is going on, with and without a terminal, and sends each image through the model once."""

import io
import json
from pathlib import Path

import pytest
from rich.console import Console

from metaalign_hf import load_config, progress
from metaalign_hf.tasks.building import build_task
from metaalign_hf.training.loop import adapt
from metaalign_hf.training.schedules import evaluation_interval
from metaalign_hf.training.summary import waiting_share
from tests.helpers.runs import TINY


def shown(console: Console, monkeypatch, output: Path, **options) -> str:
    monkeypatch.setattr("metaalign_hf.training.loop.Console", lambda **_: console)
    adapt(load_config(TINY, {"training.output_dir": str(output), **options}))
    return console.file.getvalue()


def test_without_a_terminal_lines_tell_losses_speed_and_time_left(monkeypatch, tmp_path):
    monkeypatch.setattr(progress, "SECONDS", 0.02)
    text = shown(Console(file=io.StringIO(), width=200), monkeypatch, tmp_path / "run")
    lines = text.splitlines()
    assert lines[0].startswith("uci_digits -> mnist: 4 steps on the source, then 6 of adaptation, on ")
    training = [line for line in lines if line.startswith("adaptation: ") and " left" in line]
    assert training and "task loss" in training[-1] and "alignment loss" in training[-1]
    assert "of 6 steps" in training[-1] and "images/s" in training[-1]
    assert "cosine" in training[-1] and "bnm" in training[-1], "the score that needs no target label"
    assert any(line.startswith("evaluating on target: ") and "of 1000 images" in line for line in lines)
    assert any(line.startswith("target images for validators: ") for line in lines)
    (words,) = [line for line in lines if "After is the last checkpoint" in line]
    assert "of it in evaluations)" in words


def test_a_terminal_shows_the_stage_that_runs(monkeypatch, tmp_path):
    console = Console(file=io.StringIO(), width=200, force_terminal=True)
    text = shown(console, monkeypatch, tmp_path / "run", **{"training.source_steps": 0})
    assert "evaluating on source" in text and "target images for validators" in text and "adaptation" in text


def test_a_stage_counts_its_own_time_for_speed_and_all_of_it_for_the_time_left():
    opened = progress.Stage("training", 10, "steps")
    opened.advance(2, images=64)
    opened._started -= 20
    opened._elsewhere = 10
    opened.figures = lambda: {"task_loss": 1.23456}
    assert opened.line() == "training: 2 of 10 steps, task loss 1.23, 6.4 images/s, 1:20 left"


def test_without_a_display_nothing_is_printed(capsys):
    assert list(progress.track(range(3), "counting", 3)) == [0, 1, 2]
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("augmentation, views", [("none", 1), ("crop", 2)])
def test_an_evaluation_sends_each_image_through_the_model_once(augmentation, views, tmp_path):
    options = {"training.output_dir": str(tmp_path), "data.augmentation": augmentation}
    task = build_task(load_config(TINY, options), None, None)
    rows = []
    task.model.register_forward_pre_hook(lambda _, a, k: rows.append(len(k["pixel_values"])), with_kwargs=True)
    kept = {}
    task.evaluate(task.model, 0, 1, kept)
    values = task.validate(task.model, 0, 1, kept)
    assert sum(rows) == task.evaluated_images == 360 + 1000 + views * 512
    apart = task.validate(task.model, 0, 1)
    assert {name: pytest.approx(value, rel=1e-4, abs=1e-5) for name, value in apart.items()} == values


@pytest.mark.parametrize("images", [100, 2000, 60000])
def test_evaluations_take_a_tenth_of_a_default_run_at_most(images):
    interval = evaluation_interval(0, 1000, 24, images)
    between = (1000 - 1) // interval
    assert interval >= 100
    assert between == 0 or (between + 2) * images <= 0.1 * 3 * 24 * 2 * 1000


def test_the_summary_says_how_long_the_evaluations_took(tmp_path, capsys):
    adapt(load_config(TINY, {"training.output_dir": str(tmp_path / "run")}))
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert 0 < summary["seconds_in_evaluation"] <= summary["seconds"]
    assert 0 < summary["waiting_share"] < 1 and "Adaptation steps waited for images in" in capsys.readouterr().out


def test_waiting_for_images_is_a_share_of_the_time_of_steps():
    assert waiting_share([5.0, 0.1, 0.3], [1.0, 0.4, 1.2]) == 0.2, "without the first, which waits for the workers"
    assert waiting_share([1.0], [3.0]) == 0.25 and waiting_share([], []) is None
