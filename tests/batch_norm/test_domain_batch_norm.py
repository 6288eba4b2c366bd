"""Batch normalisation by domain: against separate passes, in the step, in the files, in evaluation, after a kill."""

import copy
import json

import pytest
import timm
import torch
from safetensors.torch import load_file
from torch import nn
from transformers import AutoImageProcessor, AutoModelForImageClassification

from metaalign_hf import load_config, load_domain_pair
from metaalign_hf.batch_norm import SourceStatistics, running_statistics
from metaalign_hf.cli import run
from metaalign_hf.coordination import Joint, MetaAlign
from metaalign_hf.data import evaluation_batches
from metaalign_hf.evaluation import evaluate_classifier
from metaalign_hf.tasks.building import build_task
from metaalign_hf.tasks.classification.mixing import with_target_labels
from tests.helpers.runs import TINY, assert_same_run, launch, lines, run_until_checkpoint, train, weights

PER_DOMAIN = ["--training.batch_norm", "per_domain"]
AVERAGE = ["--training.ema_decay", "0.5"]
TWO = pytest.mark.skipif(torch.cuda.device_count() == 1, reason="two processes need two GPUs or none")
INVERTED = ["--data.source", "mnist", "--data.target", "mnist_m"]


def build(**overrides):
    """A task in training mode, with the source's statistics kept aside, and batches of its two domains."""
    torch.manual_seed(0)
    without_dropout = {"model.alignment": {"name": "dann", "hidden": 16, "dropout": 0.0}}
    config = load_config(TINY, {"training.batch_norm": "per_domain", **without_dropout, **overrides})
    task = build_task(config)
    task.model.train()
    task.statistics.begin_adaptation()
    source, target = task.streams(0, 0, 0, 1)
    return task, [next(source) for _ in range(3)], [next(target) for _ in range(3)]


def assert_statistics_equal(found: nn.Module, expected: nn.Module) -> None:
    ours, theirs = running_statistics(found), running_statistics(expected)
    assert ours
    for name in theirs:
        torch.testing.assert_close(ours[name], theirs[name], msg=name)


def gradients(task, coordinator: type, closures) -> dict[str, torch.Tensor]:
    optimizer = torch.optim.SGD(task.model.parameters(), lr=0.1)
    if coordinator is Joint:
        Joint(optimizer).backward(both=closures.both)
    else:
        MetaAlign(optimizer, inner_lr=0.0).backward(closures.task, closures.alignment, shared=closures.shared)
    return {name: p.grad.clone() for name, p in task.model.named_parameters() if p.grad is not None}


def rows_seen(layer: nn.Module, passes) -> list[int]:
    seen: list[int] = []
    handle = layer.register_forward_pre_hook(lambda _, inputs: seen.append(len(inputs[0])))
    for one in passes:
        one()
    handle.remove()
    return seen


@pytest.mark.parametrize("backbone", ["resnet", "mobilenetv3_small_050"])
def test_both_domains_are_normalised_and_counted_as_in_passes_of_their_own(backbone):
    """Logits and running statistics of mixed passes, against two models that each see one domain."""
    options = {"model.backbone": backbone, "model.bottleneck_dim": 8}
    if backbone != "resnet":
        options["model.backbone_options"] = {"drop_rate": 0.0}
    task, sources, targets = build(**options)
    model = task.model
    if backbone != "resnet":
        assert any(isinstance(layer, timm.layers.BatchNormAct2d) for layer in model.modules())
    alone = {"source": copy.deepcopy(model), "target": copy.deepcopy(model)}
    for source, target in zip(sources, targets, strict=True):
        expected = [alone["source"](source["pixel_values"]).logits, alone["target"](target["pixel_values"]).logits]
        mixed = torch.cat([source["pixel_values"], target["pixel_values"]])
        with task.statistics.source.per_domain(model, len(source["pixel_values"]), len(mixed)):
            found = model(mixed).logits
        torch.testing.assert_close(found, torch.cat(expected), rtol=1e-4, atol=1e-5)
        assert not torch.allclose(found, copy.deepcopy(model)(mixed).logits, rtol=1e-3)
    assert_statistics_equal(model, alone["target"])
    own = {name: value.clone() for name, value in running_statistics(model).items()}
    with task.statistics.as_source(model):
        assert_statistics_equal(model, alone["source"])
    assert all(torch.equal(value, own[name]) for name, value in running_statistics(model).items())


def test_only_passes_on_both_domains_move_the_statistics():
    for scope in ("all", "last_stage"):
        task, sources, targets = build(**{"coordination.inner_scope": scope})
        closures = task.closures(task.model, sources[:1], targets[:1], 0.5)
        alone = [copy.deepcopy(task.model) for _ in range(2)]
        for model, batch in zip(alone, (sources[0], targets[0]), strict=True):
            model(batch["pixel_values"])
        if scope == "all":
            before = running_statistics(task.model)
            closures.task[0]()
            after = running_statistics(task.model)
            assert all(torch.equal(before[name], after[name]) for name in before)
        else:
            closures.task[0]()
        closures.alignment[0]()
        assert_statistics_equal(task.model, alone[1])
        with task.statistics.as_source(task.model):
            assert_statistics_equal(task.model, alone[0])


@pytest.mark.parametrize("scope", ["all", "last_stage", "head"])
def test_without_an_inner_step_it_is_the_joint_step_with_a_task_pass_on_the_source_alone(scope):
    """Law 1, for full passes and for a shared prefix, past which the task pass goes on with the source's rows."""
    found = {}
    options = {"model.bottleneck_dim": 8}
    steps = {Joint: {"coordination.method": "joint"}, MetaAlign: {"coordination.inner_scope": scope}}
    for kind, step in steps.items():
        task, sources, targets = build(**options, **step)
        closures = task.closures(task.model, sources, targets, 0.5)
        found[kind] = gradients(task, kind, closures)
    for name, expected in found[Joint].items():
        torch.testing.assert_close(found[MetaAlign][name], expected, rtol=1e-3, atol=1e-5, msg=name)
    closures = task.closures(task.model, sources, targets, 0.5)
    layer = task.model.bottleneck[1]
    assert rows_seen(layer, closures.task) == [8] * 3 and rows_seen(layer, closures.alignment) == [16] * 3


def test_labelled_target_rows_are_normalised_with_the_target():
    """Law 1 with them: the task pass is then on both domains."""
    found, passes = {}, {}
    for kind in (Joint, MetaAlign):
        task, sources, targets = build()
        few = {"pixel_values": targets[2]["pixel_values"][:3], "labels": torch.tensor([1, 2, 3])}
        source = [with_target_labels(sources[0], few)]
        passes[kind] = task.closures(task.model, source, targets[:1], 0.5)
        found[kind] = gradients(task, kind, passes[kind])
    for name, expected in found[Joint].items():
        torch.testing.assert_close(found[MetaAlign][name], expected, rtol=1e-3, atol=1e-5, msg=name)
    alone = build()[0].model
    alone(torch.cat([few["pixel_values"], targets[0]["pixel_values"]]))
    assert_statistics_equal(task.model, alone)


class Folded(nn.Module):
    """Places become rows before the normalisation, as in LeViT."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """`(B, N, 3)` -> the same."""
        return self.norm(x.flatten(0, 1)).reshape(x.shape)


def test_places_folded_into_rows_go_with_their_image():
    model = Folded().train()
    x = torch.randn(6, 2, 3)
    statistics = SourceStatistics(model)
    with statistics.per_domain(model, 4, 6):
        found = model(x)
    assert "forward" not in vars(model.norm), "nothing stays behind"
    expected = torch.cat([(part - part.mean((0, 1))) / part.std((0, 1), correction=0) for part in (x[:4], x[4:])])
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)
    with statistics.per_domain(model, 4, 6), pytest.raises(ValueError, match="4 rows of a batch of 6"):
        model(x[:2])


@pytest.mark.parametrize("scope", ["all", "last_stage"])
def test_a_run_with_inner_lr_0_is_the_joint_run(scope, tmp_path):
    train(tmp_path / "joint", *PER_DOMAIN, "--coordination.method", "joint")
    train(tmp_path / "zero", *PER_DOMAIN, "--coordination.inner_lr", "0", "--coordination.inner_scope", scope)
    joint, zero = weights(tmp_path / "joint"), weights(tmp_path / "zero")
    for name in joint:
        torch.testing.assert_close(zero[name], joint[name], rtol=1e-3, atol=1e-5, msg=name)


def test_a_shared_prefix_trains_to_the_same_weights(tmp_path):
    options = [*PER_DOMAIN, "--coordination.inner_scope", "last_stage"]
    train(tmp_path / "shared", *options)
    train(tmp_path / "full", *options, "--coordination.share_prefix", "false")
    shared, full = weights(tmp_path / "shared"), weights(tmp_path / "full")
    for name in full:
        torch.testing.assert_close(shared[name], full[name], rtol=1e-4, atol=1e-6, msg=name)


@pytest.mark.parametrize(
    ("processes", "average"),
    [(1, []), (1, AVERAGE), pytest.param(2, [], marks=TWO), pytest.param(2, AVERAGE, marks=[TWO, pytest.mark.slow])],
)
def test_the_saved_model_is_the_targets_and_source_figures_are_the_sources(processes, average, tmp_path):
    """Also where two processes share the evaluation: both measure the model that one of them saves."""
    output = tmp_path / "run"
    options = [*PER_DOMAIN, *INVERTED, "--training.checkpoint_every", "10", *average]
    if processes == 1:
        summary = train(output, *options)
    else:
        done = launch(output, *options)
        assert done.returncode == 0, done.stderr[-3000:]
        summary = json.loads((output / "summary.json").read_text())
    model = AutoModelForImageClassification.from_pretrained(output)
    statistics = SourceStatistics(model)
    statistics.load_state_dict(load_file(output / "checkpoints" / "step-000010" / "source_statistics.safetensors"))
    pair = load_domain_pair("mnist", "mnist_m")
    processor = AutoImageProcessor.from_pretrained(output)

    def accuracy(view) -> float:
        return evaluate_classifier(model, evaluation_batches(view, processor, 500), 10).accuracy

    assert accuracy(pair.target_evaluation) == summary["target_accuracy_after"]
    assert accuracy(pair.source_test) != summary["source_accuracy_after"]
    with statistics.swapped_in(model):
        assert accuracy(pair.source_test) == summary["source_accuracy_after"]
        assert accuracy(pair.target_evaluation) != summary["target_accuracy_after"]
    logged = [line for line in lines(output) if "evaluation" in line][-1]
    assert logged["source_accuracy"] == summary["source_accuracy_after"]
    plain = build_task(load_config(output / "training_config.yaml"), pair, model)
    with statistics.swapped_in(model):
        as_source = plain.validate(model, 0, 1)
    as_target = plain.validate(model, 0, 1)
    assert logged["validator_source_accuracy"] == as_source["source_accuracy"] != as_target["source_accuracy"]
    assert logged["validator_bnm"] == pytest.approx(as_target["bnm"]) != as_source["bnm"]
    assert any("holds the target's" in note for note in summary["notes"])


def test_the_source_phase_is_that_of_mixed(tmp_path):
    """Also its figures: the domains part with the first adaptation step."""
    found = [train(tmp_path / name, "--training.batch_norm", name) for name in ("per_domain", "mixed")]
    keys = ("source_accuracy_before", "target_accuracy_before")
    assert [found[0][key] for key in keys] == [found[1][key] for key in keys]
    phases = [[line for line in lines(tmp_path / name) if line["step"] <= 4] for name in ("per_domain", "mixed")]
    assert phases[0] == phases[1]
    train(tmp_path / "alone", *PER_DOMAIN, "--coordination.method", "source_only")
    train(tmp_path / "alone_mixed", "--training.batch_norm", "mixed", "--coordination.method", "source_only")
    assert_same_run(tmp_path / "alone", tmp_path / "alone_mixed")


@pytest.mark.parametrize("killed_at", [4, 7])
def test_law_7_stop_and_resume_is_never_having_stopped(killed_at, tmp_path):
    """Killed at the end of the source phase, and when the domains have statistics of their own."""
    options = [*PER_DOMAIN, *INVERTED, "--training.evaluate_every", "1", "--training.ema_decay", "0.5"]
    options += ["--coordination.inner_scope", "last_stage", "--training.selection_images", "64"]
    train(tmp_path / "whole", *options, "--training.checkpoint_every", "10")
    arguments = ["train", "--config", TINY, "--training.output_dir", str(tmp_path / "killed"), *options]
    arguments += ["--training.checkpoint_every", str(killed_at)]
    run_until_checkpoint(arguments)
    assert run([*arguments, "--training.resume", "true"]) == 0
    assert_same_run(tmp_path / "whole", tmp_path / "killed")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--training.compile", "true"], ["training.batch_norm", "training.compile"]),
        (["--training.gradient_checkpointing", "true"], ["training.batch_norm", "training.gradient_checkpointing"]),
        (
            ["--model.backbone", "vit_tiny_patch16_224", "--model.backbone_options", "{img_size: 16, patch_size: 8}"],
            ["training.batch_norm: per_domain", "no batch normalisation", "auto"],
        ),
        (["--training.batch_norm", "per_domian"], ["training.batch_norm", "per_domian", "did you mean per_domain?"]),
    ],
    ids=["compile", "checkpointing", "vit", "unknown"],
)
def test_what_cannot_work_is_refused_in_one_line(options, words, capsys, tmp_path):
    command = ["train", "--config", TINY, "--training.output_dir", str(tmp_path / "run"), *PER_DOMAIN, *options]
    assert run(command) == 2
    error = capsys.readouterr().err
    assert all(word in error for word in words) and error.count("\n") == 1, error
    assert not (tmp_path / "run").exists()
