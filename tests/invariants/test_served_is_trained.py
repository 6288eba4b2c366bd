"""Law 10: what plain transformers makes of an image file is what evaluation saw of it.

Three small classifiers are trained on folders of pictures, each on another kind of backbone, and served in every form:
checkpoint, native form, commands, ONNX Runtime and the Hub. All of them are shown one set of awkward files.
"""

import csv
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from transformers import (
    AutoImageProcessor,
    AutoModelForImageClassification,
    AutoModelForObjectDetection,
    ConvNextImageProcessor,
    TimmWrapperImageProcessor,
    ViTImageProcessor,
    pipeline,
)
from transformers.image_utils import load_image

from metaalign_hf import MetaAlignForImageClassification, MetaAlignForObjectDetection, load_config
from metaalign_hf.cli import run
from metaalign_hf.data import evaluation_batches, image_files
from metaalign_hf.errors import UserError
from metaalign_hf.evaluation import predict_probabilities
from metaalign_hf.models import build_image_processor
from metaalign_hf.models.detectors.processors import build_detector_processor
from metaalign_hf.models.image_processor import timm_data_config
from metaalign_hf.tasks.classification.task import ClassificationTask
from tests.helpers.hub_server import HubServer
from tests.helpers.tiny_detectors import LABELS, detector_settings

VIT = "{hidden_size: 16, num_hidden_layers: 2, num_attention_heads: 2, intermediate_size: 32, image_size: 48}"
RESNET = "{embedding_size: 8, hidden_sizes: [8, 16], depths: [1, 1], layer_type: basic}"
BACKBONES = {
    "timm": ["--model.backbone", "timm/test_resnet", "--optimizer.lr", "0.01", "--model.bottleneck_dim", "8"],
    "resnet": ["--model.backbone", "resnet", "--model.backbone_options", RESNET, "--optimizer.lr", "0.001"],
    "vit": ["--model.backbone", "vit", "--model.backbone_options", VIT, "--optimizer.lr", "0.0003"],
}


def pixels(height: int, width: int, seed: int) -> np.ndarray:
    """Patches of colour with fine noise: both scale and place of a crop change what is seen."""
    generator = np.random.default_rng(seed)
    coarse = Image.fromarray(generator.integers(0, 256, size=(4, 4, 3), dtype=np.uint8)).resize((width, height))
    return (np.asarray(coarse) // 2 + generator.integers(0, 128, size=(height, width, 3))).astype(np.uint8)


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> list[Path]:
    """One image file of every awkward kind."""
    folder = tmp_path_factory.mktemp("files")
    shapes = {"wide": (50, 400), "tall": (400, 50), "tiny": (3, 2), "large": (700, 500)}
    for number, (name, (height, width)) in enumerate(shapes.items()):
        picture = pixels(height, width, number)
        picture[..., number % 3] //= 2
        Image.fromarray(picture).save(folder / f"{name}.png")
    picture = Image.fromarray(pixels(90, 130, 9))
    picture.convert("L").save(folder / "grey.png")
    alpha = Image.fromarray(np.random.default_rng(1).integers(0, 256, size=(90, 130), dtype=np.uint8))
    hidden = picture.copy()
    hidden.putalpha(alpha)
    hidden.save(folder / "rgba.png")
    hidden.convert("LA").save(folder / "grey_alpha.png")
    picture.convert("P").save(folder / "palette.png", transparency=3)
    picture.convert("CMYK").save(folder / "cmyk.jpg")
    for turned in (3, 6, 8):
        exif = Image.Exif()
        exif[0x0112] = turned
        picture.save(folder / f"turned{turned}.jpg", exif=exif)
    return sorted(folder.iterdir())


@pytest.fixture(scope="module")
def domains(tmp_path_factory) -> Path:
    """Two labelled folders of pictures, of several shapes."""
    root = tmp_path_factory.mktemp("domains")
    for domain in ("studio", "street"):
        for index, label in enumerate(("cat", "dog")):
            (root / domain / label).mkdir(parents=True)
            for number in range(8):
                seed = 100 * index + number
                picture = pixels(60 + 5 * number, 90 - 4 * number, seed)
                picture[..., 2 * index] //= 3 if domain == "studio" else 2
                Image.fromarray(picture).save(root / domain / label / f"{number}.png")
    return root


@pytest.fixture(scope="module")
def trained(domains, tmp_path_factory):
    """Trains the model of a kind of backbone once; returns the folders of the run and of its native form with ONNX."""
    made: dict[str, tuple[Path, Path]] = {}

    def train(kind: str) -> tuple[Path, Path]:
        if kind not in made:
            root = tmp_path_factory.mktemp(kind)
            where = [f"--data.{d}=imagefolder:{domains / p}" for d, p in (("source", "studio"), ("target", "street"))]
            steps = ["--training.source_steps", "30", "--training.max_steps", "4", "--training.batch_size", "6"]
            words = [*where, *steps, "--data.image_size", "48", "--model.pretrained", "false", *BACKBONES[kind]]
            words += ["--optimizer.name", "adamw", "--optimizer.head_multiplier", "1", "--model.alignment", "dann"]
            words += ["--coordination.direction", "fresh"]  # with these weights no image is on the edge of a class
            words += ["--training.output_dir", str(root / "run")]
            assert run(["train", *words]) == 0
            assert run(["export", str(root / "run"), str(root / "native"), "--onnx"]) == 0
            made[kind] = (root / "run", root / "native")
        return made[kind]

    return train


@pytest.fixture(scope="module")
def seen():
    """What evaluation sees: the share of the second class in each file, by the run's own processor."""

    def shares(run_folder: Path, files: list[Path]) -> np.ndarray:
        model = MetaAlignForImageClassification.from_pretrained(run_folder).eval()
        batches = evaluation_batches(image_files(files), AutoImageProcessor.from_pretrained(run_folder), 64)
        return predict_probabilities(model, batches)[:, 1].numpy()

    return shares


def load_task(run_folder: Path) -> ClassificationTask:
    """The task of a finished run, as training itself makes it."""
    return ClassificationTask(load_config(run_folder / "training_config.yaml"))


def served(place: Path, files: list[Path]) -> np.ndarray:
    """The same share as plain `pipeline` prints it."""
    answers = pipeline("image-classification", model=str(place))([str(file) for file in files], top_k=2)
    return np.array([{entry["label"]: entry["score"] for entry in answer}["dog"] for answer in answers])


def commanded(place: Path, files: list[Path], output: Path) -> np.ndarray:
    """The same share as `metaalign predict` writes it."""
    assert run(["predict", str(place), *map(str, files), "--output", str(output)]) == 0
    with output.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["file"] for row in rows] == [str(file) for file in files]
    shares = [float(row["probability"]) for row in rows]
    return np.array([share if row["label"] == "dog" else 1 - share for share, row in zip(shares, rows, strict=True)])


@pytest.mark.parametrize("kind", BACKBONES)
def test_every_form_of_a_classifier_sees_the_same_pixels(kind, trained, files, seen, tmp_path):
    run_folder, native = trained(kind)
    expected = seen(run_folder, files)
    assert np.ptp(expected) > 0.1, "the files must differ to the model, else nothing is compared"
    np.testing.assert_allclose(served(run_folder, files), expected, atol=1e-5)
    np.testing.assert_allclose(commanded(run_folder, files, tmp_path / "adapted.csv"), expected, atol=1e-5)
    # timm resizes by PIL, which now and then rounds to the next grey level; all else is the very same tensors.
    tolerance = 0.01 if kind == "timm" else 1e-5
    np.testing.assert_allclose(served(native, files), expected, atol=tolerance)
    np.testing.assert_allclose(commanded(native, files, tmp_path / "native.csv"), served(native, files), atol=1e-5)


@pytest.mark.parametrize("kind", BACKBONES)
def test_the_processor_of_the_native_folder_makes_the_same_tensors(kind, trained, files):
    run_folder, native = trained(kind)
    ours, plain = (AutoImageProcessor.from_pretrained(place) for place in (run_folder, native))
    trained_with = load_task(run_folder).processor
    for file, batch in zip(files, evaluation_batches(image_files(files), trained_with, 1), strict=True):
        picture = load_image(str(file))
        assert torch.equal(ours(picture, return_tensors="pt")["pixel_values"], batch["pixel_values"]), file.name
        found = plain(picture, return_tensors="pt")["pixel_values"]
        difference = (found - batch["pixel_values"]).abs() * 255 * torch.tensor(ours.image_std)[:, None, None]
        assert difference.max() < (1.001 if kind == "timm" else 1e-9), file.name


@pytest.mark.parametrize("kind", BACKBONES)
def test_an_onnx_folder_holds_its_processor(kind, trained, files, seen):
    import onnxruntime

    run_folder, native = trained(kind)
    processor = AutoImageProcessor.from_pretrained(native)
    # Other runtimes read this file, and know nothing of timm's way.
    told = json.loads((native / "preprocessor_config.json").read_text())
    assert told["crop_size"] == {"height": 48, "width": 48} and told["size"] == {"height": 54, "width": 54}
    session = onnxruntime.InferenceSession(native / "model.onnx", providers=["CPUExecutionProvider"])
    values = [processor(load_image(str(file)), return_tensors="pt")["pixel_values"].numpy() for file in files]
    logits = torch.from_numpy(np.concatenate([session.run(["logits"], {"pixel_values": value})[0] for value in values]))
    np.testing.assert_allclose(logits.softmax(1)[:, 1].numpy(), seen(run_folder, files), atol=0.01)


@pytest.mark.parametrize("kind", BACKBONES)
def test_a_native_folder_evaluates_as_the_run_does(kind, trained, domains, tmp_path):
    figures = []
    for place in trained(kind):
        output = tmp_path / f"{place.name}.json"
        data = f"imagefolder:{domains / 'street'}"
        assert run(["evaluate", str(place), "--data", data, "--split", "all", "--output", str(output)]) == 0
        figures.append(json.loads(output.read_text())["accuracy"])
    assert figures[0] == figures[1]


def test_timm_itself_reads_a_native_timm_folder(trained):
    _, native = trained("timm")
    assert [path.name for path in native.glob("*.safetensors")] == ["model.safetensors"], "one copy for both libraries"
    images = torch.randn(2, 3, 48, 48, generator=torch.Generator().manual_seed(0))
    plain = timm.create_model(f"local-dir:{native}", pretrained=True).eval()
    with torch.no_grad():
        served_by_transformers = AutoModelForImageClassification.from_pretrained(native).eval()(images).logits
        assert torch.equal(plain(images), served_by_transformers)
    told = timm.data.resolve_model_data_config(plain)
    assert tuple(told["input_size"]) == (3, 48, 48) and told["crop_mode"] == "squash"


def test_a_native_timm_folder_is_exported_to_onnx_with_a_processor(trained, files, tmp_path):
    _, native = trained("timm")
    assert run(["export", str(native), str(tmp_path / "again"), "--onnx"]) == 0
    made = [json.loads((place / "preprocessor_config.json").read_text()) for place in (native, tmp_path / "again")]
    for key in ("size", "crop_size", "resample", "image_mean", "image_std"):
        assert made[0][key] == made[1][key], key
    np.testing.assert_allclose(served(tmp_path / "again", files), served(native, files), atol=1e-6)


def test_an_onnx_file_that_the_processor_does_not_fit_is_told(trained, tmp_path, capsys):
    words = ["export", str(trained("resnet")[0]), str(tmp_path / "other"), "--onnx", "--image-size"]
    assert run([*words, "64", "40"]) == 0
    assert "images of 64x40 pixels, height x width" in capsys.readouterr().out
    assert run([*words[:2], str(tmp_path / "same"), *words[3:], "48", "48"]) == 0
    assert "pixels, height x width" not in capsys.readouterr().out


PULL = """
import json, sys
from transformers import pipeline
files = json.loads(sys.argv[1])
from metaalign_hf.cli import run
assert run(["push", sys.argv[2], "alice/full"]) == 0
assert run(["push", sys.argv[2], "alice/native", "--native"]) == 0
answers = {}
for name in ("alice/full", "alice/native"):
    found = pipeline("image-classification", model=name)(files, top_k=2)
    answers[name] = [{entry["label"]: entry["score"] for entry in answer}["dog"] for answer in found]
print("ANSWER" + json.dumps(answers))
"""


def test_what_is_pushed_sees_the_same_pixels(trained, files, seen, tmp_path):
    run_folder, _ = trained("timm")
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "HUGGING"))}
    with HubServer({"hf_alice": "alice"}) as hub:
        environment |= {**hub.environment(tmp_path, "hf_alice"), "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-c", PULL, json.dumps([str(file) for file in files]), str(run_folder)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stdout + done.stderr
    answers = json.loads(done.stdout.rpartition("ANSWER")[2])
    expected = seen(run_folder, files)
    np.testing.assert_allclose(answers["alice/full"], expected, atol=1e-5)
    np.testing.assert_allclose(answers["alice/native"], expected, atol=0.01)


# With a mask for what is padded, without one, and squares that need no padding.
@pytest.mark.parametrize("family", ["detr", "yolos", "rt_detr"])
def test_a_detector_finds_the_same_boxes_in_every_form(family, files, tmp_path):
    model_type, options = detector_settings()[family]
    torch.manual_seed(0)
    model = MetaAlignForObjectDetection.from_detector(model_type, LABELS, "detr", pretrained=False, **options)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "bbox" in name or "query" in name:
                parameter.mul_(8)  # untrained heads give nearly the same boxes whatever they see
    model.save_pretrained(tmp_path / "adapted")
    size = 96 if family == "rt_detr" else [64, 128]
    build_detector_processor(model_type, None, size).save_pretrained(tmp_path / "adapted")
    assert run(["export", str(tmp_path / "adapted"), str(tmp_path / "native")]) == 0

    processor = AutoImageProcessor.from_pretrained(tmp_path / "native")
    plain = AutoModelForObjectDetection.from_pretrained(tmp_path / "native").eval()
    expected = []
    for file in files:
        picture = load_image(str(file))
        with torch.no_grad():
            output = plain(**processor(picture, return_tensors="pt"))
        sizes = [(picture.height, picture.width)]
        expected += processor.post_process_object_detection(output, threshold=0.0, target_sizes=sizes)
    shares = torch.stack([e["boxes"].sort(0).values / e["boxes"].abs().max() for e in expected])
    assert shares.std(0).max() > 0.01, "the files must differ to the detector, else nothing is compared"

    for form in ("adapted", "native"):
        output = tmp_path / f"{form}.json"
        words = ["--output", str(output), "--threshold", "0"]
        assert run(["predict", str(tmp_path / form), *map(str, files), *words]) == 0
        found = json.loads(output.read_text())
        for number, (file, wanted) in enumerate(zip(files, expected, strict=True)):
            entries = [entry for entry in found["annotations"] if entry["image_id"] == number]
            x, y, w, h = torch.tensor([entry["bbox"] for entry in entries]).T
            order = wanted["scores"].argsort(descending=True, stable=True)
            boxes = torch.stack([x, y, x + w, y + h], 1)[: len(order)]  # RT-DETR's own answer is as long as its queries
            labels = [entry["category_id"] for entry in entries][: len(order)]
            assert labels == wanted["labels"][order].tolist(), (form, file.name)
            assert (boxes - wanted["boxes"][order]).abs().max() < 0.5, (form, file.name)

    for form in ("adapted", "native"):
        answers = pipeline("object-detection", model=str(tmp_path / form), threshold=0.0)([str(f) for f in files])
        for answer, wanted in zip(answers, expected, strict=True):
            boxes = sorted(tuple(entry["box"].values()) for entry in answer)  # as whole pixels, rounded down
            assert boxes == sorted(tuple(map(int, box)) for box in wanted["boxes"].tolist())


@pytest.mark.parametrize("processor", [ViTImageProcessor, ConvNextImageProcessor])
def test_the_commands_take_native_models_with_other_image_processors(processor, trained, files, tmp_path):
    shutil.copytree(trained("resnet")[1], tmp_path / "native")
    size = {"height": 56, "width": 56} if processor is ViTImageProcessor else {"shortest_edge": 56}
    processor(size=size).save_pretrained(tmp_path / "native")
    found = commanded(tmp_path / "native", files, tmp_path / "found.csv")
    np.testing.assert_allclose(found, served(tmp_path / "native", files), atol=1e-5)


def test_the_native_form_alone_says_which_pixels_it_wants(trained, files, seen, tmp_path):
    """As a Python user writes it: no image processor is saved beside a timm model."""
    run_folder, _ = trained("timm")
    MetaAlignForImageClassification.from_pretrained(run_folder).export_native().save_pretrained(tmp_path)
    np.testing.assert_allclose(served(tmp_path, files), seen(run_folder, files), atol=0.01)


@pytest.mark.parametrize("sizes", [(48, 54), (30, 32), (227, 256), (224, 256), (29, 30), (7, 100), (48, 48)])
def test_timm_makes_the_sizes_that_it_was_told(sizes):
    """Its crop_pct is a share, of which it makes whole pixels again by rounding down; its centre has its own rule."""
    crop, square = sizes
    ours = build_image_processor(crop, square, [0.5] * 3, [0.25] * 3)
    plain = TimmWrapperImageProcessor(json.loads(json.dumps(timm_data_config(ours))))
    # One colour for each column and row, at the size of the square: nothing is interpolated.
    rows, columns = np.mgrid[:square, :square]
    picture = Image.fromarray(np.stack([rows, columns, rows * 0], -1).astype(np.uint8))
    found, expected = (p(picture, return_tensors="pt")["pixel_values"] for p in (plain, ours))
    assert expected.shape == (1, 3, crop, crop)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


def test_sizes_whose_centre_is_disputed_are_refused():
    with pytest.raises(UserError, match="resize_size 54 or 56"):
        build_image_processor(48, 55, [0.5] * 3, [0.5] * 3)


def test_images_of_more_than_8_bits_are_refused(tmp_path, trained, capsys):
    """transformers clips them at 255, which makes most of them white."""
    wide = np.linspace(0, 65535, 600).reshape(20, 30)
    for name, values in {"deep.png": wide.astype(np.uint16), "float.tif": wide.astype(np.float32)}.items():
        Image.fromarray(values).save(tmp_path / name)
        capsys.readouterr()
        # predict skips what it cannot read, and exits with 1 where nothing is left.
        assert run(["predict", str(trained("resnet")[0]), str(tmp_path / name)]) == 1
        message = capsys.readouterr().err
        assert name in message and "8 bits" in message
