"""Checkpoints: whole or not there, checked when read, and which of them a run goes on from."""

import json
import shutil

import pytest

from metaalign_hf.cli import run
from metaalign_hf.training.checkpoints import checkpoints, damage
from tests.helpers.runs import TINY, assert_same_run, train

OPTIONS = ["--training.checkpoint_every", "3", "--training.keep_checkpoints", "4"]
OPTIONS += ["--training.evaluate_every", "2", "--training.select_by", "null"]


def arguments(output, *options):
    return ["train", "--config", TINY, "--training.output_dir", str(output), *OPTIONS, *options]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    output = tmp_path_factory.mktemp("runs") / "whole"
    train(output, *OPTIONS)
    return output


@pytest.fixture
def unfinished(whole, tmp_path):
    """As a kill after step 9 leaves it."""
    output = tmp_path / "run"
    shutil.copytree(whole, output)
    (output / "summary.json").unlink()
    return output


@pytest.mark.parametrize("how", ["truncated", "a bit", "missing", "manifest"])
def test_a_damaged_checkpoint_is_skipped_with_a_warning(how, whole, unfinished, capsys):
    last = checkpoints(unfinished)[-1]
    tensors = last / "optimizer.safetensors"
    content = bytearray(tensors.read_bytes())
    if how == "truncated":
        tensors.write_bytes(content[:-7])
    elif how == "a bit":
        content[-1] ^= 1
        tensors.write_bytes(content)
    elif how == "missing":
        tensors.unlink()
    else:
        (last / "sha256.json").write_text("[1, 2")
    assert damage(last) is not None and damage(checkpoints(unfinished)[-2]) is None
    assert run(arguments(unfinished, "--training.resume", "auto")) == 0
    said = capsys.readouterr().out.replace("\n", " ")
    assert f"checkpoint {last} is damaged" in said and "after step 6" in said
    assert_same_run(whole, unfinished)
    assert (last.parent / "step-000009.damaged").is_dir() and damage(last) is None


def test_without_a_sound_checkpoint_the_run_asks(unfinished, capsys):
    for folder in checkpoints(unfinished):
        (folder / "state.json").write_text("{}")
    assert run(arguments(unfinished, "--training.resume", "auto")) == 2
    error = capsys.readouterr().err
    assert "every checkpoint in" in error and "state.json is not what was written" in error and error.count("\n") == 1
    shutil.rmtree(unfinished / "checkpoints")
    assert run(arguments(unfinished, "--training.resume", "auto")) == 0


def test_a_run_goes_on_from_the_checkpoint_that_is_named(whole, unfinished, capsys):
    first = checkpoints(unfinished)[0]
    assert run(arguments(unfinished, "--training.resume", str(first))) == 0
    assert "after step 3" in capsys.readouterr().out.replace("\n", " ")
    assert_same_run(whole, unfinished)
    (unfinished / "summary.json").unlink()
    for path in (unfinished / "none", whole / "checkpoints" / first.name):
        assert run(arguments(unfinished, "--training.resume", str(path))) == 2
        assert "is not a checkpoint of the run in" in capsys.readouterr().err


def test_another_configuration_is_refused_by_its_keys(unfinished, capsys):
    other = ["--optimizer.lr", "0.5", "--training.batch_size", "9", "--model.alignment", "mmd"]
    assert run(arguments(unfinished, "--training.resume", "auto", *other)) == 2
    error = capsys.readouterr().err
    assert "optimizer.lr = 0.01, not 0.5" in error and "training.batch_size = 8, not 9" in error
    assert "model.alignment" in error and error.count("\n") == 1


def test_what_a_run_computes_does_not_depend_on_when_it_saves(whole, tmp_path):
    train(tmp_path / "without", *OPTIONS[4:])
    assert_same_run(whole, tmp_path / "without")
    assert not (tmp_path / "without" / "checkpoints").exists(), "it took less than ten minutes"
    state = json.loads((whole / "checkpoints" / "step-000009" / "state.json").read_text())
    assert state["step"] == 9 and state["skipped_steps"] == [0, 0]
