"""A finished run becomes longer and ends as if it had been so long from the start, or says how to train on."""

import json
import shlex
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from metaalign_hf.alignment import CORAL, DANN, JMMD, MCC, MDD, MMD, AlignmentBatch, PerSource
from metaalign_hf.cli import run
from tests.helpers.runs import TINY

LAST_OF_SHORT = 10  # 4 steps on the source and 6 of adaptation


def arguments(output: Path, *options: str) -> list[str]:
    return ["train", "--config", TINY, "--training.output_dir", str(output), *options]


def summary_of(output: Path) -> dict:
    return json.loads((output / "summary.json").read_text())


def lines(output: Path) -> list[dict]:
    return [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]


def assert_same_tensors(first: Path, second: Path) -> None:
    a, b = load_file(first), load_file(second)
    assert a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize(
    ("checkpoint_every", "more"),
    [
        ("5", ["--model.alignment", "coral", "--training.select_by", "entropy", "--training.select_tolerance", "1"]),
        ("4", ["--coordination.method", "source_only", "--optimizer.schedule", "constant"]),
    ],
    ids=["the last step's checkpoint", "an earlier checkpoint"],
)
def test_a_longer_run_is_as_if_it_had_been_so_long_from_the_start(checkpoint_every, more, tmp_path, capsys):
    options = ["--training.checkpoint_every", checkpoint_every, "--training.evaluate_every", "2", *more]
    whole, grown = tmp_path / "whole", tmp_path / "grown"
    assert run(arguments(whole, *options, "--training.max_steps", "9")) == 0
    assert run(arguments(grown, *options)) == 0
    assert summary_of(grown)["adaptation_steps"] == 6
    assert run(arguments(grown, *options, "--training.max_steps", "9", "--training.resume", "true")) == 0
    assert_same_tensors(whole / "model.safetensors", grown / "model.safetensors")
    assert lines(whole) == lines(grown), "the end of the short run was evaluated by the long one too"
    a, b = summary_of(whole), summary_of(grown)
    assert a["adaptation_steps"] == b["adaptation_steps"] == 9
    for key in ("target_accuracy_before", "target_accuracy_after", "checkpoints", "validators", "gradient_cosine"):
        assert a[key] == b[key], key
    assert (whole / "selected").exists() == (grown / "selected").exists()
    if (whole / "selected").exists():
        assert_same_tensors(whole / "selected" / "model.safetensors", grown / "selected" / "model.safetensors")
    capsys.readouterr()
    assert run(arguments(grown, *options, "--training.max_steps", "9", "--training.resume", "true")) == 2
    assert "for more steps, raise training.max_steps" in capsys.readouterr().err


def test_an_evaluation_that_the_longer_run_does_not_make_stays_as_one_by_the_way(tmp_path):
    options = ["--model.alignment", "mmd", "--training.checkpoint_every", "5", "--training.evaluate_every", "0"]
    assert run(arguments(tmp_path, *options)) == 0
    assert run(arguments(tmp_path, *options, "--training.max_steps", "7", "--training.resume", "true")) == 0
    names = [(line["step"], line["evaluation"]) for line in lines(tmp_path) if "evaluation" in line]
    assert names == [(4, "before"), (LAST_OF_SHORT, f"step {LAST_OF_SHORT}"), (11, "after")]


def test_what_cannot_become_longer_says_how_to_train_on(tmp_path, capsys):
    run_folder, keeps = tmp_path / "run", ["--training.checkpoint_every", "5"]
    assert run(arguments(run_folder, *keeps)) == 0
    before = {path: path.read_bytes() for path in run_folder.rglob("*") if path.is_file()}
    capsys.readouterr()
    assert run(arguments(run_folder, *keeps, "--training.max_steps", "7", "--training.resume", "true")) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert "has 6 and cannot become longer, because the alignment loss (DANN)" in line
    advice = shlex.split(line.partition("start a new run: ")[2])
    assert advice[:2] == ["--model.checkpoint", str(run_folder)]
    assert before == {path: path.read_bytes() for path in run_folder.rglob("*") if path.is_file()}
    assert run(["train", "--config", TINY, "--training.max_steps", "1", *advice]) == 0
    found = summary_of(tmp_path / "run-more")
    assert found["target_accuracy_before"] == summary_of(run_folder)["target_accuracy_after"]


def test_the_other_reasons(tmp_path, capsys):
    output = tmp_path / "run"

    def refusal(*options: str) -> str:
        assert run(arguments(output, *options, "--training.max_steps", "3", "--training.resume", "true")) == 2
        return capsys.readouterr().err

    short = ["--coordination.method", "source_only", "--training.source_steps", "0", "--training.max_steps", "2"]
    assert run(arguments(output, *short)) == 0
    assert "kept no checkpoint (training.checkpoint_every)" in refusal(*short)
    for number, (options, word) in enumerate(
        [(["--optimizer.schedule", "cosine"], "cosine"), (["--training.recalibrate_bn", "target"], "recalibrate_bn")]
    ):
        output = tmp_path / str(number)
        options = [*short, "--training.checkpoint_every", "2", *options]
        assert run(arguments(output, *options)) == 0
        assert word in refusal(*options)
    (output / "summary.json").unlink()
    assert "finish it with training.max_steps 2" in refusal(*options)


@pytest.mark.parametrize("kind", [CORAL, DANN, JMMD, MCC, MDD, MMD])
def test_objectives_say_whether_they_use_progress(kind):
    torch.manual_seed(0)
    features = torch.randn(8, 6, requires_grad=True)
    objective = kind(6, 3).eval()
    gradients = []
    for progress in (0.1, 0.9):
        domains = torch.tensor([0] * 4 + [1] * 4)
        labels = torch.tensor([0, 1, 2, 0] + [-100] * 4)
        logits = features @ torch.ones(6, 3).tril()
        loss = objective(AlignmentBatch(features, logits, domains, progress, labels)).loss
        gradients.append(torch.autograd.grad(loss, features)[0])
    assert objective.uses_progress != torch.equal(*gradients)
    assert not PerSource.uses_progress, "its inner objectives are asked"
