"""Model selection without target labels: the rule, the files, the summary, resume, and what it must not know."""

import json
import os
import signal
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from transformers import AutoModelForImageClassification

from metaalign_hf import load_config, load_domain_pair
from metaalign_hf.batch_norm import recalibrate_batch_norm, running_statistics
from metaalign_hf.cli import run
from metaalign_hf.data import evaluation_batches
from metaalign_hf.evaluation import evaluate_classifier, validator_names
from metaalign_hf.models import build_image_processor
from metaalign_hf.training.selection import Evaluation, Selection, choose, still_selectable
from tests.helpers.runs import TINY

OPTIONS = ["--training.max_steps", "12", "--training.evaluate_every", "2", "--training.selection_images", "64"]

VIT = "{image_size: 16, patch_size: 8, hidden_size: 12, num_hidden_layers: 1, num_attention_heads: 2}"


def train(output: Path, *options: str) -> dict:
    # Without selection nothing reads how many images it takes.
    selects = ("--training.select_by", "null") not in pairwise(options)
    given = [*(OPTIONS if selects else OPTIONS[:4]), *options]
    assert run(["train", "--config", TINY, "--training.output_dir", str(output), *given]) == 0
    return json.loads((output / "summary.json").read_text())


def evaluations(output: Path) -> list[dict]:
    return [
        line for line in map(json.loads, (output / "metrics.jsonl").read_text().splitlines()) if "evaluation" in line
    ]


def rows(summary: dict) -> dict[str, dict]:
    return {row["checkpoint"].split(" ")[0]: row for row in summary["checkpoints"]}


def test_the_best_score_within_the_guard_is_chosen():
    found = [Evaluation(1, 0.95, 3.0), Evaluation(2, 0.89, 9.0), Evaluation(3, 0.91, 5.0), Evaluation(4, 0.92, 4.0)]
    assert choose(found, 0.05).step == 3
    assert choose(found, 0.0).step == 1
    assert choose(found, 1.0).step == 2
    assert choose([Evaluation(1, 0.9, 3.0), Evaluation(2, 0.9, 3.0)], 0.05).step == 2, "of equals the last"
    assert choose([Evaluation(1, 0.5, -np.inf)], 0.05).step == 1


def test_no_weights_are_deleted_that_the_whole_history_selects():
    generator = np.random.default_rng(0)
    for _ in range(300):
        values = generator.integers(0, 6, size=(10, 2)) / 5
        history = [Evaluation(step, *pair) for step, pair in enumerate(values.tolist())]
        kept: set[int] = set()
        for end in range(1, 11):
            kept = {e.step for e in still_selectable(history[:end], 0.3)} & (kept | {end - 1})
            assert choose(history[:end], 0.3).step in kept


def test_target_figures_do_not_select():
    found = [Evaluation(1, 0.9, 1.0, 0.99), Evaluation(2, 0.9, 2.0, 0.01)]
    assert choose(found, 0.05).step == 2
    assert [e.step for e in still_selectable(found, 0.05)] == [2]


def test_weights_that_a_resumable_checkpoint_refers_to_stay(tmp_path):
    selection = Selection(tmp_path, "bnm", 0.1, writes=True)
    model = nn.Linear(2, 2)

    def files() -> set[str]:
        return {path.name for path in (tmp_path / "candidates").iterdir()}

    selection.offer(Evaluation(1, 0.9, 1.0), model)
    folder = tmp_path / "checkpoints" / "step-000001"
    folder.mkdir(parents=True)
    (folder / "state.json").write_text(json.dumps({"step": 1, "selection": selection.state()}))
    selection.offer(Evaluation(2, 0.9, 2.0), model)
    assert files() == {"step-000001.safetensors", "step-000002.safetensors"}
    (folder / "state.json").unlink()
    selection.prune()
    assert files() == {"step-000002.safetensors"}


def test_a_last_model_that_the_guard_keeps_out_is_explained(tmp_path):
    selection = Selection(tmp_path, "bnm", 0.05, writes=True)
    selection.offer(Evaluation(60, 1.0, 0.577), nn.Linear(2, 2))
    selection.offer(Evaluation(140, 0.96, 0.7), nn.Linear(2, 2))
    assert selection.why_not_the_last() is None
    selection.offer(Evaluation(160, 0.917, 0.799), nn.Linear(2, 2))
    assert selection.selected().step == 140
    assert "91.7 %" in selection.why_not_the_last() and "100.0 %" in selection.why_not_the_last()


@pytest.fixture(scope="module", params=["bnm", "source_accuracy"])
def finished(request, tmp_path_factory):
    output = tmp_path_factory.mktemp("runs") / "finished"
    return output, train(output, "--training.select_by", request.param), request.param


def test_the_summary_says_which_checkpoint_each_number_is_of(finished, capsys):
    output, summary, name = finished
    found = evaluations(output)
    offered = [line for line in found if f"validator_{name}" in line]
    assert [line["evaluation"] for line in offered] == ["before", *(f"step {i}" for i in (6, 8, 10, 12, 14)), "after"]
    by_step = {line["step"]: line for line in offered}
    names = [row["checkpoint"] for row in summary["checkpoints"]]
    assert names == ["last", f"selected (label-free, {name})", "oracle (target labels)"]
    for row in summary["checkpoints"]:
        line = by_step[row["step"]]
        assert (row["source"], row["target"]) == (line["source_accuracy"], line["target_accuracy"])
    kept_out = offered[-1]["source_accuracy"] < max(line["source_accuracy"] for line in offered) - 0.05
    assert any("select_tolerance" in note for note in summary["notes"]) == kept_out
    best = max(line["source_accuracy"] for line in offered)
    eligible = [line for line in offered if line["source_accuracy"] >= best - 0.05]
    assert by_step[rows(summary)["selected"]["step"]][f"validator_{name}"] == max(
        line[f"validator_{name}"] for line in eligible
    )
    assert rows(summary)["oracle"]["target"] == max(line["target_accuracy"] for line in offered)
    assert rows(summary)["last"]["step"] == 16 and rows(summary)["last"]["target"] == summary["target_accuracy_after"]


def test_every_validator_is_logged(finished):
    logged = evaluations(finished[0])[-1]
    assert {f"validator_{name}" for name in validator_names()} == {
        name for name in logged if name.startswith("validator_")
    }
    assert logged["validator_source_accuracy"] == pytest.approx(logged["source_accuracy"], abs=0.1)


def measured(folder: Path) -> float:
    model = AutoModelForImageClassification.from_pretrained(folder)
    processor = build_image_processor(16, 18, model.config.image_mean, model.config.image_std)
    pair = load_domain_pair("uci_digits", "mnist")
    return evaluate_classifier(model, evaluation_batches(pair.target_evaluation, processor, 500), 10).accuracy


def assert_saved(output: Path, summary: dict) -> None:
    """Both checkpoints load and measure what the summary says."""
    found = rows(summary)
    assert not (output / "candidates").exists()
    assert measured(output) == found["last"]["target"]
    assert (output / "selected").exists() == (found["selected"]["step"] != 16)
    if (output / "selected").exists():
        assert measured(output / "selected") == found["selected"]["target"]


def test_both_checkpoints_load_and_measure_what_the_summary_says(finished):
    assert_saved(*finished[:2])


@pytest.mark.parametrize("options", [[], ["--training.ema_decay", "0.9", "--training.recalibrate_bn", "target"]])
def test_an_earlier_checkpoint_can_be_selected(options, tmp_path):
    """By entropy without a guard, which an untrained model often wins."""
    output = tmp_path / "run"
    summary = train(output, "--training.select_by", "entropy", "--training.select_tolerance", "1", *options)
    entropies = {line["step"]: line["validator_entropy"] for line in evaluations(output) if line["step"] > 3}
    assert rows(summary)["selected"]["step"] == min(entropies, key=entropies.get)
    assert_saved(output, summary)


def test_resume_restores_the_selection(tmp_path):
    """Killed two evaluations after the checkpoint of step 11, whose candidates it must not have lost by then."""
    options = ["--training.select_by", "entropy", "--training.select_tolerance", "1"]
    options += ["--training.checkpoint_every", "11"]
    expected = train(tmp_path / "whole", *options)
    script = (
        "import sys, os, signal\n"
        "from metaalign_hf.training import loop, selection\n"
        "from metaalign_hf.cli import run\n"
        "offer = selection.Selection.offer\n"
        "def offer_and_die(self, evaluation, model):\n"
        "    offer(self, evaluation, model)\n"
        "    if evaluation.step > 12:\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
        "selection.Selection.offer = offer_and_die\n"
        "run(sys.argv[1:])\n"
    )
    arguments = ["train", "--config", TINY, "--training.output_dir", str(tmp_path / "killed"), *OPTIONS, *options]
    died = subprocess.run([sys.executable, "-c", script, *arguments], capture_output=True, check=False)
    assert died.returncode == -signal.SIGKILL
    assert run([*arguments, "--training.resume", "true"]) == 0
    found = json.loads((tmp_path / "killed" / "summary.json").read_text())
    assert found["checkpoints"] == expected["checkpoints"]
    assert evaluations(tmp_path / "killed") == evaluations(tmp_path / "whole")
    for folder in ("", "selected"):
        files = [tmp_path / name / folder / "model.safetensors" for name in ("killed", "whole")]
        assert files[0].exists() == files[1].exists()
        if files[0].exists():
            a, b = map(load_file, files)
            assert all(torch.equal(a[name], b[name]) for name in b)


def test_selection_changes_nothing_of_the_training(tmp_path):
    train(tmp_path / "with")
    train(tmp_path / "without", "--training.select_by", "null")
    a, b = (load_file(tmp_path / name / "model.safetensors") for name in ("with", "without"))
    assert all(torch.equal(a[name], b[name]) for name in b)
    summary = json.loads((tmp_path / "without" / "summary.json").read_text())
    assert summary["checkpoints"] == [] and not (tmp_path / "without" / "selected").exists()


def test_the_default_interval_grows_where_evaluations_would_take_a_tenth_of_the_run(tmp_path):
    """205 steps of two images are cheaper than one evaluation: none is made but those at the ends of the phases."""
    options = ["--training.evaluate_every", "null", "--training.max_steps", "205", "--training.batch_size", "2"]
    train(tmp_path / "run", *options, "--training.select_by", "null")
    assert [line["step"] for line in evaluations(tmp_path / "run")] == [4, 209]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--training.select_by", "entrophy"], ["training.select_by", "did you mean entropy", "null"]),
        (["--training.select_by", "agreement", "--data.augmentation", "none"], ["agreement", "data.augmentation"]),
        (["--training.select_tolerance", "5"], ["select_tolerance", "from 0 to 1"]),
        (["--training.selection_images", "0"], ["selection_images", "1 or more"]),
        (["--training.evaluate_every", "-1"], ["evaluate_every", "0 or more"]),
        (["--training.recalibrate_bn", "source"], ["recalibrate_bn", "target"]),
        (
            ["--training.recalibrate_bn", "target", "--model.backbone", "vit", "--model.backbone_options", VIT],
            ["recalibrate_bn", "no batch normalisation"],
        ),
    ],
)
def test_bad_input_is_told_before_anything_is_written(options, words, capsys, tmp_path):
    assert run(["train", "--config", TINY, "--training.output_dir", str(tmp_path / "run"), *options]) == 2
    error = capsys.readouterr().err
    assert all(word in error for word in words) and error.count("\n") == 1, error
    assert not (tmp_path / "run").exists()


def test_too_few_images_select_nothing_and_say_so(tmp_path):
    summary = train(tmp_path / "run", "--training.selection_images", "3")
    assert summary["checkpoints"] == [] and any("No checkpoint was selected" in note for note in summary["notes"])


def test_recalibrated_statistics_are_those_of_the_target(tmp_path):
    """Of the first layer, whose input does not depend on other statistics, against numpy."""
    summary = train(tmp_path / "run", "--training.recalibrate_bn", "target", "--training.select_by", "null")
    train(tmp_path / "plain", "--training.select_by", "null")
    found, plain = (load_file(tmp_path / name / "model.safetensors") for name in ("run", "plain"))
    same = {name for name in plain if torch.equal(found[name], plain[name])}
    moved = {name for name in plain if name.endswith(("running_mean", "running_var", "num_batches_tracked"))}
    assert same == set(plain) - moved, "training is untouched, statistics are not"
    before = {line["evaluation"]: line for line in evaluations(tmp_path / "run")}["before"]
    assert before["target_accuracy"] == summary["target_accuracy_before"]

    model = AutoModelForImageClassification.from_pretrained(tmp_path / "run")
    config = load_config(TINY, {"training.output_dir": str(tmp_path / "x")})
    pair = load_domain_pair("uci_digits", "mnist")
    processor = build_image_processor(16, 18, model.config.image_mean, model.config.image_std)
    order = np.random.default_rng([config.training.seed, 3]).permutation(len(pair.target_train)).tolist()
    means, variances = [], []
    name, layer = next((n, m) for n, m in model.named_modules() if isinstance(m, nn.BatchNorm2d))
    seen: list[torch.Tensor] = []
    layer.register_forward_hook(lambda _, inputs, __: seen.append(inputs[0].detach()))
    for batch in evaluation_batches(pair.target_train.subset(order[:2000]), processor, 500):
        model.eval()(pixel_values=batch["pixel_values"])
        x = seen.pop().double().numpy()
        means.append(x.mean((0, 2, 3)))
        variances.append(x.var((0, 2, 3), ddof=1))
    np.testing.assert_allclose(found[f"{name}.running_mean"].numpy(), np.mean(means, 0), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(found[f"{name}.running_var"].numpy(), np.mean(variances, 0), rtol=1e-4)


def test_recalibration_leaves_modes_and_momentum_as_they_were():
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, momentum=0.3), nn.Dropout(0.5))

        def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
            return self.layers(pixel_values)

    net = Net().train()
    net.layers[2].eval()
    before = running_statistics(net)
    put_back = recalibrate_batch_norm(net, [torch.randn(4, 3, 8, 8) + 2 for _ in range(3)])
    assert net.training and net.layers[1].training and not net.layers[2].training
    assert net.layers[1].momentum == 0.3 and int(net.layers[1].num_batches_tracked) == 3
    assert not torch.equal(net.layers[1].running_mean, before["layers.1.running_mean"])
    put_back()
    assert torch.equal(net.layers[1].running_mean, before["layers.1.running_mean"])


def test_recalibration_adapts_a_source_only_model(tmp_path):
    """AdaBN as a method: on inverted digits the source's statistics are wrong, the target's are not."""
    found = {}
    for setting in ("none", "target"):
        options = ["--data.source", "mnist", "--data.target", "mnist_m", "--coordination.method", "source_only"]
        options += ["--training.max_steps", "150", "--training.batch_size", "32", "--training.recalibrate_bn", setting]
        options += ["--training.evaluate_every", "0", "--training.select_by", "null", "--optimizer.lr", "0.05"]
        found[setting] = train(tmp_path / setting, *options)["target_accuracy_after"]
    assert found["target"] > found["none"] + 0.03, found


@pytest.mark.slow
def test_two_processes_select_as_one_does(tmp_path):
    """All rows reach every process, in the order of one process, and so do the figures, also of an empty share."""
    script = tmp_path / "gather.py"
    script.write_text(
        "import os, torch, torch.distributed as dist\n"
        "from metaalign_hf.evaluation import gather_rows\n"
        "dist.init_process_group('gloo')\n"
        "whole = torch.arange(20).reshape(10, 2)\n"
        "found = gather_rows(whole[dist.get_rank() :: 2], 2)\n"
        "assert torch.equal(found, whole), found\n"
        "from types import SimpleNamespace\n"
        "from metaalign_hf.evaluation import evaluate_classifier\n"
        "torch.manual_seed(0)\n"
        "images, labels = torch.randn(7, 3), torch.tensor([0, 1, 1, 0, 1, 0, 1])\n"
        "class Linear(torch.nn.Linear):\n"
        "    def forward(self, pixel_values):\n"
        "        return SimpleNamespace(logits=super().forward(pixel_values))\n"
        "model = Linear(3, 2)\n"
        "def figures(rows):\n"
        "    batch = [{'pixel_values': images[rows], 'labels': labels[rows]}] if len(images[rows]) else []\n"
        "    return evaluate_classifier(model, batch, 2)\n"
        "shares = [figures(slice(dist.get_rank(), stop, 2)) for stop in (7, 1)]\n"
        "dist.destroy_process_group()\n"
        "assert [str(x) for x in shares] == [str(figures(slice(stop))) for stop in (7, 1)], shares\n"
    )
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--standalone", str(script)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ})
    assert done.returncode == 0, done.stderr
