"""The recipes for foundation backbones, on tiny ones and tiny pictures."""

import json
from pathlib import Path

import pytest
from transformers import Dinov2Config, Dinov2ForImageClassification, ViTConfig, ViTForImageClassification

from metaalign_hf.cli import run
from tests.helpers.dual_encoders import write_dual_encoder
from tests.helpers.squares import SHAPES, write_squares

EXAMPLES = Path(__file__).parents[2] / "examples"
TOWER = {"hidden_size": 24, "num_hidden_layers": 4, "num_attention_heads": 2, "image_size": 16, "patch_size": 8}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return write_squares(tmp_path_factory.mktemp("domains"))


@pytest.fixture(scope="module")
def backbones(tmp_path_factory):
    """By recipe, a folder in the place of the Hub's model."""
    root = tmp_path_factory.mktemp("backbones")
    Dinov2ForImageClassification(Dinov2Config(**TOWER)).save_pretrained(root / "dinov2_frozen")
    ViTForImageClassification(ViTConfig(**TOWER, intermediate_size=48)).save_pretrained(root / "vit_lora")
    write_dual_encoder(root / "siglip2_zero_shot", "siglip", words=list(SHAPES))
    return root


@pytest.mark.parametrize("recipe", ["dinov2_frozen", "siglip2_zero_shot", "vit_lora"])
def test_it_runs(recipe, folders, backbones, tmp_path):
    target = f"{{kind: imagefolder, path: {folders / 'target'}, test_path: {folders / 'tests'}}}"
    options = ["--data.target", target, "--model.backbone", str(backbones / recipe), "--data.num_workers", "0"]
    options += [
        "--training.max_steps",
        "3",
        "--training.batch_size",
        "8",
        "--training.output_dir",
        str(tmp_path / "run"),
    ]
    if recipe != "siglip2_zero_shot":
        options += ["--data.source", f"imagefolder:{folders / 'source'}", "--training.source_steps", "2"]
    assert run(["train", "--config", str(EXAMPLES / f"{recipe}.yaml"), *options]) == 0
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["target_accuracy_after"] is not None
    assert (tmp_path / "run" / "features.safetensors").exists() == (recipe == "dinov2_frozen")
    assert run(["export", str(tmp_path / "run"), str(tmp_path / "native")]) == 0
