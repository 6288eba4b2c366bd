"""Some frozen stages, and what they give computed once: the run is the one that computes it in every pass."""

import json
import re

import pytest
import torch
from safetensors import safe_open
from transformers import pipeline

from metaalign_hf import MetaAlignForImageClassification
from metaalign_hf.cli import run
from metaalign_hf.models.freezing import leave_out
from metaalign_hf.models.frozen_part import FrozenPart
from tests.helpers.runs import assert_same_run, stopped_at_a_checkpoint
from tests.helpers.squares import adapting, write_squares

VIT = {"hidden_size": 24, "num_hidden_layers": 4, "num_attention_heads": 2, "intermediate_size": 48, "image_size": 16}
VIT |= {"patch_size": 8}
ON_VIT = ["--model.backbone", "vit", "--model.backbone_options", json.dumps(VIT)]
LAST = ["--coordination.inner_scope", "last_stage"]  # both passes of a step share what comes before
REMEMBERED = ["--coordination.direction", "remembered"]
BF16 = ["--training.mixed_precision", "bf16"]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return write_squares(tmp_path_factory.mktemp("domains"))


def command(folders, output, *options: str) -> list[str]:
    return adapting(folders, output, "--data.views", "2", "--training.evaluation_batch_size", "8", *options)


def stored(output) -> tuple[str, list[int]]:
    with safe_open(output / "features.safetensors", framework="pt") as file:
        found = file.get_slice("features")
        return found.get_dtype(), found.get_shape()


@pytest.mark.parametrize(
    ("options", "width", "dtype"),
    [
        # The stem of a ResNet, behind which its statistics move; bf16 is kept as it is.
        (["--model.freeze", "1", "--training.batch_norm", "train", *BF16, *LAST], 8 * 4 * 4, "BF16"),
        (["--model.freeze", "3", *ON_VIT, *LAST, "--training.ema_decay", "0.9"], 5 * 24, "F32"),
        (["--model.freeze", "1", *ON_VIT, *REMEMBERED, "--model.bottleneck_dim", "8"], 5 * 24, "F32"),
    ],
)
def test_the_cached_run_is_the_uncached_one(options, width, dtype, folders, tmp_path, monkeypatch):
    """Bit for bit; and no image goes through the frozen stages once the cache is there."""
    calls, outputs = [], FrozenPart.outputs
    monkeypatch.setattr(
        FrozenPart, "outputs", lambda part, images: (calls.append(len(images)), outputs(part, images))[1]
    )
    pooled = MetaAlignForImageClassification.pooled
    monkeypatch.setattr(
        MetaAlignForImageClassification, "pooled", lambda model, images: (calls.append(-1), pooled(model, images))[1]
    )
    assert run(command(folders, tmp_path / "cached", *options)) == 0
    seen, kept = list(calls), stored(tmp_path / "cached")
    assert kept[0] == dtype and kept[1][1] == width
    assert seen.count(-1) == 1, "a trial image"
    assert sum(count for count in seen if count > 0) <= kept[1][0] + 2 + 8, "two to try, and the first batch twice"
    assert run(command(folders, tmp_path / "plain", *options, "--data.cache_features", "never")) == 0
    assert not (tmp_path / "plain" / "features.safetensors").exists()
    assert_same_run(tmp_path / "cached", tmp_path / "plain")


def test_stopped_resumed_and_served(folders, tmp_path, monkeypatch, capsys):
    """What trains behind the cache changes, and the cache stays good; another number of stages has another one."""
    options = ["--model.freeze", "2", *ON_VIT, "--training.checkpoint_every", "4", "--optimizer.lr", "0.1"]
    assert run(command(folders, tmp_path / "whole", *options)) == 0
    assert "What the frozen stages give is computed once for each image in 2 augmented views." in " ".join(
        capsys.readouterr().out.split()
    )
    assert stopped_at_a_checkpoint(monkeypatch, command(folders, tmp_path / "killed", *options)) == 130
    assert run(command(folders, tmp_path / "killed", *options, "--training.resume", "auto")) == 0
    assert_same_run(tmp_path / "whole", tmp_path / "killed")
    classify = pipeline("image-classification", model=str(tmp_path / "whole"))
    files = sorted((folders / "tests").glob("*/*.png"))
    right = sum(classify(str(file), top_k=1)[0]["label"] == file.parent.name for file in files) / len(files)
    assert right == json.loads((tmp_path / "whole" / "summary.json").read_text())["target_accuracy_after"]
    capsys.readouterr()
    other = ["--model.freeze", "3", *ON_VIT, "--data.cache_folder", str(tmp_path / "whole")]
    assert run(command(folders, tmp_path / "other", *other)) == 2
    assert "holds features of another run: not the same backbone, frozen part; delete it" in capsys.readouterr().err


def test_when_it_is_too_large_what_would_fit_is_told(folders, tmp_path, capsys):
    options = ["--model.freeze", "2", *ON_VIT, "--data.views", "3"]
    assert run(command(folders, tmp_path / "none", *options, "--data.cache_gigabytes", "0.000001")) == 2
    error = capsys.readouterr().err
    assert "(data.views 1 takes 0.00), or set data.cache_features to never" in error
    rows = int(re.search(r"the features of (\d+) images and views take", error)[1])
    limit = ["--data.cache_gigabytes", f"{(rows - 1) * 5 * 24 * 4 / 1e9:.9f}"]
    assert run(command(folders, tmp_path / "large", *options, *limit)) == 2
    error = capsys.readouterr().err
    assert "raise it, or set data.views to 2, which fits" in error and len(error.splitlines()) == 1
    few = ["--data.views", "2", "--training.source_steps", "1", "--training.max_steps", "1"]
    assert run(command(folders, tmp_path / "fits", *options, *limit, *few)) == 0


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--model.backbone_options", json.dumps(VIT | {"hidden_dropout_prob": 0.1})], None),
        (["--training.gradient_checkpointing", "true"], "training.gradient_checkpointing takes whole passes"),
        (["--data.views", "null"], "data.views is null, so that every batch has new views"),
    ],
)
def test_where_it_is_not_cached_a_note_says_why(options, said, folders, tmp_path, capsys):
    words = ["--model.freeze", "2", *ON_VIT, *options, "--training.max_steps", "1", "--training.source_steps", "1"]
    assert run(command(folders, tmp_path / "run", *words)) == 0
    told = " ".join(capsys.readouterr().out.split())
    assert (tmp_path / "run" / "features.safetensors").exists() == (said is None)
    assert said is None or f"What the frozen stages give is computed in every pass: {said}." in told


DEPTH = {"depth": 4, "img_size": 28}


@pytest.mark.parametrize(
    ("name", "stages", "options", "said"),
    [
        ("convnext", 2, {"depths": [1, 1, 1, 1], "hidden_sizes": [8, 8, 16, 16], "image_size": 64}, None),
        ("dinov2", 3, {k: v for k, v in VIT.items() if k != "intermediate_size"}, None),
        ("timm/resnet10t", 3, {}, None),
        ("timm/vit_tiny_patch16_224", 4, {"depth": 4, "img_size": 32}, None),
        ("timm/eva02_tiny_patch14_224", 2, DEPTH, None),  # its rotary embeddings go to every block
        ("timm/vit_tiny_patch16_224", 2, {**DEPTH, "img_size": 32, "pos_drop_rate": 0.1}, "dropout between them"),
        ("timm/densenet121", 2, {}, "something that trains comes before them"),
        ("pvt", 2, {}, "cannot run alone"),
    ],
)
def test_families(name, stages, options, said):
    model = MetaAlignForImageClassification.from_backbone(name, ["a", "b"], pretrained=False, **options)
    model.train().freeze(stages)
    reason = leave_out(model, stages)
    assert (reason is None) if said is None else said in reason
    assert model.training and model.classifier.training
    if said is None:
        side = model.image_processor().crop_size["height"]
        images, other = torch.randn(2, 3, 3, side, side)
        model.eval()
        with torch.no_grad():
            rows = model.frozen_outputs(images)
            assert rows.ndim == 2 and torch.equal(model(rows).logits, model(images).logits)
            assert not torch.equal(model(model.frozen_outputs(other)).logits, model(images).logits)
