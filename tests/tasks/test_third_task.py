"""A task that this package has never heard of trains, resumes, is saved, served and described."""

import json
from pathlib import Path

import torch
from PIL import Image
from safetensors.torch import load_file

from metaalign_hf import adapt, load_config
from metaalign_hf.cli import run
from metaalign_hf.data import DomainPair, ImageSet
from metaalign_hf.data.images import TensorLoader
from metaalign_hf.hub import load_checkpoint
from metaalign_hf.tasks import task_of_model
from tests.helpers.runs import TINY
from tests.helpers.toy_regression import BrightnessConfig, BrightnessForImageRegression


def brightness_pair() -> DomainPair:
    """Grey images of a known brightness, and tinted ones."""

    def view(seed: int, tint: float) -> ImageSet:
        levels = torch.randint(100, (40,), generator=torch.Generator().manual_seed(seed))
        images = (levels.view(-1, 1, 1, 1) * torch.tensor([1, tint, 1]).view(1, 3, 1, 1) * 2.5).expand(-1, -1, 8, 8)
        return ImageSet("grey", 40, TensorLoader(images.to(torch.uint8)), tuple(levels.tolist()))

    views = [
        view(0, 1.0),
        view(1, 1.0),
        view(2, 0.8).without_annotations(),
        view(3, 0.8).without_annotations(),
        view(3, 0.8),
    ]
    return DomainPair("grey", "tinted", ["brightness"], *views)


def train(output: Path, steps: int, **options: object):
    torch.manual_seed(0)
    model = BrightnessForImageRegression(BrightnessConfig([{"name": "coral", "weight": 0.1}]))
    training = {"output_dir": str(output), "max_steps": steps, "source_steps": 3, "checkpoint_every": 2, **options}
    options = {"data.augmentation": "none", **{f"training.{key}": value for key, value in training.items()}}
    config = load_config(TINY, options)
    return adapt(config, pair=brightness_pair(), model=model)


def test_a_third_task_needs_no_line_elsewhere(tmp_path, capsys):
    summary = train(tmp_path / "whole", 6)
    assert 0 <= summary.target_within_after <= 1 and summary.title == "test share within 0.1"
    train(tmp_path / "parts", 4)
    train(tmp_path / "parts", 6, resume=True)
    weights = [load_file(tmp_path / name / "model.safetensors") for name in ("whole", "parts")]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    assert "test share within 0.1 source" in capsys.readouterr().out

    written = json.loads((tmp_path / "whole" / "summary.json").read_text())
    assert written["task"] == "image-regression" and written["target_within_after"] == summary.target_within_after
    card = (tmp_path / "whole" / "README.md").read_text()
    assert "pipeline_tag: image-regression" in card and "| target tinted, share within 0.1 |" in card

    model, _ = load_checkpoint(str(tmp_path / "whole"))
    assert type(model) is BrightnessForImageRegression and task_of_model(model).noun == "regressor"
    Image.new("RGB", (8, 8), (128, 128, 128)).save(tmp_path / "grey.png")
    command = ["predict", str(tmp_path / "whole"), str(tmp_path / "grey.png")]
    assert run(command) == 0
    name, brightness = capsys.readouterr().out.split()
    assert name == "grey.png" and 0 < float(brightness) < 1
    assert run([*command, "--output", str(tmp_path / "table.csv")]) == 0
    assert capsys.readouterr().out == f"1 images measured: {tmp_path / 'table.csv'}\n"
    assert run([*command, "--top-k", "2"]) == 2
    assert "--top-k is for classifiers; " in capsys.readouterr().err
    assert run(["evaluate", str(tmp_path / "whole"), "--data", "mnist", "--tile", "64"]) == 2
    assert "--tile is for detectors; " in capsys.readouterr().err
