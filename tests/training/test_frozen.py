"""A frozen backbone, and its features computed once."""

import json
import os

import pytest
import torch
from safetensors.torch import load_file
from transformers import pipeline

from metaalign_hf import MetaAlignForImageClassification, UserError
from metaalign_hf.cli import run
from metaalign_hf.data import cache_writing
from tests.helpers.runs import assert_same_run, lines, stopped_at_a_checkpoint, weights
from tests.helpers.squares import adapting, write_squares

FROZEN = ["--model.freeze", "all", "--model.bottleneck_dim", "8", "--data.augmentation", "crop_flip"]
VIEWS = ["--data.views", "2"]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return write_squares(tmp_path_factory.mktemp("domains"))


def command(folders, output, *options: str) -> list[str]:
    return adapting(folders, output, *FROZEN, *options)


def test_the_cached_run_is_the_uncached_one(folders, tmp_path, monkeypatch):
    """Bit for bit, with the same views; and nothing runs the backbone once the cache is there."""
    options = [*VIEWS, "--training.evaluate_every", "3", "--training.evaluation_batch_size", "8"]
    calls, pooled = [], MetaAlignForImageClassification.pooled

    def counted(self, pixel_values):
        calls.append(len(pixel_values))
        return pooled(self, pixel_values)

    monkeypatch.setattr(MetaAlignForImageClassification, "pooled", counted)
    assert run(command(folders, tmp_path / "cached", *options)) == 0
    cached = sum(calls)
    assert run(command(folders, tmp_path / "plain", *options, "--data.cache_features", "never")) == 0
    features = load_file(tmp_path / "cached" / "features.safetensors")["features"]
    assert cached - 1 <= len(features) + 8 + 1, "a trial image, and the first batch twice at most"
    assert_same_run(tmp_path / "cached", tmp_path / "plain")
    assert not (tmp_path / "plain" / "features.safetensors").exists()


def test_the_saved_model_is_whole(folders, tmp_path, capsys):
    output = tmp_path / "run"
    options = [*VIEWS, "--training.max_steps", "20", "--training.ema_decay", "0.9"]
    assert run(command(folders, output, *options)) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "The frozen backbone's features are computed once for each image in 2 augmented views." in said
    summary = json.loads((output / "summary.json").read_text())
    assert (output / "target_images.png").exists()
    card = (output / "README.md").read_text()
    assert "model.freeze" in card and "computed once for each image in 2 augmented views" in card
    classify = pipeline("image-classification", model=str(output))
    files = sorted((folders / "tests").glob("*/*.png"))
    right = sum(classify(str(file), top_k=1)[0]["label"] == file.parent.name for file in files) / len(files)
    assert right == summary["target_accuracy_after"]
    assert run(["evaluate", str(output), "--data", f"imagefolder:{folders / 'tests'}", "--split", "all"]) == 0
    assert run(["export", str(output), str(tmp_path / "native")]) == 0
    fresh = MetaAlignForImageClassification.from_pretrained(output)
    assert any(name.startswith("backbone.") for name in fresh.state_dict())
    # A run that goes on from it, with another head to train, has the same features.
    options = [
        "--model.checkpoint",
        str(output),
        "--training.output_dir",
        str(tmp_path / "more"),
        "--model.freeze",
        "all",
    ]
    domains = [
        "--data.source",
        f"imagefolder:{folders / 'source'}",
        "--data.target",
        f"imagefolder:{folders / 'target'}",
    ]
    assert run(["train", *options, *domains, "--training.max_steps", "2", "--training.batch_size", "8"]) == 0
    before, after = weights(output), weights(tmp_path / "more")
    backbone = [name for name in before if name.startswith("backbone.")]
    assert all(torch.equal(before[name], after[name]) for name in backbone)
    assert not torch.equal(before["classifier.weight"], after["classifier.weight"])


def test_stopped_and_resumed(folders, tmp_path, monkeypatch):
    options = [*VIEWS, "--training.checkpoint_every", "4", "--coordination.direction", "remembered"]
    assert run(command(folders, tmp_path / "whole", *options)) == 0
    assert stopped_at_a_checkpoint(monkeypatch, command(folders, tmp_path / "killed", *options)) == 130
    assert run(command(folders, tmp_path / "killed", *options, "--training.resume", "auto")) == 0
    assert_same_run(tmp_path / "whole", tmp_path / "killed")


def test_stopped_while_features_are_computed(folders, tmp_path, monkeypatch):
    """What was computed is not computed again, and the file is the same."""
    options = [*VIEWS, "--training.evaluation_batch_size", "8", "--training.max_steps", "2"]
    assert run(command(folders, tmp_path / "whole", *options)) == 0
    small = ["--training.max_time", "0.001"]
    assert run(command(folders, tmp_path / "stopped", *options, *small)) == 124
    partial = tmp_path / "stopped" / "features.safetensors.partial"
    begun = partial.stat().st_size
    with partial.open("ab") as file:
        file.write(b"half a row")
    batches, computed = [], cache_writing._computed
    monkeypatch.setattr(cache_writing, "_computed", lambda *a: (batches.append(a[3]), computed(*a))[1])
    assert run(command(folders, tmp_path / "stopped", *options, "--training.resume", "auto")) == 0
    assert batches[:2] == [0, 1] and begun > 0
    files = [tmp_path / name / "features.safetensors" for name in ("whole", "stopped")]
    assert files[0].read_bytes() == files[1].read_bytes() and not partial.exists()


def test_a_stale_cache_is_refused(folders, tmp_path, capsys):
    """One folder of features serves runs that differ in anything but what the features depend on."""
    cache = ["--data.cache_folder", str(tmp_path / "cache"), *VIEWS, "--training.max_steps", "2"]
    assert run(command(folders, tmp_path / "one", *cache)) == 0
    file = tmp_path / "cache" / "features.safetensors"
    written = file.stat().st_mtime_ns
    assert run(command(folders, tmp_path / "two", *cache, "--training.batch_size", "4")) == 0
    assert file.stat().st_mtime_ns == written and not (tmp_path / "two" / "features.safetensors").exists()
    capsys.readouterr()

    def refused(*options: str) -> str:
        assert run(command(folders, tmp_path / f"refused{len(list(tmp_path.iterdir()))}", *cache, *options)) == 2
        return capsys.readouterr().err

    assert "not the same backbone" in refused("--training.seed", "1")
    assert "not the same image processor" in refused("--data.resize_size", "20")
    assert "not the same images" in refused("--data.views", "3")
    image = sorted((folders / "target").glob("*/*.png"))[0]
    before = image.stat()
    os.utime(image, ns=(before.st_atime_ns, before.st_mtime_ns + 1))
    message = refused()
    assert "features.safetensors holds features of another run: not the same images and views; delete it" in message
    os.utime(image, ns=(before.st_atime_ns, before.st_mtime_ns))
    file.write_bytes(file.read_bytes()[:-4])
    assert "is damaged" in refused()


def test_a_cache_that_cannot_be_written(folders, tmp_path, capsys):
    assert run(command(folders, tmp_path / "large", "--data.cache_gigabytes", "0.000001")) == 2
    assert "data.cache_gigabytes: the features of" in capsys.readouterr().err
    (tmp_path / "file").write_text("")
    assert run(command(folders, tmp_path / "run", "--data.cache_folder", str(tmp_path / "file" / "cache"))) == 2
    error = capsys.readouterr().err
    assert "data.cache_folder: " in error and f"because {tmp_path / 'file'} is not a folder" in error
    assert not (tmp_path / "run").exists(), "nothing is touched"


def test_unreadable_images_are_skipped(folders, tmp_path, capsys):
    copy = tmp_path / "copy"
    os.makedirs(copy)
    bad = write_squares(copy) / "target"
    image = sorted(bad.glob("*/*.png"))[0]
    image.write_bytes(b"no image")
    options = ["--data.target", f"imagefolder:{bad}", *VIEWS, "--training.max_steps", "3"]
    assert run(command(folders, tmp_path / "error", *options)) == 2
    assert image.name in capsys.readouterr().err
    assert run(command(folders, tmp_path / "skip", *options, "--data.on_bad_image", "skip")) == 0
    listed = (tmp_path / "skip" / "bad_images.jsonl").read_text().splitlines()
    assert len(listed) == 1 and image.name in listed[0]


def test_a_baseline_has_the_same_features(folders, tmp_path):
    options = [*VIEWS, "--training.baseline", "true", "--training.max_steps", "2"]
    options += ["--coordination.inner_scope", "last_stage"]  # of which the heads alone train
    assert run(command(folders, tmp_path / "run", *options)) == 0
    assert (tmp_path / "run" / "features.safetensors").exists()
    assert not (tmp_path / "run" / "baseline" / "features.safetensors").exists()


@pytest.mark.slow
def test_heads_on_cached_features_are_compiled(folders, tmp_path):
    """The same losses, and a checkpoint that loads."""
    options = [*VIEWS, "--training.source_steps", "0", "--training.max_steps", "2", "--coordination.method", "joint"]
    assert run(command(folders, tmp_path / "plain", *options)) == 0
    assert run(command(folders, tmp_path / "compiled", *options, "--training.compile", "true")) == 0
    assert (tmp_path / "compiled" / "features.safetensors").exists()
    expected, found = ([x for x in lines(tmp_path / name) if "task_loss" in x] for name in ("plain", "compiled"))
    assert len(found) == 2
    # Not the alignment loss: compiled dropout of the discriminator draws other numbers.
    assert [x["task_loss"] for x in found] == pytest.approx([x["task_loss"] for x in expected], rel=1e-3)
    model = MetaAlignForImageClassification.from_pretrained(tmp_path / "compiled")
    assert torch.equal(model.classifier.weight, weights(tmp_path / "compiled")["classifier.weight"])


def test_what_needs_pixels_is_not_cached(folders, tmp_path, capsys):
    """Strong views of a target loss."""
    loss = ["--training.target_losses", "[self_training]", "--training.max_steps", "2"]
    assert run(command(folders, tmp_path / "run", *loss)) == 0
    assert "computed in every pass: the target loss self_training needs a view" in " ".join(
        capsys.readouterr().out.split()
    )
    assert not (tmp_path / "run" / "features.safetensors").exists()
    plain = ["--training.target_losses", "[information_maximization]", "--training.max_steps", "2"]
    assert run(command(folders, tmp_path / "plain", *plain)) == 0
    assert (tmp_path / "plain" / "features.safetensors").exists()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--model.bottleneck_dim", "null"], "aligns nothing that trains; set model.bottleneck_dim"),
        (["--training.batch_norm", "mixed"], "training.batch_norm is mixed"),
        (["--training.recalibrate_bn", "target"], "training.recalibrate_bn"),
        (["--model.freeze", "9"], "has 3 stages (stem, stage1, stage2); freeze fewer, or all"),
        (["--model.freeze", "some"], "model.freeze is some: it must be one of none, all or a whole number"),
        (["--data.augmentation", "none", "--data.views", "2"], "data.views is 2"),
        (
            ["--data.cache_features", "always", "--training.target_losses", "[self_training]"],
            "data.cache_features is always, which cannot be: the target loss self_training needs a view of its own",
        ),
    ],
)
def test_bad_input(options, said, folders, tmp_path, capsys):
    assert run(command(folders, tmp_path / "run", *options)) == 2
    error = capsys.readouterr().err
    assert said in error and len(error.splitlines()) == 1


def test_frozen_stages(folders, tmp_path):
    """Weights and statistics of the stages before stay, bit for bit; the others move."""
    options = ["--model.freeze", "2", "--training.batch_norm", "train", "--coordination.groups", "stage"]
    assert run(command(folders, tmp_path / "run", *options)) == 0
    assert run(command(folders, tmp_path / "still", *options, "--optimizer.lr", "0")) == 0
    assert not (tmp_path / "run" / "features.safetensors").exists()
    start, trained = weights(tmp_path / "still"), weights(tmp_path / "run")
    for name in (name for name in trained if name.startswith("backbone.")):
        last = "stages.1" in name
        if name.endswith("running_mean"):
            assert bool(trained[name].any()) == last, name
        elif name.endswith(("weight", "bias")):
            assert torch.equal(trained[name], start[name]) != last, name


def test_an_adaptation_without_a_source(folders, tmp_path):
    """The bottleneck is what moves."""
    assert run(command(folders, tmp_path / "source", *VIEWS, "--training.max_steps", "10")) == 0
    options = ["--model.checkpoint", str(tmp_path / "source"), "--data.target", f"imagefolder:{folders / 'target'}"]
    options += ["--model.freeze", "all", "--training.target_losses", "[information_maximization]"]
    options += [
        "--training.output_dir",
        str(tmp_path / "free"),
        "--training.max_steps",
        "3",
        "--training.batch_size",
        "8",
    ]
    assert run(["train", *options]) == 0
    assert (tmp_path / "free" / "features.safetensors").exists()
    before, after = weights(tmp_path / "source"), weights(tmp_path / "free")
    moved = {name.split(".")[0] for name in after if not torch.equal(before[name], after[name])}
    assert moved == {"bottleneck"}


def test_frozen_means_evaluation_mode():
    model = MetaAlignForImageClassification.from_backbone("resnet", ["a", "b"], pretrained=False, depths=[1, 1, 1, 1])
    model.train().freeze("all")
    assert not any(module.training for module in model.backbone.modules()) and model.classifier.training
    model.eval().train()
    assert not any(module.training for module in model.backbone.modules())
    images = torch.randn(2, 3, 64, 64)
    features = model.pooled(images)
    assert torch.equal(model(features).logits, model(images).logits)
    with pytest.raises(UserError, match="stages"):
        model.freeze(5)
