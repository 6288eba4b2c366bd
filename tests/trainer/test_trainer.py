"""MetaAlignTrainer takes the steps of the package's own loop, measures the same, and goes on where it stopped."""

import json
import os
import subprocess
import sys
from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import datasets
import pytest
import torch
from safetensors.torch import load_file
from torchvision.transforms.functional import to_pil_image
from transformers import AutoModelForImageClassification

from metaalign_hf import (
    MetaAlignForObjectDetection,
    MetaAlignTrainer,
    UserError,
    adapt,
    load_config,
    load_detection_pair,
)
from metaalign_hf.tasks.building import build_task
from tests.helpers.hub_server import HubServer
from tests.helpers.runs import ROOT, TINY_DETECTION, weights
from tests.helpers.trainers import arguments, assert_same, config

STEPS = {
    "remembered, accumulation": ({"direction": "remembered"}, 2),
    "role pair": ({"direction": "remembered", "remember": "role", "refresh_every": 2}, 1),
    "fresh, weights of stages": ({"direction": "fresh", "groups": "stage", "inner_lr": 10}, 1),
    "joint": ({"method": "joint"}, 1),
}


@pytest.mark.parametrize("name", STEPS)
def test_the_weights_are_those_of_the_loop_bit_for_bit(name, pair, model, tmp_path):
    coordination, k = STEPS[name]
    loop = config(tmp_path / "loop", coordination, **{"training.gradient_accumulation_steps": k})
    summary = adapt(loop, pair=pair, model=deepcopy(model))
    given = arguments(tmp_path / "trainer", coordination=coordination, gradient_accumulation_steps=k)
    trainer = MetaAlignTrainer(deepcopy(model), given, pair=pair)
    trainer.train()
    trainer.save_model()
    assert_same(weights(tmp_path / "trainer"), weights(tmp_path / "loop"))
    found = trainer.evaluate()
    assert found["eval_target_accuracy"] == summary.target_accuracy_after
    assert found["eval_source_balanced_accuracy"] == summary.source_balanced_accuracy_after
    lines = [json.loads(line) for line in (tmp_path / "loop" / "metrics.jsonl").read_text().splitlines()]
    losses = [line["alignment_loss"] for line in lines if "phase" in line]
    logged = [line["alignment_loss"] for line in trainer.state.log_history if "loss" in line]
    assert logged[-1] == losses[-1] and len(logged) == 6


@pytest.mark.parametrize("stop", [2, 5])
def test_a_resumed_run_is_the_run_that_never_stopped(stop, pair, model, tmp_path):
    # An epoch of the 20 source images has four steps of five, so the second stop is in the next one.
    options = {
        "per_device_train_batch_size": 5,
        "coordination": {"remember": "role", "refresh_every": 4},
        "batch_norm": "per_domain",
        "lr_scheduler_type": "cosine",
        "save_strategy": "steps",
        "save_steps": stop,
    }
    whole = MetaAlignTrainer(deepcopy(model), arguments(tmp_path / "run", **options), pair=pair)
    whole.train()
    checkpoint = tmp_path / "run" / f"checkpoint-{stop}"
    assert {"coordination.safetensors", "source_statistics.safetensors"} <= {p.name for p in checkpoint.iterdir()}
    on = MetaAlignTrainer(deepcopy(model), arguments(tmp_path / "on", **options), pair=pair)
    on.train(resume_from_checkpoint=str(checkpoint))
    assert_same(whole.model.state_dict(), on.model.state_dict())
    assert_same(whole.task.statistics.source.state_dict(), on.task.statistics.source.state_dict())
    keys = ("loss", "task_loss", "grad_norm", "learning_rate", "epoch")
    logs = [[[line[key] for key in keys] for line in t.state.log_history if "loss" in line] for t in (whole, on)]
    assert logs[0] == logs[1] and len(logs[0]) == 6


def rows(view, names: list[str], order: list[str], column: str = "label") -> datasets.Dataset:
    """The images as a data set whose class labels are numbered by `order`."""
    features = datasets.Features({"picture": datasets.Image(), column: datasets.ClassLabel(names=order)})
    values = {
        "picture": [to_pil_image(view[index]) for index in range(len(view))],
        column: [order.index(names[label]) for label in view.labels],
    }
    return datasets.Dataset.from_dict(values, features=features)


def test_data_sets_agree_by_name_and_target_labels_are_not_read(pair, model, tmp_path):
    names, other = pair.labels, pair.labels[::-1]
    target = pair.target_evaluation
    found = []
    for order, shuffled in ((names, target), (other, replace(target, labels=target.labels[::-1]))):
        trainer = MetaAlignTrainer(
            deepcopy(model),
            arguments(tmp_path / "run", max_steps=2, validators=True),
            train_dataset=rows(pair.source_train, names, order),
            target_dataset=rows(shuffled, names, order, "class"),
            eval_dataset={"source": rows(pair.source_test, names, names), "target": rows(target, names, order)},
        )
        trainer.train()
        found.append((trainer.model.state_dict(), trainer.evaluate()))
    assert_same(found[0][0], found[1][0])
    same = [{k: v for k, v in metrics.items() if "second" not in k and "runtime" not in k} for _, metrics in found]
    assert same[0] == same[1] and {"eval_source_accuracy", "eval_target_accuracy", "eval_validator_bnm"} <= set(same[0])


def test_the_best_model_by_a_score_without_target_labels_comes_back(pair, model, tmp_path):
    options = {"eval_strategy": "steps", "eval_steps": 2, "save_strategy": "steps", "save_steps": 2, "validators": True}
    best = {"load_best_model_at_end": True, "metric_for_best_model": "validator_bnm", "greater_is_better": True}
    trainer = MetaAlignTrainer(deepcopy(model), arguments(tmp_path / "run", **options, **best), pair=pair)
    trainer.train()
    scores = [line["eval_validator_bnm"] for line in trainer.state.log_history if "eval_validator_bnm" in line]
    assert len(scores) == 3 and trainer.state.best_metric == max(scores)
    assert_same(trainer.model.state_dict(), load_file(Path(trainer.state.best_model_checkpoint) / "model.safetensors"))
    trainer.save_model()
    saved = AutoModelForImageClassification.from_pretrained(tmp_path / "run")
    assert_same(trainer.model.state_dict(), saved.state_dict())
    assert not list((tmp_path / "run").rglob("training_args.bin"))


@pytest.mark.parametrize("taught", [{}, {"target_losses": {"name": "mean_teacher", "threshold": 0.1}}], ids=str)
def test_a_detector_takes_the_steps_of_the_loop(taught, tmp_path):
    whole = load_detection_pair("scenes_plain", "scenes_photo")
    names = ("source_train", "source_test", "target_train", "target_test_images", "target_evaluation")
    pair = replace(whole, **{name: getattr(whole, name).subset(range(12)) for name in names})
    settings = {
        "training.output_dir": str(tmp_path / "loop"),
        "training.source_steps": 0,
        "training.max_steps": 2,
        "training.select_by": None,
        "training.checkpoint_every": 0,
        "optimizer.schedule": "constant",
        **{f"training.{key}": value for key, value in taught.items()},
    }
    loop = load_config(TINY_DETECTION, settings)
    torch.manual_seed(0)
    model = build_task(loop, pair).model
    assert isinstance(model, MetaAlignForObjectDetection)
    given = arguments(
        tmp_path / "trainer",
        max_steps=2,
        learning_rate=0.001,
        max_grad_norm=5.0,
        head_multiplier=1.0,
        discriminator_multiplier=1.0,
        augmentation="crop_flip_color",
        image_size=None,
        resize_size=None,
        detector_size=64,
        coordination={"direction": "fresh"},
        **taught,
    )
    views = {"source": pair.source_test, "target": pair.target_evaluation}
    trainer = MetaAlignTrainer(deepcopy(model), given, pair.source_train, pair.target_train, views)
    summary = adapt(loop, pair=pair, model=model)
    trainer.train()
    trainer.save_model()
    assert_same(weights(tmp_path / "trainer"), weights(tmp_path / "loop"))
    assert trainer.evaluate()["eval_target_map50"] == summary.target_map50_after
    told = [line.get("pseudo_boxes") for line in trainer.state.log_history if "loss" in line]
    assert len(told) == 2 and all((boxes or 0) > 0 for boxes in told) == bool(taught)


def test_bad_arguments_are_told_in_one_line(pair, model, tmp_path):
    def refused(options: dict, **given: object) -> str:
        with pytest.raises(UserError) as error:
            MetaAlignTrainer(deepcopy(model), arguments(tmp_path / "run", **options), **(given or {"pair": pair}))
        return str(error.value)

    assert "coordination.inner_lrr" in refused({"coordination": {"inner_lrr": 1}})
    assert "coordination.order" in refused({"coordination": {"order": 2}}), "nothing reads it with direction remembered"
    assert "target labels" in refused({"metric_for_best_model": "eval_target_accuracy"})
    assert "give both" in refused({}, train_dataset=pair.source_train)
    assert "train_dataset has no labels" in refused(
        {}, train_dataset=pair.target_train, target_dataset=pair.target_train
    )
    assert "target_dataset is a list" in refused({}, train_dataset=pair.source_train, target_dataset=[1, 2])
    assert "hub_strategy" in refused({"push_to_hub": True, "hub_strategy": "checkpoint", "hub_model_id": "a/b"})


PUSH = """
import sys
from dataclasses import replace
from metaalign_hf import *
pair = load_domain_pair("uci_digits", "mnist")
pair = replace(pair, source_test=pair.source_test.subset([]), target_evaluation=None)
model = MetaAlignForImageClassification.from_backbone("resnet", pair.labels, "dann", pretrained=False,
    embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic")
arguments = MetaAlignTrainingArguments(output_dir=sys.argv[1], max_steps=2, per_device_train_batch_size=4,
    image_size=16, save_steps=1, report_to="none", use_cpu=True, push_to_hub=True, hub_model_id="alice/adapted",
    hub_private_repo=True)
trainer = MetaAlignTrainer(model, arguments, pair=pair)
trainer.train()
print(trainer.push_to_hub(license="mit"))
"""


@pytest.mark.slow
def test_predictions_are_the_logits_of_the_model(pair, model, tmp_path):
    trainer = MetaAlignTrainer(deepcopy(model), arguments(tmp_path, per_device_eval_batch_size=7), pair=pair)
    found = trainer.predict(pair.target_evaluation)
    with torch.no_grad():
        pixels = trainer.task.pixel_values([pair.target_evaluation[n] for n in range(40)])
        logits = trainer.model.eval()(pixels).logits
    torch.testing.assert_close(torch.from_numpy(found.predictions), logits)
    assert found.label_ids.tolist() == list(pair.target_evaluation.labels)
    assert found.metrics["test_accuracy"] == trainer.evaluate()["eval_target_accuracy"]
    bare = trainer.predict(pair.target_evaluation.without_annotations())
    assert bare.label_ids is None and "test_accuracy" not in bare.metrics
    assert (bare.predictions == found.predictions).all()
    rows = {"image": [to_pil_image(pair.target_evaluation[n]) for n in range(3)], "label": [0, 1, 0]}
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["7", "1"])})
    named = trainer.predict(datasets.Dataset.from_dict(rows, features))
    assert named.label_ids.tolist() == [7, 1, 7] and named.predictions.shape == (3, 10)


def test_two_processes_take_the_steps_of_the_loop(tmp_path):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    command += ["-m", "tests.helpers.two_trainers", str(tmp_path)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr[-4000:]
    for name in ("plain", "taught"):
        assert_same(weights(tmp_path / name / "trainer"), weights(tmp_path / name / "loop"))
    told = json.loads(done.stdout.rpartition("ANSWER")[2])
    summary = json.loads((tmp_path / "taught" / "loop" / "summary.json").read_text())
    assert told["eval_target_accuracy"] == summary["target_accuracy_after"]
    assert (
        told["steps"] == 6 and told["rows"] == told["test_images"] and told["accuracy"] == told["eval_target_accuracy"]
    )


def test_a_push_is_that_of_the_package(tmp_path):
    with HubServer({"hf_alice": "alice"}) as hub:
        environment = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
        environment |= {**hub.environment(tmp_path / "home", "hf_alice"), "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-c", PUSH, str(tmp_path / "run")]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240, check=False)
        assert done.returncode == 0, done.stderr
        files, history = hub.files("alice/adapted"), hub.history("alice/adapted")
    assert set(files) == {".gitattributes", "README.md", "config.json", "model.safetensors", "preprocessor_config.json"}
    assert "license: mit" in files["README.md"].decode() and "metaalign" in files["README.md"].decode()
    assert history[0] == "End of training" and "Training in progress, step 1" in history
    assert files["model.safetensors"] == (tmp_path / "run" / "model.safetensors").read_bytes()
