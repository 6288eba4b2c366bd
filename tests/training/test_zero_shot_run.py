"""Runs that start from a zero-shot head, from pictures to an exported classifier."""

import json

import pytest
import torch
from PIL import Image
from torchvision.transforms.v2.functional import pil_to_tensor
from transformers import AutoTokenizer, pipeline

from metaalign_hf import MetaAlignForImageClassification
from metaalign_hf.cli import run
from tests.helpers.dual_encoders import write_dual_encoder
from tests.helpers.runs import lines, weights
from tests.helpers.squares import SHAPES, write_squares

SMALL = ["--training.max_steps", "4", "--training.batch_size", "8", "--training.log_every", "1"]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return write_squares(tmp_path_factory.mktemp("domains"))


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("encoder")
    return folder, write_dual_encoder(folder, "clip", words=list(SHAPES))


def right_of_the_encoder(folders, encoder, processor) -> float:
    """Share of the test pictures that the dual encoder itself gets right."""
    folder, model = encoder
    tokens = AutoTokenizer.from_pretrained(folder)([f"a photo of a {s}" for s in SHAPES], return_tensors="pt")
    files = sorted((folders / "tests").glob("*/*.png"))
    images = [pil_to_tensor(Image.open(file).convert("RGB")) for file in files]
    pixels = processor(images, input_data_format="channels_first", return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        found = model(
            input_ids=tokens["input_ids"], attention_mask=tokens["attention_mask"], pixel_values=pixels
        ).logits_per_image.argmax(1)
    return sum(SHAPES[k] == file.parent.name for k, file in zip(found.tolist(), files, strict=True)) / len(files)


def test_without_any_source(folders, encoder, tmp_path, capsys):
    """Before is the dual encoder's own accuracy; the head stays; a target without labels needs names alone."""
    target = f"{{kind: imagefolder, path: {folders / 'bare'}, test_path: {folders / 'tests'}}}"
    options = ["--data.source", "none", "--model.backbone", str(encoder[0]), "--model.head", "zero_shot", *SMALL]
    options += ["--training.select_by", "null"]
    labelled = f"{{kind: imagefolder, path: {folders / 'target'}, test_path: {folders / 'tests'}}}"
    output = tmp_path / "run"
    assert run(["train", *options, "--data.target", labelled, "--training.output_dir", str(output)]) == 0
    summary = json.loads((output / "summary.json").read_text())
    model = MetaAlignForImageClassification.from_pretrained(output)
    processor = model.image_processor()
    assert summary["target_accuracy_before"] == right_of_the_encoder(folders, encoder, processor)
    start = write_and_load(options, labelled, tmp_path / "still", "--optimizer.lr", "0")
    after = weights(output)
    moved = {name.split(".")[0] for name in after if not torch.equal(after[name], start[name])}
    assert moved == {"backbone"}
    assert "radford2021learning" in (output / "README.md").read_text()
    assert run(["export", str(output), str(tmp_path / "native")]) == 0
    file = sorted((folders / "tests").glob("*/*.png"))[0]
    ours, native = (pipeline("image-classification", str(tmp_path / name))(str(file)) for name in ("run", "native"))
    # Timm resizes by PIL, which now and then rounds to the next grey level.
    assert ours[0]["label"] == native[0]["label"] and abs(ours[0]["score"] - native[0]["score"]) < 0.01

    bare = ["train", *options, "--data.target", target.replace(str(folders / "tests"), str(folders / "bare"))]
    capsys.readouterr()
    assert run([*bare, "--training.output_dir", str(tmp_path / "bare")]) == 2
    assert "model.labels: target bare has no class names; name the classes" in capsys.readouterr().err
    given = ["--model.labels", "[left, right]", "--training.output_dir", str(tmp_path / "bare")]
    assert run(["train", *options, "--data.target", f"imagefolder:{folders / 'bare'}", *given]) == 0


def write_and_load(options, target, output, *more: str):
    assert run(["train", *options, "--data.target", target, "--training.output_dir", str(output), *more]) == 0
    return weights(output)


def test_with_a_source_and_cached_features(folders, encoder, tmp_path):
    """The head begins as zero-shot and learns from the source; the tower stays."""
    target = f"{{kind: imagefolder, path: {folders / 'target'}, test_path: {folders / 'tests'}}}"
    output = tmp_path / "run"
    options = ["--data.source", f"imagefolder:{folders / 'source'}", "--model.backbone", str(encoder[0])]
    options += ["--model.head", "zero_shot", "--model.freeze", "all", "--model.alignment", "cdan", *SMALL]
    assert run(["train", *options, "--data.target", target, "--training.output_dir", str(output)]) == 0
    assert (output / "features.safetensors").exists() and lines(output)
    summary = json.loads((output / "summary.json").read_text())
    processor = MetaAlignForImageClassification.from_pretrained(output).image_processor()
    assert summary["target_accuracy_before"] == right_of_the_encoder(folders, encoder, processor)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--model.prompt", "[a {label}, the {label}]"], "in a list each text is in quotes, such as ['a photo of a"),
        (["--model.prompt", "a photo"], "model.prompt is 'a photo': it must hold {label}"),
        (["--model.bottleneck_dim", "8"], "model.bottleneck_dim is 8: with model.head zero_shot nothing reads it"),
        (["--model.head", "linear", "--model.prompt", "the {label}"], "model.prompt is the {label}: with model.head"),
        (["--model.labels", "[a, b]"], "model.labels: the classes are those of data.source"),
    ],
)
def test_bad_input(options, said, folders, encoder, tmp_path, capsys):
    given = ["--data.source", f"imagefolder:{folders / 'source'}", "--data.target", f"imagefolder:{folders / 'target'}"]
    given += ["--model.backbone", str(encoder[0]), "--model.head", "zero_shot", "--training.output_dir", str(tmp_path)]
    assert run(["train", *given, *options]) == 2
    error = capsys.readouterr().err
    assert said in error and len(error.splitlines()) == 1
