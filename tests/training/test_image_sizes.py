"""Sizes of the images that a classifier sees: those that are given, and what follows from them where they are not."""

import pytest
import torch
from transformers import BitImageProcessor

from metaalign_hf import MetaAlignForImageClassification, UserError, parse_config
from metaalign_hf.tasks.classification.task import ClassificationTask

TIMM = ("--model.backbone", "timm/test_resnet")
RESNET = (
    *("--model.backbone", "resnet"),
    *("--model.backbone_options", "{embedding_size: 8, hidden_sizes: [8, 16], depths: [1, 1], layer_type: basic}"),
)
VIT_OPTIONS = {"hidden_size": 12, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 24}
VIT = ("--model.backbone", "vit", "--model.backbone_options", str({**VIT_OPTIONS, "image_size": 32, "patch_size": 8}))
TIMM_VIT = ("--model.backbone", "test_vit", "--model.backbone_options", "{img_size: 64}")


def sizes(*words: str) -> tuple[int, int]:
    """Sides of the square and of the crop that a run works with."""
    domains = ("--data.source", "uci_digits", "--data.target", "mnist")
    built = () if "--model.checkpoint" in words else ("--model.alignment", "null", "--model.pretrained", "false")
    task = ClassificationTask(parse_config([*domains, *built, *words]))
    square, crop = task.processor.size, task.processor.crop_size
    assert square["height"] == square["width"] and crop["height"] == crop["width"]
    assert (task.model.config.resize_size, task.model.config.image_size) == (square["height"], crop["height"])
    return square["height"], crop["height"]


@pytest.mark.parametrize(
    "words, expected",
    [
        ((*TIMM, "--data.image_size", "48"), (54, 48)),
        ((*TIMM, "--data.image_size", "224"), (256, 224)),
        ((*TIMM, "--data.image_size", "48", "--data.resize_size", "60"), (60, 48)),
        (TIMM, (182, 160)),
        ((*TIMM, "--data.resize_size", "200"), (200, 160)),
        (RESNET, (256, 224)),
        (VIT, (36, 32)),
        (TIMM_VIT, (74, 64)),
    ],
)
def test_what_is_not_given_follows(words, expected):
    assert sizes(*words) == expected


def test_a_pretrained_backbone_brings_the_size_of_its_image_processor(tmp_path):
    """Some were trained further at another size than their configuration says."""
    options = {"hidden_size": 12, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 32, "patch_size": 8}
    model = MetaAlignForImageClassification.from_backbone("dinov2", ["a", "b"], None, pretrained=False, **options)
    model.export_native().save_pretrained(tmp_path)
    crop, square = {"height": 24, "width": 24}, {"height": 28, "width": 28}
    BitImageProcessor(crop_size=crop, size=square).save_pretrained(tmp_path)
    words = ("--model.backbone", str(tmp_path))
    assert sizes(*words) == (28, 24)
    assert sizes(*words, "--model.backbone_options", "{image_size: 40}") == (46, 40)


def test_a_checkpoint_goes_on_at_its_own_sizes(tmp_path):
    labels = [str(digit) for digit in range(10)]
    torch.manual_seed(0)
    model = MetaAlignForImageClassification.from_backbone("timm/test_resnet", labels, None, pretrained=False)
    model.set_image_sizes(32, 44)
    model.save_pretrained(tmp_path)
    start = ("--model.checkpoint", str(tmp_path))
    assert sizes(*start) == (44, 32)
    assert sizes(*start, "--data.image_size", "64") == (74, 64)
    assert sizes(*start, "--data.resize_size", "40") == (40, 32)


def test_a_crop_that_does_not_fit_is_refused():
    with pytest.raises(UserError, match=r"image_size is 160 and .*resize_size 54"):
        sizes(*TIMM, "--data.resize_size", "54")
