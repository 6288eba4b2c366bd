"""A finished model is adapted to a new domain without its source."""

import json

import pytest
import torch
from safetensors.torch import load_file
from transformers import pipeline

from metaalign_hf import UserError
from metaalign_hf.cli import run
from metaalign_hf.configuration import parse_config
from metaalign_hf.reports.figures import write_figures
from metaalign_hf.reports.model_card import model_card
from metaalign_hf.reports.record import read_record
from tests.helpers.runs import TINY, assert_same_run, lines, stopped_at_a_checkpoint
from tests.helpers.squares import write_squares


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return write_squares(tmp_path_factory.mktemp("domains"))


@pytest.fixture(scope="module")
def model(folders, tmp_path_factory):
    """A model that knows the source alone."""
    output = tmp_path_factory.mktemp("model") / "squares"
    options = [
        "--data.source",
        f"imagefolder:{folders / 'source'}",
        "--data.target",
        f"imagefolder:{folders / 'target'}",
    ]
    options += ["--coordination.method", "source_only", "--training.select_by", "null", "--training.max_steps", "30"]
    assert run(["train", "--config", TINY, "--training.output_dir", str(output), *options]) == 0
    return output


def command(model, target, output, *options: str) -> list[str]:
    small = ["--training.batch_size", "8", "--training.max_steps", "16", "--training.log_every", "1"]
    return [
        "train", "--model.checkpoint", str(model), "--data.target", str(target), "--training.output_dir", str(output),
        *small, *options,
    ]  # fmt: skip


def labelled(folders) -> str:
    return f"{{kind: imagefolder, path: {folders / 'target'}, test_path: {folders / 'tests'}}}"


def test_nothing_else_is_needed(model, folders, tmp_path, capsys, monkeypatch):
    """From an image folder to the label of a pipeline; stopped and resumed is never stopped."""
    options = ["--training.checkpoint_every", "10", "--optimizer.lr", "0.01", "--training.evaluate_every", "8"]
    output = tmp_path / "run"
    assert run(command(model, labelled(folders), output, *options)) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "squares -> target: 16 steps on the target alone" in said
    assert "target_only with information_maximization + self_training" in said
    assert "Note: No image and no label of the model's source was used." in said and "without its source." in said
    assert "source squares" not in said and "nan" not in said
    summary = json.loads((output / "summary.json").read_text())
    assert summary["source_accuracy_after"] is None and summary["source_test_images"] == 0
    assert [row["source"] for row in summary["checkpoints"]] == [None] * 3
    assert next(iter(summary["validators"])) == "agreement", "information maximisation raises bnm"
    assert set(summary["validators"]) == {"bnm", "mutual_information", "entropy", "snd", "agreement"}
    before, after = (load_file(folder / "model.safetensors") for folder in (model, output))
    head = [name for name in after if name.startswith(("classifier.", "alignment."))]
    assert head and all(torch.equal(before[name], after[name]) for name in head), "the head stays"
    moved = [name for name in after if name.endswith("running_mean")]
    assert moved and all(not torch.equal(before[name], after[name]) for name in moved), "statistics are the target's"
    classify = pipeline("image-classification", model=str(output))
    files = sorted((folders / "tests").glob("*/*.png"))
    right = sum(classify(str(file), top_k=1)[0]["label"] == file.parent.name for file in files) / len(files)
    assert right == summary["target_accuracy_after"]

    record = read_record(output)
    card = model_card(record)
    assert "It is the model **squares**, adapted to **target** without its source" in card
    assert "no image and no label that it had learnt" in card and "**source**" not in card
    assert "liang2020we" in card and "ganin2016domain" not in card and "not used" in card
    assert write_figures(record, tmp_path / "figures")
    assert run(["evaluate", str(output), "--data", f"imagefolder:{folders / 'tests'}", "--split", "all"]) == 0

    assert stopped_at_a_checkpoint(monkeypatch, command(model, labelled(folders), tmp_path / "killed", *options)) == 130
    assert run(command(model, labelled(folders), tmp_path / "killed", *options, "--training.resume", "true")) == 0
    assert_same_run(output, tmp_path / "killed")


def test_a_target_without_labels_and_a_loss_on_strong_views_alone(model, folders, tmp_path, capsys):
    """Statistics follow the plain views, whatever the student sees."""
    options = ["--training.target_losses", "[{name: self_training, threshold: 0.5}]", "--training.max_steps", "3"]
    output = tmp_path / "run"
    options += ["--training.gradient_accumulation_steps", "2", "--data.augmentation", "none", "--optimizer.lr", "0"]
    assert run(command(model, f"imagefolder:{folders / 'bare'}", output, *options)) == 0
    said = capsys.readouterr().out
    assert "no labels" in said and "These are estimates" in " ".join(said.split())
    assert "has no labels" in model_card(read_record(output))
    steps = [line for line in lines(output) if "phase" in line]
    assert {line["first"] for line in steps} == {"target"} and all("target_loss" in line for line in steps)
    assert not any({"task_loss", "alignment_loss"} & line.keys() for line in steps)
    before, after = (load_file(folder / "model.safetensors") for folder in (model, output))
    weights = [name for name in after if name.endswith(("weight", "bias"))]
    assert all(torch.equal(before[name], after[name]) for name in weights), "a learning rate of 0"
    assert any(not torch.equal(before[name], after[name]) for name in after if name.endswith("running_mean"))


def test_what_is_said_fills_in_the_rest():
    config = parse_config(["--model.checkpoint", "you/model", "--data.target", "imagefolder:new"])
    assert config.data.source is None and config.coordination.method == "target_only"
    names = [entry["name"] for entry in config.training.target_losses]
    assert names == ["information_maximization", "self_training"]
    given = ["--config", TINY, "--data.source", "none", "--model.checkpoint", "you/model"]
    config = parse_config([*given, "--training.source_steps", "0"])
    assert config.coordination.method == "target_only", "a method that a file names for its source is set aside"
    assert parse_config([*given, "--data.source", "uci_digits"]).coordination.method == "metaalign"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--data.source", "none", "--data.target", "mnist"], "data.source is none: without a source a finished model"),
        (["--data.target", "mnist"], "data.source is missing: name a domain"),
        (
            ["--model.checkpoint", "a/b", "--data.target", "mnist", "--training.baseline", "true"],
            "baseline: it n",
        ),
        (
            ["--model.checkpoint", "a/b", "--data.target", "mnist", "--training.source_steps", "5"],
            "source_steps: it",
        ),
        (["--model.checkpoint", "a/b", "--data.target", "mnist", "--training.target_losses", "[]"], "nothing else to"),
        (
            ["--model.checkpoint", "a/b", "--data.target", "mnist", "--coordination.method", "joint"],
            "coordination.method is joint: without a source",
        ),
        (
            ["--data.source", "uci_digits", "--data.target", "mnist", "--coordination.method", "target_only"],
            "target_only is for adapting without a source",
        ),
    ],
)
def test_bad_input_is_told_in_one_line(options, words):
    with pytest.raises(UserError, match=words) as told:
        parse_config(options)
    assert "\n" not in str(told.value)


def test_a_checkpoint_with_other_labels_is_refused(model, tmp_path, capsys):
    assert run(command(model, "mnist", tmp_path / "run")) == 2
    error = capsys.readouterr().err
    assert error.startswith("metaalign: class names differ: model squares has 2 classes, mnist 10: mnist lacks 'left'")
    assert error.count("\n") == 1 and not (tmp_path / "run").exists()
