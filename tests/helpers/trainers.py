"""A pair, a model, and settings that mean the same to the loop and to MetaAlignTrainer."""

from dataclasses import replace
from pathlib import Path

import torch

from metaalign_hf import MetaAlignForImageClassification, MetaAlignTrainingArguments, load_config, load_domain_pair
from tests.helpers.runs import TINY

NET = {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1], "layer_type": "basic"}


def small_pair():
    whole = load_domain_pair("uci_digits", "mnist")
    sizes = {"source_train": 20, "target_train": 40, "source_test": 30, "target_test_images": 40}
    views = {name: getattr(whole, name).subset(range(size)) for name, size in sizes.items()}
    return replace(whole, **views, target_evaluation=whole.target_evaluation.subset(range(40)))


def small_model(pair):
    torch.manual_seed(0)
    return MetaAlignForImageClassification.from_backbone(
        "resnet", pair.labels, {"name": "dann", "hidden": 16}, pretrained=False, **NET
    )


def arguments(output: Path, **options: object) -> MetaAlignTrainingArguments:
    given = {
        "output_dir": str(output),
        "seed": 0,
        "max_steps": 6,
        "per_device_train_batch_size": 4,
        "per_device_eval_batch_size": 100,
        "learning_rate": 0.01,
        "weight_decay": 0.001,
        "lr_scheduler_type": "constant",
        "optim": "adamw_torch",
        "max_grad_norm": 1.0,
        "augmentation": "crop",
        "image_size": 16,
        "resize_size": 18,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "use_cpu": True,
        "disable_tqdm": True,
        "validators": False,
    }
    return MetaAlignTrainingArguments(**{**given, **options})


def config(output: Path, coordination: dict, **options: object):
    given = {
        "training.output_dir": str(output),
        "training.source_steps": 0,
        "training.max_steps": 6,
        "training.batch_size": 4,
        "training.max_grad_norm": 1.0,
        "training.select_by": None,
        "training.evaluate_every": 0,
        "training.checkpoint_every": 0,
        "optimizer.name": "adamw",
        "optimizer.schedule": "constant",
        "coordination.direction": "remembered",
    }
    own = {f"coordination.{key}": value for key, value in coordination.items()}
    if coordination.get("method") == "joint":
        del given["coordination.direction"]
        own["coordination"] = {"method": "joint"}
    return load_config(TINY, {**given, **own, **options})


def assert_same(state: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert state.keys() == other.keys()
    for name, value in state.items():
        assert torch.equal(value, other[name]), name
