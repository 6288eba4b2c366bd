"""A run from the command line to a checkpoint that loads: the files, the numbers, determinism, kill and resume."""

import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file
from transformers import AutoImageProcessor, AutoModelForImageClassification, pipeline

from metaalign_hf import load_config, load_domain_pair, parse_config
from metaalign_hf.cli import run
from metaalign_hf.data import evaluation_batches
from metaalign_hf.evaluation import evaluate_classifier
from tests.helpers.runs import ROOT, TINY, assert_same_run, lines, run_until_checkpoint, train, weights


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    output = tmp_path_factory.mktemp("runs") / "finished"
    return output, train(output)


def test_the_summary_is_what_the_loaded_checkpoint_measures(finished):
    output, summary = finished
    needed = {
        "source_accuracy_after",
        "target_accuracy_before",
        "target_accuracy_after",
        "gradient_cosine",
        "checkpoint",
    }
    assert needed <= set(summary) and summary["checkpoint"] == "last"
    assert -1 <= summary["gradient_cosine"] <= 1
    model = AutoModelForImageClassification.from_pretrained(output)
    processor = AutoImageProcessor.from_pretrained(output)
    pair = load_domain_pair("uci_digits", "mnist")
    for view, key in ((pair.source_test, "source_accuracy_after"), (pair.target_evaluation, "target_accuracy_after")):
        found = evaluate_classifier(model, evaluation_batches(view, processor, 500), 10)
        assert found.accuracy == summary[key]
    assert summary["source_test_images"] == 360 and summary["target_test_images"] == 1000


def test_the_folder_holds_no_pickle_and_the_metrics_are_complete(finished):
    output, summary = finished
    suffixes = {path.suffix for path in output.rglob("*") if path.is_file()}
    assert suffixes == {".json", ".jsonl", ".md", ".safetensors", ".yaml", ".png", ".txt"}
    assert (output / "figures" / "training.png").exists(), "a short run has its figure too"
    with Image.open(output / "target_images.png") as picture:
        assert picture.width > 8 * 150
    steps = [line for line in lines(output) if "phase" in line]
    assert [line["step"] for line in steps] == list(range(1, 11))
    assert [line["phase"] for line in steps] == ["source"] * 4 + ["adaptation"] * 6
    assert [line["first"] for line in steps[4:]] == ["task", "alignment"] * 3
    assert {"task_loss", "alignment_loss", "cosine", "inner_product", "lr"} <= set(steps[-1])
    cosines = [line["cosine"] for line in steps[4:]]
    assert summary["gradient_cosine"] == pytest.approx(sum(cosines) / 6)
    evaluations = {line["evaluation"]: line for line in lines(output) if "evaluation" in line}
    assert evaluations["before"]["target_accuracy"] == summary["target_accuracy_before"]


def test_the_learning_rate_follows_the_published_schedule(finished):
    steps = [line for line in lines(finished[0]) if "phase" in line]
    assert [line["lr"] for line in steps[4:]] == pytest.approx([0.01 * (1 + 0.001 * i) ** -0.75 for i in range(6)])


def test_the_resolved_configuration_repeats_the_run(finished, tmp_path):
    output = tmp_path / "again"
    config = finished[0] / "training_config.yaml"
    assert run(["train", "--config", str(config), "--training.output_dir", str(output)]) == 0
    assert_same_run(finished[0], output)


def test_another_seed_is_another_run(finished, tmp_path):
    train(tmp_path / "other", "--training.seed", "1")
    assert not torch.equal(weights(finished[0])["classifier.weight"], weights(tmp_path / "other")["classifier.weight"])


@pytest.mark.parametrize("killed_at", [3, 4, 6])
def test_law_7_stop_and_resume_is_never_having_stopped(finished, tmp_path, killed_at):
    """A run that dies after the checkpoint of step `killed_at` (source phase, its end, adaptation) and is resumed."""
    output = tmp_path / "killed"
    options = ["--training.checkpoint_every", str(killed_at)]
    arguments = ["train", "--config", TINY, "--training.output_dir", str(output), *options]
    run_until_checkpoint(arguments)
    assert not (output / "summary.json").exists()
    with (output / "metrics.jsonl").open("a") as file:
        file.write('{"step": 9, "phase": "adaptation", "lr": 0')  # what a kill in the middle of a line leaves
    assert run([*arguments, "--training.resume", "true"]) == 0
    assert_same_run(finished[0], output)
    summary = json.loads((output / "summary.json").read_text())
    for key in ("target_accuracy_before", "target_accuracy_after"):
        assert summary[key] == finished[1][key]
    assert summary["gradient_cosine"] == pytest.approx(finished[1]["gradient_cosine"], rel=1e-6)


@pytest.mark.parametrize(
    "options",
    [
        ["--coordination.method", "joint"],
        ["--coordination.method", "source_only"],
        ["--model.alignment", "cdan", "--optimizer.name", "adamw", "--optimizer.schedule", "cosine"],
        ["--model.alignment", "gvb", "--training.batch_norm", "train", "--training.gradient_accumulation_steps", "2"],
        ["--training.mixed_precision", "bf16", "--training.max_grad_norm", "1.0"],
        ["--training.batch_norm", "frozen", "--model.bottleneck_dim", "8"],
        ["--data.num_workers", "1", "--coordination.first", "alignment", "--coordination.swap_every", "2"],
    ],
    ids=lambda options: " ".join(options[::2][:2] + options[1::2][:2]),
)
def test_settings_train_to_a_checkpoint_that_loads(options, tmp_path):
    summary = train(tmp_path / "run", *options)
    model = AutoModelForImageClassification.from_pretrained(tmp_path / "run")
    assert summary["method"] == (options[1] if "method" in options[0] else "metaalign")
    assert (summary["gradient_cosine"] is None) == (summary["method"] != "metaalign")
    assert all(torch.isfinite(value).all() for value in model.state_dict().values() if value.is_floating_point())


def test_batch_norm_settings_do_what_they_say(tmp_path):
    found = {}
    for setting in ("train", "mixed", "per_domain", "frozen"):
        train(tmp_path / setting, "--training.batch_norm", setting, "--training.source_steps", "0")
        found[setting] = {k: v for k, v in weights(tmp_path / setting).items() if "num_batches_tracked" in k}
    counts = {setting: {int(v) for v in values.values()} for setting, values in found.items()}
    assert counts == {"train": {12}, "mixed": {6}, "per_domain": {6}, "frozen": {0}}, (
        "passes of 6 steps that moved the statistics"
    )


def test_a_checkpoint_goes_on_with_classes_matched_by_name(finished, tmp_path, capsys):
    """Data that number the same classes in another order change nothing; data with another class are refused."""
    pair = load_domain_pair("uci_digits", "mnist")
    rows = []
    for index in range(60):
        name = f"{index}.png"
        Image.fromarray(pair.source_test[index].permute(1, 2, 0).numpy()).save(tmp_path / name)
        rows.append((name, pair.source_test.labels[index]))
    digits = "0123456789"
    for names in (digits, digits[::-1], digits[:9] + "x"):
        (tmp_path / f"{names}.names").write_text("\n".join(names))
        labelled = [f"{name} {digits[label] if digits[label] in names else 'x'}\n" for name, label in rows]
        (tmp_path / f"{names}.txt").write_text("".join(labelled))

    def options(names):
        place = ["--data.source", f"list:{tmp_path}/{names}.txt", "--data.source.labels_file"]
        place += [f"{tmp_path}/{names}.names", "--data.source.test_path", f"{tmp_path}/{names}.txt"]
        frozen = ["--optimizer.lr", "0", "--training.source_steps", "0", "--training.batch_norm", "frozen"]
        return [*place, *frozen, "--model.checkpoint", str(finished[0])]

    plain = train(tmp_path / "plain", *options(digits))
    turned = train(tmp_path / "turned", *options(digits[::-1]))
    for key in ("source_accuracy_after", "target_accuracy_after"):
        assert plain[key] == turned[key]
    assert plain["target_accuracy_after"] == finished[1]["target_accuracy_after"]
    before, after = weights(finished[0]), weights(tmp_path / "turned")
    assert all(torch.equal(before[name], after[name]) for name in before), "lr 0 keeps every head of the checkpoint"
    command = ["train", "--config", TINY, "--training.output_dir", str(tmp_path / "refused")]
    more = ["--data.target", f"list:{tmp_path}/0.txt"]
    (tmp_path / "0.txt").write_text("".join(f"{name}\n" for name, _ in rows))
    assert run([*command, *options(digits[:9] + "x"), *more]) == 2
    error = capsys.readouterr().err
    assert "only the model has 9" in error and "only the data has x" in error


def test_a_run_continues_from_a_checkpoint(finished, tmp_path):
    summary = train(tmp_path / "more", "--model.checkpoint", str(finished[0]), "--training.source_steps", "0")
    assert summary["target_accuracy_before"] == finished[1]["target_accuracy_after"]


def test_evaluate_predict_and_export(finished, tmp_path, capsys):
    output, summary = finished
    figures = tmp_path / "figures.json"
    assert run(["evaluate", str(output), "--data", "mnist", "--output", str(figures)]) == 0
    assert json.loads(figures.read_text())["accuracy"] == summary["target_accuracy_after"]
    shown = capsys.readouterr().out
    assert f"{100 * summary['target_accuracy_after']:.2f} %" in shown and "--split all" in shown

    pair = load_domain_pair("uci_digits", "mnist")
    for index in range(3):
        Image.fromarray(pair.target_test_images[index].permute(1, 2, 0).numpy()).save(tmp_path / f"{index}.png")
    table = tmp_path / "predictions.csv"
    assert run(["predict", str(output), str(tmp_path), "--output", str(table)]) == 0
    rows = [line.split(",") for line in table.read_text().splitlines()[1:]]
    classify = pipeline("image-classification", model=str(output))
    for path, label, share in rows:
        best = classify(path, top_k=1)[0]
        assert best["label"] == label and best["score"] == pytest.approx(float(share), abs=1e-5)
    assert run(["predict", str(output), str(tmp_path / "0.png")]) == 0
    assert "0.png" in capsys.readouterr().out

    assert run(["export", str(output), str(tmp_path / "native")]) == 0
    assert run(["evaluate", str(tmp_path / "native"), "--data", "mnist"]) == 0
    assert f"{100 * summary['target_accuracy_after']:.2f} %" in capsys.readouterr().out


def test_law_9_target_labels_change_nothing_but_the_reported_target_accuracy(tmp_path):
    pair = load_domain_pair("uci_digits", "mnist")
    (tmp_path / "digits").mkdir()
    rows = []
    for index in range(60):
        name = f"digits/{index}.png"
        Image.fromarray(pair.target_evaluation[index].permute(1, 2, 0).numpy()).save(tmp_path / name)
        rows.append((name, pair.target_evaluation.labels[index]))
    (tmp_path / "names.txt").write_text("\n".join("0123456789"))
    shuffled = [(name, (label + 1) % 10) for name, label in rows]
    for file, content in (("true", rows), ("shuffled", shuffled)):
        (tmp_path / f"{file}.txt").write_text("".join(f"{name} {label}\n" for name, label in content))
        target = [
            "--data.target",
            f"list:{tmp_path / file}.txt",
            "--data.target.labels_file",
            str(tmp_path / "names.txt"),
        ]
        train(tmp_path / file, *target, "--training.evaluate_every", "2")

    reported = {"target_accuracy", "target_balanced_accuracy", "target_average_precision"}

    def without_target(output):
        return [{k: v for k, v in line.items() if k not in reported} for line in lines(output)]

    assert without_target(tmp_path / "true") == without_target(tmp_path / "shuffled")
    assert lines(tmp_path / "true") != lines(tmp_path / "shuffled")
    a, b = weights(tmp_path / "true"), weights(tmp_path / "shuffled")
    assert all(torch.equal(a[name], b[name]) for name in a)
    selected = []
    for file in ("true", "shuffled"):
        rows = json.loads((tmp_path / file / "summary.json").read_text())["checkpoints"]
        assert [row["checkpoint"].split(" ")[0] for row in rows] == ["last", "selected", "oracle"]
        selected.append([{k: v for k, v in row.items() if k != "target"} for row in rows[:2]])
        files = sorted(path.relative_to(tmp_path / file) for path in (tmp_path / file).rglob("model.safetensors"))
        selected[-1] += [(str(path), load_file(tmp_path / file / path)["classifier.weight"].tolist()) for path in files]
    assert selected[0] == selected[1], "target labels select nothing"


def test_accelerate_launch_runs_the_script(finished, tmp_path):
    output = tmp_path / "launched"
    command = ["accelerate", "launch", "--num_processes", "1", "--num_machines", "1", "--mixed_precision", "no"]
    command += ["--dynamo_backend", "no", "scripts/train.py", "--config", TINY, "--training.output_dir", str(output)]
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "OMP_NUM_THREADS": str(torch.get_num_threads()),  # sums over other numbers of threads differ in the last bit
    }
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "target mnist" in done.stdout and "metaalign predict" in done.stdout
    assert_same_run(finished[0], output)


def test_the_python_example_runs(tmp_path):
    assert len((ROOT / "examples" / "python_api.py").read_text().splitlines()) <= 40
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    options = ["--training.source_steps", "2", "--training.max_steps", "2", "--training.evaluation_batch_size", "500"]
    command = [sys.executable, "examples/python_api.py", *options]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "target accuracy 0." in done.stdout and "score" in done.stdout
    assert (tmp_path / "runs" / "python_api-native" / "config.json").exists()


@pytest.mark.parametrize(
    ("example", "options", "words"),
    [
        ("drop_in.py", [], "target accuracy"),
        ("transformers_trainer.py", ["--max_steps", "3", "--logging_steps", "1", "--use_cpu"], "train_loss"),
    ],
)
def test_the_step_works_in_other_loops(example, options, words, tmp_path):
    assert example != "drop_in.py" or len((ROOT / "examples" / example).read_text().splitlines()) <= 60
    command = [sys.executable, str(ROOT / "examples" / example), *options]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert words in done.stdout


def test_a_later_option_refines_or_replaces_an_earlier_one(tmp_path):
    config = parse_config(["--config", TINY, "--data.target.name", "mnist_m", "--model.backbone_options", "{}"])
    assert config.data.target.kind == "digits" and config.data.target.name == "mnist_m"
    assert config.model.backbone_options == {}, "a free-form entry is replaced, not merged"
    (tmp_path / "more.yaml").write_text("training: {max_steps: 77}\n")
    config = parse_config(["--config", TINY, "--config", str(tmp_path / "more.yaml")])
    assert (config.training.max_steps, config.training.source_steps) == (77, 4)


def test_trackers_write_offline(tmp_path):
    options = ["--training.tracker_options", "{tensorboard: {filename_suffix: .mine}}"]
    train(tmp_path / "run", "--training.trackers", "[tensorboard]", *options)
    (events,) = (tmp_path / "run").rglob("events.out.tfevents.*.mine")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator(str(events)).Reload()
    assert "task_loss" in found.Tags()["scalars"]
    curves = found.Images("curves")
    assert [image.step for image in curves] == [4, 10], "one for each evaluation"
    with Image.open(io.BytesIO(curves[-1].encoded_image_string)) as picture:
        assert picture.width > 600


def test_the_published_recipe_is_reachable_by_configuration():
    config = load_config(ROOT / "examples" / "office_home_published.yaml")
    assert config.coordination.inner_lr == 100 and config.coordination.relative
    assert config.optimizer.schedule == "inverse" and config.optimizer.lr == 1e-3
    assert config.training.max_steps == 10_002 and config.training.batch_size == 24
    assert (config.data.resize_size, config.data.image_size, config.data.augmentation) == (256, 224, "crop_flip")


@pytest.mark.parametrize("example", sorted(p.name for p in (ROOT / "examples").glob("*.yaml")))
def test_every_example_configuration_is_valid(example):
    config = load_config(ROOT / "examples" / example)
    assert (
        yaml.safe_load((ROOT / "examples" / example).read_text())["training"]["max_steps"] == config.training.max_steps
    )


def test_ctrl_c_says_how_to_go_on(tmp_path):
    arguments = [
        "train",
        "--config",
        TINY,
        "--training.output_dir",
        str(tmp_path / "run"),
        "--training.max_steps",
        "100000",
    ]
    process = subprocess.Popen(
        [sys.executable, "-m", "metaalign_hf.cli", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # Where the tests run in the background it is ignored, and stays so.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    deadline = time.time() + 120
    metrics = tmp_path / "run" / "metrics.jsonl"
    while not metrics.exists() and time.time() < deadline:
        time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "--training.resume auto" in errors and "Traceback" not in errors
