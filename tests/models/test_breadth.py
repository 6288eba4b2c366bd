"""Every family of backbones: build, one MetaAlign step, save, load, native export, with bit-equal logits throughout.

pytest tests/models/test_breadth.py
"""

import copy

import pytest
import torch
from transformers import AutoModelForImageClassification

from metaalign_hf import MetaAlign, MetaAlignForImageClassification, UserError

# The smallest member of each family: side of the images, and whether the architecture must be told.
TIMM = {
    "beit_base_patch16_224": (32, True),
    "cait_xxs24_224": (32, True),
    "coatnet_pico_rw_224": (64, True),
    "convmixer_768_32": (64, False),
    "convnext_atto": (64, False),
    "convnextv2_atto": (64, False),
    "davit_tiny": (64, False),
    "deit_tiny_patch16_224": (32, True),
    "densenet121": (64, False),
    "edgenext_xx_small": (64, False),
    "efficientnet_b0": (128, False),
    "efficientvit_b0": (64, False),
    "eva02_tiny_patch14_224": (28, True),
    "fastvit_t8": (64, False),
    "focalnet_tiny_srf": (64, False),
    "ghostnet_100": (128, False),
    "gmlp_s16_224": (224, False),
    "hgnetv2_b0": (64, False),
    "hiera_tiny_224": (224, False),
    "inception_next_atto": (64, False),
    "mambaout_femto": (64, False),
    "maxvit_rmlp_pico_rw_256": (256, False),
    "mixer_s32_224": (224, False),
    "mnasnet_small": (128, False),
    "mobilenetv3_small_050": (64, False),
    "mobilenetv4_conv_small": (128, False),
    "mobilevit_xxs": (64, False),
    "nf_resnet26": (64, False),
    "poolformer_s12": (64, False),
    "pvt_v2_b0": (64, False),
    "regnetx_002": (64, False),
    "regnety_002": (64, False),
    "resmlp_12_224": (224, False),
    "resnet18": (64, False),
    "resnext50_32x4d": (64, False),
    "rexnet_100": (128, False),
    "starnet_s1": (64, False),
    "swin_tiny_patch4_window7_224": (56, True),
    "swinv2_tiny_window8_256": (64, True),
    "twins_svt_small": (64, False),
    "visformer_tiny": (224, False),
    "vit_small_patch14_reg4_dinov2": (28, True),
    "vit_small_patch16_dinov3": (32, True),
    "vit_tiny_patch16_224": (32, True),
    "xcit_nano_12_p16_224": (32, False),
}
_TRANSFORMER = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}
_TEXT = {**_TRANSFORMER, "vocab_size": 50_000}
NATIVE = {
    "beit": ({**_TRANSFORMER, "image_size": 32}, 32),
    "clip": ({"vision_config": {**_TRANSFORMER, "image_size": 32, "patch_size": 16}, "text_config": _TEXT}, 32),
    "convnext": ({"hidden_sizes": [8, 16], "depths": [1, 1], "num_stages": 2}, 32),
    "convnextv2": ({"hidden_sizes": [8, 16], "depths": [1, 1], "num_stages": 2}, 32),
    "deit": ({**_TRANSFORMER, "image_size": 32}, 32),
    "dinov2": (
        {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 28, "patch_size": 14},
        28,
    ),
    "dinov2_with_registers": (
        {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 28, "patch_size": 14},
        28,
    ),
    "hiera": ({"embed_dim": 8, "depths": [1, 1, 1, 1], "num_heads": [1, 2, 4, 8], "image_size": [64, 64]}, 64),
    "mobilenet_v2": ({}, 64),
    "pvt_v2": ({}, 64),
    "regnet": ({"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1], "groups_width": 8}, 64),
    "resnet": ({"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1], "layer_type": "basic"}, 32),
    "siglip": ({"vision_config": {**_TRANSFORMER, "image_size": 32, "patch_size": 16}, "text_config": _TEXT}, 32),
    "swin": ({"embed_dim": 12, "depths": [1, 1], "num_heads": [2, 2], "window_size": 4, "image_size": 32}, 32),
    "swinv2": ({"embed_dim": 12, "depths": [1, 1], "num_heads": [2, 2], "window_size": 4, "image_size": 32}, 32),
    "vit": ({**_TRANSFORMER, "image_size": 32}, 32),
}
CASES = {f"timm/{name}": ({"img_size": side} if told else {}, side) for name, (side, told) in TIMM.items()} | NATIVE


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_a_step_and_every_round_trip(name, tmp_path):
    options, side = CASES[name]
    torch.manual_seed(0)
    model = MetaAlignForImageClassification.from_backbone(name, ["a", "b", "c"], "dann", pretrained=False, **options)
    images, labels, domains = (
        torch.randn(4, 3, side, side),
        torch.tensor([0, 2, -100, -100]),
        torch.tensor([0, 0, 1, 1]),
    )
    before = {key: value.clone() for key, value in model.named_parameters()}
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    MetaAlign(optimizer, inner_lr=1.0).backward(
        [lambda: model(images[:2], labels[:2], objective="task").task_loss],
        [lambda: model(images, labels, domains, objective="alignment").alignment_loss],
    )
    optimizer.step()
    moved = [key for key, value in model.named_parameters() if not torch.equal(value, before[key])]
    assert any(key.startswith("backbone.") for key in moved) and any(key.startswith("alignment.") for key in moved)

    with torch.no_grad():
        expected = model.eval()(images).logits
        assert torch.isfinite(expected).all()
        model.save_pretrained(tmp_path / "adapted")
        loaded = MetaAlignForImageClassification.from_pretrained(tmp_path / "adapted").eval()
        assert torch.equal(loaded(images).logits, expected)
        loaded.export_native().save_pretrained(tmp_path / "native")
        # The copy lies in aligned memory, as the original does.
        native = copy.deepcopy(AutoModelForImageClassification.from_pretrained(tmp_path / "native")).eval()
        assert "MetaAlign" not in type(native).__name__
        assert torch.equal(native(images).logits, expected)


FOUNDATION = (
    *(
        "clip",
        "dinov2",
        "dinov2_with_registers",
        "siglip",
        "convnextv2",
        "hiera",
        "timm/eva02_tiny_patch14_224",
    ),
    *("timm/hiera_tiny_224", "timm/vit_small_patch14_reg4_dinov2", "timm/vit_small_patch16_dinov3"),
)


@pytest.mark.slow
@pytest.mark.parametrize("name", FOUNDATION)
def test_frozen_or_with_adapters(name):
    """Features in the place of images are the same model; adapters train, and merge into the plain one."""
    options, side = CASES[name]
    torch.manual_seed(0)
    model = MetaAlignForImageClassification.from_backbone(
        name, ["a", "b", "c"], "cdan", pretrained=False, bottleneck_dim=8, **options
    )
    images, labels = torch.randn(2, 3, side, side), torch.tensor([0, 2])
    frozen = copy.deepcopy(model).train()
    frozen.freeze("all")
    features = frozen.pooled(images)
    assert not features.requires_grad and torch.equal(features, frozen.pooled(images))
    assert torch.equal(frozen(features, labels).task_loss, frozen(images, labels).task_loss)

    model.add_lora(r=2)
    assert all(".lora_" in key for key in model.parameter_roles()["backbone"])
    for key, value in model.named_parameters():
        if ".lora_B" in key:
            torch.nn.init.normal_(value, std=0.05)
    model.train()(images, labels).task_loss.backward()
    assert all(value.grad is not None for key, value in model.named_parameters() if ".lora_" in key)
    model.eval().config.image_size = side
    with torch.no_grad():
        assert torch.allclose(model.export_native()(images).logits, model(images).logits, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("coat_tiny", "several names"),
        ("levit_128s", "averages 2 classifiers"),
        ("deit_tiny_distilled_patch16_224", "averages 2 classifiers"),
        ("crossvit_tiny_240", "ModuleList, not one linear layer"),
        ("caformer_s18", "MlpHead, not one linear layer"),
        ("repvit_m0_9", "RepVitClassifier, not one linear layer"),
        ("efficientvit_m0", "loses other layers"),
        ("volo_d1_224", "loses other layers"),
        ("siglip2", "not images"),
        ("dinov3_vit", "timm has it, as timm/vit_small_patch16_dinov3"),
        ("pp_lcnet", "no logits"),
        ("levit", "LevitClassificationLayer, not one linear layer"),
    ],
)
def test_what_cannot_work_is_refused_by_name(name, reason):
    with pytest.raises(UserError, match=reason) as caught:
        MetaAlignForImageClassification.from_backbone(name, ["a", "b"], pretrained=False)
    assert name.split("_")[0].lower() in str(caught.value).lower() and "\n" not in str(caught.value)
