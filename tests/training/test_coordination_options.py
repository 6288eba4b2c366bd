"""What the step can be asked for, through configuration and the loop: orders, scopes, groups, averages, processes."""

import json
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import load_file
from transformers import AutoImageProcessor, AutoModelForImageClassification, AutoModelForObjectDetection

from metaalign_hf import load_domain, parse_config
from metaalign_hf.cli import run
from metaalign_hf.coordination import RememberedMetaAlign
from metaalign_hf.data import evaluation_batches
from metaalign_hf.evaluation import evaluate_classifier
from metaalign_hf.training.steps import build_coordinator
from tests.helpers.runs import (
    TINY,
    TINY_DETECTION,
    assert_same_run,
    launch,
    lines,
    run_until_checkpoint,
    train,
    weights,
)

VIT = [
    *("--model.backbone", "vit_tiny_patch16_224"),
    *("--model.backbone_options", "{img_size: 16, patch_size: 8, depth: 4, embed_dim: 12, num_heads: 2}"),
]


def steps(output: Path) -> list[dict]:
    return [line for line in lines(output) if line.get("phase") == "adaptation"]


@pytest.mark.parametrize(
    "options",
    [
        ["--coordination.order", "2"],
        ["--coordination.inner_scope", "last_stage", "--training.gradient_accumulation_steps", "2"],
        ["--coordination.inner_scope", "head", "--model.alignment", "gvb"],
        ["--coordination.inner_scope", "last_stage", "--training.gradient_checkpointing", "true", *VIT],
        ["--coordination.groups", "stage", "--coordination.roles", "task", *VIT],
        ["--coordination.order", "2", "--model.attention", "eager", *VIT],
        ["--training.ema_decay", "0.9"],
        ["--coordination.smoothing", "0.05"],
    ],
    ids=lambda options: " ".join(options[:4]),
)
def test_options_train_to_a_checkpoint_that_loads(options, tmp_path):
    summary = train(tmp_path / "run", *options, "--coordination.inner_lr", "3")
    model = AutoModelForImageClassification.from_pretrained(tmp_path / "run")
    assert all(torch.isfinite(value).all() for value in model.state_dict().values() if value.is_floating_point())
    assert summary["gradient_cosine"] is not None
    taken = steps(tmp_path / "run")
    assert all(line["displacement"] > 0 for line in taken)
    if "task" in options:
        assert {line["first"] for line in taken} == {"task"}
    if "stage" in options:
        assert {"weight/stem", "weight/stage4", "cosine/stage1", "inner_product/head"} <= set(taken[-1])


@pytest.mark.parametrize("scope", ["all", "last_stage"])
def test_with_inner_lr_0_a_run_is_the_joint_run(scope, tmp_path):
    """Also with live batch statistics: every pass of a step sees both domains."""
    train(tmp_path / "joint", "--coordination.method", "joint")
    options = ["--coordination.inner_lr", "0", "--coordination.inner_scope", scope]
    train(tmp_path / "zero", *options)
    joint, zero = weights(tmp_path / "joint"), weights(tmp_path / "zero")
    for name in joint:
        torch.testing.assert_close(zero[name], joint[name], rtol=1e-3, atol=1e-5, msg=name)
    train(tmp_path / "published", *options[:2], "--training.batch_norm", "train")
    assert any(not torch.allclose(joint[name], value) for name, value in weights(tmp_path / "published").items())


def test_a_shared_prefix_trains_to_the_same_weights(tmp_path):
    options = ["--coordination.inner_scope", "last_stage", "--training.batch_norm", "frozen"]
    train(tmp_path / "shared", *options)
    train(tmp_path / "full", *options, "--coordination.share_prefix", "false")
    shared, full = weights(tmp_path / "shared"), weights(tmp_path / "full")
    for name in full:
        torch.testing.assert_close(shared[name], full[name], rtol=1e-4, atol=1e-6, msg=name)
    train(tmp_path / "all", *options[2:])
    assert any(not torch.allclose(full[name], value, rtol=1e-4) for name, value in weights(tmp_path / "all").items())


def test_the_average_of_the_weights_is_what_is_evaluated_and_saved(tmp_path):
    train(tmp_path / "plain", "--training.checkpoint_every", "10")
    summary = train(tmp_path / "average", "--training.ema_decay", "0.99", "--training.checkpoint_every", "10")
    raw = [load_file(tmp_path / run_ / "checkpoints/step-000010/model.safetensors") for run_ in ("plain", "average")]
    assert all(torch.equal(raw[0][name], raw[1][name]) for name in raw[0]), "averaging does not touch training"
    saved = weights(tmp_path / "average")
    kept = load_file(tmp_path / "average/checkpoints/step-000010/average.safetensors")
    assert all(torch.equal(saved[name], kept[name]) for name in saved)
    assert not torch.equal(saved["classifier.weight"], weights(tmp_path / "plain")["classifier.weight"])
    model = AutoModelForImageClassification.from_pretrained(tmp_path / "average")
    batches = evaluation_batches(
        load_domain("mnist").test, AutoImageProcessor.from_pretrained(tmp_path / "average"), 500
    )
    assert evaluate_classifier(model, batches, 10).accuracy == summary["target_accuracy_after"]


def test_law_7_holds_with_group_weights_and_an_average(tmp_path):
    options = ["--coordination.groups", "stage", "--coordination.weight_lr", "5", "--training.ema_decay", "0.9"]
    options += ["--optimizer.name", "adamw", *VIT]
    train(tmp_path / "whole", *options)
    arguments = ["train", "--config", TINY, "--training.output_dir", str(tmp_path / "killed"), *options]
    arguments += ["--training.checkpoint_every", "7"]
    run_until_checkpoint(arguments)
    assert run([*arguments, "--training.resume", "true"]) == 0
    assert_same_run(tmp_path / "whole", tmp_path / "killed")
    assert steps(tmp_path / "killed")[-1]["weight/stage4"] != 1.0


@pytest.mark.parametrize("method", ["heun", "extragradient", "pga"])
def test_the_other_steps_train_to_a_checkpoint_that_loads(method, tmp_path):
    train(tmp_path / "run", "--coordination.method", method)
    model = AutoModelForImageClassification.from_pretrained(tmp_path / "run")
    assert all(torch.isfinite(value).all() for value in model.state_dict().values() if value.is_floating_point())
    assert all(line["displacement"] > 0 for line in steps(tmp_path / "run"))


REMEMBERED = ["--coordination.direction", "remembered"]


@pytest.mark.parametrize(
    "options",
    [REMEMBERED, [*REMEMBERED, "--coordination.remember", "role", "--training.gradient_accumulation_steps", "2"]],
    ids=["total", "role"],
)
def test_law_7_holds_with_a_remembered_gradient(options, tmp_path):
    """Killed between two refreshes of the role's gradient; the memory is part of the checkpoint."""
    train(tmp_path / "whole", *options)
    arguments = ["train", "--config", TINY, "--training.output_dir", str(tmp_path / "killed"), *options]
    arguments += ["--training.checkpoint_every", "7"]
    run_until_checkpoint(arguments)
    assert run([*arguments, "--training.resume", "true"]) == 0
    assert_same_run(tmp_path / "whole", tmp_path / "killed")
    taken = steps(tmp_path / "killed")
    assert taken[-1]["displacement"] > 0


def test_a_resumed_run_goes_on_counting_evaluations(tmp_path):
    """Pushes come at every n-th evaluation, so the count is part of a checkpoint."""
    arguments = ["train", "--config", TINY, "--training.output_dir", str(tmp_path / "run")]
    arguments += ["--training.checkpoint_every", "3", "--training.evaluate_every", "2"]
    run_until_checkpoint(arguments)
    assert run([*arguments, "--training.resume", "true"]) == 0
    state = json.loads((tmp_path / "run/checkpoints/step-000009/state.json").read_text())
    made = [line for line in lines(tmp_path / "run") if "evaluation" in line and line["step"] <= 9]
    assert state["evaluation_count"] == len(made) > 3


def test_the_default_step_is_metaalign_from_memory():
    config = parse_config(["--data.source", "mnist", "--data.target", "mnist_m"])
    model = torch.nn.Linear(2, 2)
    coordinator = build_coordinator(
        config.coordination, torch.optim.SGD(model.parameters(), 0.1), model, Accelerator(cpu=True)
    )
    assert type(coordinator) is RememberedMetaAlign and coordinator.remember == "total"
    assert (coordinator.inner.rule, coordinator.inner.inner_lr) == ("update", 3.0)


def test_with_rho_0_a_remembered_run_is_the_joint_run_bit_for_bit(tmp_path):
    train(tmp_path / "joint", "--coordination.method", "joint")
    train(tmp_path / "zero", *REMEMBERED, "--coordination.inner_lr", "0")
    joint, zero = weights(tmp_path / "joint"), weights(tmp_path / "zero")
    assert all(torch.equal(zero[name], joint[name]) for name in joint)
    train(tmp_path / "moved", *REMEMBERED)
    assert any(not torch.equal(weights(tmp_path / "moved")[name], joint[name]) for name in joint)


def test_a_resumed_run_whose_memory_is_missing_says_so(tmp_path, capsys):
    arguments = ["train", "--config", TINY, "--training.output_dir", str(tmp_path / "run"), *REMEMBERED]
    arguments += ["--training.checkpoint_every", "7"]
    run_until_checkpoint(arguments)
    (memory,) = (tmp_path / "run/checkpoints").glob("step-*/coordination.safetensors")
    memory.unlink()
    assert run([*arguments, "--training.resume", "true"]) == 2
    message = capsys.readouterr().err
    assert "coordination.safetensors" in message and message.count("\n") == 1


@pytest.mark.parametrize(
    ("options", "key"),
    [
        ([*REMEMBERED, "--coordination.order", "2"], "coordination.order"),
        ([*REMEMBERED, "--coordination.refresh_every", "0"], "coordination.refresh_every is 0"),
        ([*REMEMBERED, "--coordination.inner_lr", "-1"], "coordination.inner_lr is -1"),
        ([*REMEMBERED, "--coordination.inner_lr", ".inf"], "coordination.inner_lr is inf"),
        ([*REMEMBERED, "--coordination.inner_rule", "normalised"], "coordination.inner_lr"),
        (
            [*REMEMBERED, "--coordination.inner_rule", "trust_ratio", "--coordination.inner_lr", "100"],
            "coordination.inner_lr is 100",
        ),
        (["--coordination.method", "pga", "--coordination.smoothing", "0.1"], "coordination.smoothing"),
        (["--coordination.order", "2", "--training.compile", "true"], "training.compile"),
    ],
)
def test_a_step_that_cannot_work_is_refused_in_one_line(options, key, tmp_path, capsys):
    assert run(["train", "--config", TINY, "--training.output_dir", str(tmp_path / "run"), *options]) == 2
    message = capsys.readouterr().err
    assert key in message and message.count("\n") == 1
    assert not (tmp_path / "run").exists()


@pytest.mark.skipif(torch.cuda.device_count() == 1, reason="two processes need two GPUs or none")
def test_two_processes_train_as_one(tmp_path):
    """Half the batch on each of two processes gives the run of one process, its last bits apart."""
    options = ["--training.batch_norm", "frozen", "--data.augmentation", "none", "--coordination.groups", "stage"]
    options += ["--model.alignment", "{name: dann, hidden: 16, dropout: 0.0}", *VIT]
    done = launch(tmp_path / "two", *options, "--training.batch_size", "4")
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("Next, try:") == 1, "only the main process speaks"
    one = train(tmp_path / "one", *options, "--training.batch_size", "8")
    two = json.loads((tmp_path / "two" / "summary.json").read_text())
    a, b = weights(tmp_path / "one"), weights(tmp_path / "two")
    for name in a:
        torch.testing.assert_close(b[name], a[name], rtol=1e-3, atol=1e-5, msg=name)
    assert two["gradient_cosine"] == pytest.approx(one["gradient_cosine"], abs=1e-3)
    assert two["target_test_images"] == one["target_test_images"] == 1000


@pytest.mark.skipif(torch.cuda.device_count() == 1, reason="two processes need two GPUs or none")
def test_two_processes_train_one_detector(tmp_path):
    """Not the run of one process: the losses of transformers' detectors are normalised in each process by itself."""
    output, config = tmp_path / "run", TINY_DETECTION
    done = launch(output, "--training.batch_size", "2", "--training.max_steps", "2", config=config)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("Next, try:") == 1, "only the main process speaks"
    assert json.loads((output / "summary.json").read_text())["target_test_images"] == 200
    assert all(line["alignment_gradient_norm"] > 0 for line in steps(output))
    AutoModelForObjectDetection.from_pretrained(output)


@pytest.mark.slow
def test_a_compiled_run_trains_to_a_checkpoint_that_loads(tmp_path):
    train(tmp_path / "run", "--training.compile", "true", "--training.source_steps", "1", "--training.max_steps", "2")
    assert not any("_orig_mod" in name for name in weights(tmp_path / "run"))
    AutoModelForImageClassification.from_pretrained(tmp_path / "run")


def test_the_penalty_of_gvb_is_told_apart_from_its_alignment(tmp_path, capsys):
    """It stands in both losses, so a cosine with it would say that they agree."""
    summary = train(tmp_path / "run", "--model.alignment", "{name: gvb, hidden: 16}")
    measured = [line for line in steps(tmp_path / "run") if "cosine" in line]
    assert [line["step"] for line in measured] == [6], "a pass more, so in few steps only"
    assert summary["gradient_cosine"] == pytest.approx(measured[0]["cosine"])
    assert summary["penalty_cosine"] == pytest.approx(measured[0]["penalty_cosine"])
    assert summary["penalty"] == "generator bridge" and abs(summary["gradient_cosine"]) > 1e-3
    assert "It leaves out the penalty of the generator bridge" in capsys.readouterr().out
    assert "the penalty of the generator bridge (in both losses" in (tmp_path / "run" / "README.md").read_text()
