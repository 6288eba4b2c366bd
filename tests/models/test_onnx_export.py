"""ONNX export of the native form, run by ONNX Runtime."""

import json

import numpy as np
import pytest
import torch
from transformers import (
    AutoModelForImageClassification,
    AutoModelForObjectDetection,
    BitImageProcessor,
    DetrConfig,
    DetrForObjectDetection,
    ResNetConfig,
)

from metaalign_hf import MetaAlignForImageClassification
from metaalign_hf.cli import run
from metaalign_hf.models import onnx_export
from metaalign_hf.models.detectors.processors import build_detector_processor
from tests.helpers.tiny_detectors import tiny_detector

onnxruntime = pytest.importorskip("onnxruntime")
LABELS = ["cat", "dog", "eel"]
VIT = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48, "image_size": 32}


def checkpoint(folder, backbone, **options):
    torch.manual_seed(0)
    model = MetaAlignForImageClassification.from_backbone(backbone, LABELS, "gvb", pretrained=False, **options)
    model.save_pretrained(folder)
    size = {"height": 32, "width": 32}
    BitImageProcessor(size=size, crop_size=size, image_mean=[0.5] * 3, image_std=[0.5] * 3).save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize(("backbone", "options"), [("resnet18", {}), ("vit", VIT)], ids=["resnet", "vit"])
def test_the_onnx_file_gives_the_logits_of_torch(backbone, options, tmp_path, capsys):
    adapted = checkpoint(tmp_path / "adapted", backbone, **options)
    assert run(["export", adapted, str(tmp_path / "native"), "--onnx"]) == 0
    assert "outputs within" in capsys.readouterr().out
    model = AutoModelForImageClassification.from_pretrained(tmp_path / "native").eval()
    session = onnxruntime.InferenceSession(tmp_path / "native" / "model.onnx", providers=["CPUExecutionProvider"])
    for count in (1, 5):
        images = torch.randn(count, 3, 32, 32)
        (found,) = session.run(["logits"], {"pixel_values": images.numpy()})
        with torch.no_grad():
            np.testing.assert_allclose(found, model(images).logits.numpy(), rtol=1e-3, atol=1e-5)


def test_a_detector_of_the_detr_family(tmp_path):
    torch.manual_seed(0)
    backbone = ResNetConfig(
        embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic", out_features=["stage2"]
    )
    narrow = {f"{part}_{name}": 1 for part in ("encoder", "decoder") for name in ("layers", "attention_heads")}
    config = DetrConfig(
        backbone_config=backbone,
        use_timm_backbone=False,
        use_pretrained_backbone=False,
        d_model=16,
        encoder_ffn_dim=16,
        decoder_ffn_dim=16,
        num_queries=5,
        num_labels=3,
        **narrow,
    )
    model = DetrForObjectDetection(config).eval()
    assert onnx_export.export_onnx(model, (64, 96), tmp_path / "detr.onnx", ("logits", "pred_boxes")).difference < 1e-4
    session = onnxruntime.InferenceSession(tmp_path / "detr.onnx", providers=["CPUExecutionProvider"])
    images = torch.randn(4, 3, 64, 96)
    logits, boxes = session.run(["logits", "pred_boxes"], {"pixel_values": images.numpy()})
    with torch.no_grad():
        expected = model(images)
    np.testing.assert_allclose(logits, expected.logits.numpy(), rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(boxes, expected.pred_boxes.numpy(), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("family", "batches"), [("yolos", (1, 5)), pytest.param("d_fine", (1,), marks=pytest.mark.slow)]
)
def test_an_adapted_detector_from_the_command_line(family, batches, tmp_path, capsys):
    torch.manual_seed(0)
    model = tiny_detector(family)
    with torch.no_grad():
        for parameter in model.parameters():  # class heads start at zero, where the choice of queries is a tie
            parameter.add_(0.05 * torch.randn_like(parameter))
    model.save_pretrained(tmp_path / "adapted")
    build_detector_processor(family, size=64).save_pretrained(tmp_path / "adapted")
    assert run(["export", str(tmp_path / "adapted"), str(tmp_path / "native"), "--onnx"]) == 0
    printed = capsys.readouterr().out
    assert "outputs within" in printed and ("one image at a time" in printed) == (batches == (1,))
    native = AutoModelForObjectDetection.from_pretrained(tmp_path / "native").eval()
    session = onnxruntime.InferenceSession(tmp_path / "native" / "model.onnx", providers=["CPUExecutionProvider"])
    for count in batches:
        images = torch.randn(count, 3, 64, 64)
        logits, boxes = session.run(["logits", "pred_boxes"], {"pixel_values": images.numpy()})
        with torch.no_grad():
            expected = native(images)
        np.testing.assert_allclose(logits, expected.logits.numpy(), rtol=1e-3, atol=1e-4)
        np.testing.assert_allclose(boxes, expected.pred_boxes.numpy(), rtol=1e-3, atol=1e-4)


@pytest.mark.slow
def test_a_detector_that_the_exporter_cannot_write_is_refused_in_one_line(tmp_path, capsys):
    torch.manual_seed(0)
    tiny_detector("deformable_two_stage").save_pretrained(tmp_path / "adapted")
    build_detector_processor("deformable_detr", size=64).save_pretrained(tmp_path / "adapted")
    assert run(["export", str(tmp_path / "adapted"), str(tmp_path / "native"), "--onnx"]) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("metaalign: export: DeformableDetrForObjectDetection cannot be written and run as ONNX: ")
    assert not (tmp_path / "native").exists()


def test_a_native_checkpoint_is_exported_as_well_and_differences_are_refused(tmp_path, capsys, monkeypatch):
    adapted = checkpoint(tmp_path / "adapted", "vit", **VIT)
    assert run(["export", adapted, str(tmp_path / "native")]) == 0
    monkeypatch.setattr(onnx_export, "TOLERANCE", -1.0)
    assert run(["export", str(tmp_path / "native"), str(tmp_path / "other"), "--onnx"]) == 2
    assert "gives other outputs than torch" in capsys.readouterr().err
    assert not (tmp_path / "other").exists()
    monkeypatch.undo()
    assert run(["export", str(tmp_path / "native"), str(tmp_path / "other"), "--onnx"]) == 0
    assert (tmp_path / "other" / "model.onnx").exists()
    assert json.loads((tmp_path / "other" / "config.json").read_text())["architectures"] == [
        "ViTForImageClassification"
    ]


def test_missing_packages_are_named(tmp_path, capsys, monkeypatch):
    adapted = checkpoint(tmp_path / "adapted", "vit", **VIT)
    monkeypatch.setattr(onnx_export, "find_spec", lambda name: None)
    assert run(["export", adapted, str(tmp_path / "native"), "--onnx"]) == 2
    assert "metaalign-hf[onnx]" in capsys.readouterr().err
