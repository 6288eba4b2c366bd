"""Runs with target losses: from image folders to the label that a pipeline gives, and never stopped = resumed."""

import json

import pytest
import torch
from safetensors.torch import load_file
from transformers import pipeline

from metaalign_hf.cli import run
from metaalign_hf.reports.model_card import model_card
from metaalign_hf.reports.record import read_record
from tests.helpers.runs import assert_same_run, launch, lines, stopped_at_a_checkpoint
from tests.helpers.squares import adapting, write_squares


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return write_squares(tmp_path_factory.mktemp("domains"))


def command(folders, output, *options: str) -> list[str]:
    return adapting(folders, output, "--model.alignment", "null", *options)


LOSSES = """[{name: self_training, weight: 0.3, threshold: 0.9, thresholds: adaptive, ramp_up: 0.5},
{name: masked_consistency, weight: 0.1, burn_in: 0.2}, information_maximization]"""


def test_from_an_image_folder_to_the_label_of_a_pipeline(folders, tmp_path, capsys, monkeypatch):
    """And a run that was killed after a checkpoint is the run that never stopped, its teacher and thresholds too."""
    options = ["--training.source_steps", "30", "--training.max_steps", "40", "--training.checkpoint_every", "38"]
    options += ["--training.target_losses", LOSSES, "--coordination.direction", "remembered", "--optimizer.lr", "0.03"]
    output = tmp_path / "run"
    assert run(command(folders, output, *options)) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "metaalign with self_training + masked_consistency + information_maximization" in said
    assert "Note: Self-training: " in said and "% of these are right (for this report alone)." in said
    steps = [line for line in lines(output) if line.get("phase") == "adaptation"]
    assert all({"task_loss", "target_loss"} <= line.keys() and "alignment_loss" not in line for line in steps)
    assert all(0 <= line["self_training_accepted"] <= 1 for line in steps[1:])
    assert "self_training_accepted" not in steps[0], "a ramp starts at 0"
    assert all(1 / 2 <= line["masked_consistency_confidence"] <= 1 for line in steps if line["step"] > 38)
    after = next(line for line in lines(output) if line.get("evaluation") == "after")
    assert 0 <= after["target_self_training_agreement"] <= 1 and 0 < after["target_self_training_accepted"] <= 1
    classify = pipeline("image-classification", model=str(output))
    files = sorted((folders / "tests").glob("*/*.png"))
    found = [classify(str(file), top_k=1)[0]["label"] for file in files]
    right = sum(label == file.parent.name for label, file in zip(found, files, strict=True)) / len(files)
    assert right == json.loads((output / "summary.json").read_text())["target_accuracy_after"] and right > 0.7
    card = model_card(read_record(output))
    assert "self_training (weight 0.3, threshold 0.9, thresholds adaptive, ramp_up 0.5), in the place of" in card
    assert all(name in card for name in ("sohn2020fixmatch", "hoyer2023mic", "liang2020we"))

    assert stopped_at_a_checkpoint(monkeypatch, command(folders, tmp_path / "killed", *options)) == 130
    kept = load_file(tmp_path / "killed/checkpoints/step-000038/average.safetensors")
    assert run(command(folders, tmp_path / "killed", *options, "--training.resume", "true")) == 0
    assert_same_run(output, tmp_path / "killed")
    before = load_file(output / "checkpoints/step-000038/average.safetensors")
    assert all(torch.equal(before[name], value) for name, value in kept.items())
    assert (
        json.loads((output / "summary.json").read_text())["notes"]
        == json.loads((tmp_path / "killed/summary.json").read_text())["notes"]
    )
    # A ramp depends on the number of steps.
    assert run(command(folders, output, *options, "--training.resume", "true", "--training.max_steps", "50")) == 2
    assert "ramp_up of the target loss self_training" in capsys.readouterr().err


def test_target_labels_change_nothing_but_the_report(folders, tmp_path, capsys):
    """Law 9 with a teacher: without labels the same weights, and no figure that needs them."""
    spec = ["--training.target_losses", "self_training", "--coordination.method", "joint", "--coordination.direction"]
    for name in ("with", "without"):
        options = [*spec, "remembered", "--training.max_steps", "2", "--training.select_by", "null"]
        arguments = command(folders, tmp_path / name, *options)
        if name == "without":
            place = arguments.index("--data.target")
            arguments[place + 1] = f"{{kind: imagefolder, path: {folders / 'bare'}, test_path: {folders / 'bare'}}}"
        assert run(arguments) == 0
    assert "self_training" in capsys.readouterr().out
    assert_equal_weights(tmp_path / "with", tmp_path / "without")
    keys = set().union(*lines(tmp_path / "without"))
    assert "self_training_accepted" in keys and "target_self_training_agreement" not in keys


def assert_equal_weights(first, second) -> None:
    a, b = (load_file(folder / "model.safetensors") for folder in (first, second))
    assert a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--training.target_losses", "{name: self_training, threshold: 1.1}"], "threshold is 1.1: it must lie in"),
        (
            ["--training.target_losses", "{name: masked_consistency, mask_size: 17}"],
            "mask_size is 17: a patch",
        ),
        (["--training.target_losses", "self_training", "--coordination.method", "source_only"], "reads no target"),
        ([], "model.alignment: metaalign needs an alignment objective; name one, or a target loss"),
    ],
)
def test_bad_input_is_told_in_one_line(folders, tmp_path, capsys, options, words):
    assert run(command(folders, tmp_path / "run", *options)) == 2
    error = capsys.readouterr().err
    assert words in error and error.count("\n") == 1 and not (tmp_path / "run").exists()


@pytest.mark.slow
def test_two_processes_under_accumulation(tmp_path):
    """Thresholds that learn are of all processes; the target losses play alignment's role in the published step."""
    options = ["--training.target_losses", LOSSES, "--model.alignment", "null"]
    done = launch(tmp_path / "run", *options, "--training.gradient_accumulation_steps", "2")
    assert done.returncode == 0, done.stderr[-3000:]
    assert any("self_training_accepted" in line for line in lines(tmp_path / "run"))
