"""The classifier through its public surface: build, forward, save, load, Auto classes, pipeline, native export."""

import copy
import json

import pytest
import torch
from PIL import Image
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModelForImageClassification,
    BitImageProcessor,
    pipeline,
)

from metaalign_hf import MetaAlignForImageClassification, UserError, parse_config
from metaalign_hf.tasks.classification.task import ClassificationTask

LABELS = ["cat", "dog", "eel"]

# Small members of the families that the README names, all from configurations: no network.
BACKBONES = {
    "vit_small": ("timm/vit_small_patch16_224", {"img_size": 32, "depth": 2}, 32),
    "resnet18": ("resnet18", {}, 32),
    "resnet50": ("timm/resnet50.a1_in1k", {}, 32),
    "timm_convnext": ("convnext_atto", {}, 32),
    "timm_swin": ("swin_tiny_patch4_window7_224", {"depths": (1, 1, 1, 1)}, 224),
    "native_vit": (
        "vit",
        {
            "hidden_size": 24,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "intermediate_size": 48,
            "image_size": 32,
        },
        32,
    ),
    "native_resnet": (
        "resnet",
        {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1], "layer_type": "basic"},
        32,
    ),
    "native_convnext": ("convnext", {"hidden_sizes": [8, 16], "depths": [1, 1], "num_stages": 2}, 32),
    "native_swin": (
        "swin",
        {"embed_dim": 12, "depths": [1, 1], "num_heads": [2, 2], "window_size": 4, "image_size": 32},
        32,
    ),
    "dinov2": (
        "dinov2",
        {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 28, "patch_size": 14},
        28,
    ),
}


def build(
    name: str, alignment: object = "gvb", **arguments: object
) -> tuple[MetaAlignForImageClassification, torch.Tensor]:
    backbone, options, size = BACKBONES[name]
    options = {**options, **arguments}
    torch.manual_seed(0)
    model = MetaAlignForImageClassification.from_backbone(backbone, LABELS, alignment, pretrained=False, **options)
    return model, torch.randn(4, 3, size, size)


def tiny(alignment: object = "gvb", **arguments: object) -> MetaAlignForImageClassification:
    _, options, _ = BACKBONES["native_resnet"]
    torch.manual_seed(0)
    return MetaAlignForImageClassification.from_backbone(
        "resnet", LABELS, alignment, pretrained=False, **{**options, **arguments}
    )


@pytest.mark.parametrize("name", BACKBONES)
def test_trains_saves_loads_and_exports_bit_identically(name, tmp_path):
    model, images = build(name)
    labels, domains = torch.tensor([0, 2, -100, -100]), torch.tensor([0, 0, 1, 1])
    output = model(images, labels, domains, progress=0.5)
    output.loss.backward()
    without = [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None and "mask_token" not in n]
    assert without == [], "every parameter must be reached by the joint loss"
    torch.optim.SGD(model.parameters(), lr=1e-3).step()

    model.eval()
    expected = model(images).logits
    model.save_pretrained(tmp_path / "adapted")
    loaded = MetaAlignForImageClassification.from_pretrained(tmp_path / "adapted").eval()
    assert torch.equal(loaded(images).logits, expected)
    for key, value in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[key], value), key

    native = loaded.export_native()
    assert torch.equal(native(images).logits, expected)
    native.save_pretrained(tmp_path / "native")
    assert "metaalign" not in (tmp_path / "native" / "config.json").read_text()
    # The copy lies in aligned memory, as the original does: products of unaligned memory may differ in the last bit.
    reloaded = copy.deepcopy(AutoModelForImageClassification.from_pretrained(tmp_path / "native")).eval()
    assert torch.equal(reloaded(images).logits, expected)
    assert [reloaded.config.id2label[i] for i in range(3)] == LABELS


SUM = [{"name": "dann", "weight": 0.5}, {"name": "cdan"}]


@pytest.mark.parametrize("alignment", ["dann", "cdan", "gvb", SUM, None])
def test_every_alignment_survives_a_round_trip(alignment, tmp_path):
    model = tiny(alignment)
    model.save_pretrained(tmp_path)
    loaded = AutoModelForImageClassification.from_pretrained(tmp_path)
    assert type(loaded) is MetaAlignForImageClassification
    assert loaded.config.alignment == model.config.alignment
    images, domains = torch.randn(6, 3, 32, 32), torch.tensor([0, 0, 0, 1, 1, 1])
    if alignment is None:
        assert model(images, domain_labels=domains).alignment_loss is None
        return
    losses = []
    for m in (model.eval(), loaded.eval()):
        losses.append(m(images, domain_labels=domains, progress=0.3).alignment_loss)
    assert torch.equal(*losses)


def test_logits_are_classifier_less_bridge():
    model = tiny("gvb").eval()
    output = model(torch.randn(2, 3, 32, 32))
    (bridge,) = model.alignment.classifier_bridges()
    by_hand = model.classifier(output.features) - bridge(output.features)
    torch.testing.assert_close(output.logits, by_hand)


def test_one_forward_gives_the_same_losses_as_the_split_passes():
    model = tiny("dann").eval()
    images, labels, domains = torch.randn(4, 3, 32, 32), torch.tensor([0, 1, -100, -100]), torch.tensor([0, 0, 1, 1])
    joint = model(images, labels, domains)
    task = model(images[:2], labels[:2], objective="task")
    alignment = model(images, domain_labels=domains, objective="alignment")
    torch.testing.assert_close(joint.task_loss, task.task_loss)
    torch.testing.assert_close(joint.alignment_loss, alignment.alignment_loss)
    torch.testing.assert_close(joint.loss, task.task_loss + alignment.alignment_loss)
    assert not task.logits.requires_grad and not alignment.features.requires_grad
    expected = torch.nn.functional.cross_entropy(task.logits, labels[:2])
    torch.testing.assert_close(task.task_loss, expected)


def test_a_batch_without_labels_has_task_loss_zero():
    model = tiny("dann").eval()
    output = model(torch.randn(2, 3, 32, 32), torch.full((2,), -100))
    assert output.task_loss.item() == 0.0


def test_parameter_roles_cover_every_parameter_once():
    model = tiny("gvb", bottleneck_dim=8)
    roles = model.parameter_roles()
    names = [name for named in roles.values() for name in named]
    assert sorted(names) == sorted(name for name, _ in model.named_parameters())
    assert all(name.startswith("backbone.") for name in roles["backbone"])
    assert {"classifier.weight", "classifier.bias", "bottleneck.0.weight"} <= set(roles["head"])
    (bridge,) = model.alignment.classifier_bridges()
    assert any(parameter is bridge.weight for parameter in roles["head"].values())
    assert roles["discriminator"] and not any("bridge" in n and n in roles["head"] for n in roles["discriminator"])


@pytest.mark.parametrize("kind", ["linear", "batch_norm"])
@pytest.mark.parametrize("name", ["native_resnet", "resnet18"])
def test_a_bottleneck_folds_into_the_native_classifier(kind, name, tmp_path):
    model, images = build(name, bottleneck_dim=8, bottleneck_kind=kind)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(3):  # running statistics, scales and offsets all move
        optimizer.zero_grad()
        model(images, torch.tensor([0, 2, -100, -100]), torch.tensor([0, 0, 1, 1])).loss.backward()
        optimizer.step()
    model.save_pretrained(tmp_path / "adapted")
    loaded = MetaAlignForImageClassification.from_pretrained(tmp_path / "adapted").eval()
    output = loaded(images)
    assert output.features.shape == (4, 8)
    assert torch.equal(output.logits, model.eval()(images).logits)
    unfolded = torch.nn.functional.linear(output.features, *loaded.effective_classifier())
    torch.testing.assert_close(output.logits, unfolded, rtol=1e-4, atol=1e-5)
    loaded.export_native().save_pretrained(tmp_path / "native")
    native = copy.deepcopy(AutoModelForImageClassification.from_pretrained(tmp_path / "native")).eval()
    assert torch.equal(native(images).logits, output.logits)


def test_a_bottleneck_with_a_relu_is_served_but_trained_and_exported_no_more(tmp_path):
    """As checkpoints have it that were made before there was a choice: their configuration does not name the kind."""
    config = tiny("dann", bottleneck_dim=8).config
    config.bottleneck_kind = None
    model = MetaAlignForImageClassification(config).eval()
    model.save_pretrained(tmp_path / "old")
    written = json.loads((tmp_path / "old" / "config.json").read_text())
    del written["bottleneck_kind"]
    (tmp_path / "old" / "config.json").write_text(json.dumps(written))
    loaded = MetaAlignForImageClassification.from_pretrained(tmp_path / "old").eval()
    images = torch.randn(2, 3, 32, 32)
    assert isinstance(loaded.bottleneck[2], torch.nn.ReLU)
    assert torch.equal(loaded(images).logits, model(images).logits)
    with pytest.raises(UserError, match=r"ReLU.*bottleneck_kind"):
        loaded.export_native()
    domains = ["--data.source", "uci_digits", "--data.target", "mnist"]
    with pytest.raises(UserError, match=r"could not be exported.*ReLU"):
        ClassificationTask(parse_config(domains), model=MetaAlignForImageClassification(as_digits(config)))


def as_digits(config):
    labels = [str(digit) for digit in range(10)]
    config.id2label, config.label2id = dict(enumerate(labels)), {label: i for i, label in enumerate(labels)}
    return config


def test_auto_classes_and_pipeline(tmp_path):
    model = tiny("gvb").eval()
    model.save_pretrained(tmp_path)
    size = {"height": 32, "width": 32}
    BitImageProcessor(size=size, crop_size=size, image_mean=[0.5] * 3, image_std=[0.5] * 3).save_pretrained(tmp_path)
    assert AutoConfig.from_pretrained(tmp_path).model_type == "metaalign"
    processor = AutoImageProcessor.from_pretrained(tmp_path)
    image = Image.new("RGB", (40, 50), (200, 30, 90))
    logits = model(processor(image, return_tensors="pt")["pixel_values"]).logits
    answer = pipeline("image-classification", model=str(tmp_path))(image, top_k=3)
    assert {entry["label"] for entry in answer} == set(LABELS)
    assert answer[0]["label"] == LABELS[logits.argmax().item()]
    assert answer[0]["score"] == pytest.approx(logits.softmax(1).max().item(), abs=1e-6)


def test_pretrained_weights_come_from_a_local_folder_or_file(tmp_path):
    timm_model, images = build("resnet18", None)
    native = timm_model.eval().export_native()
    native.save_pretrained(tmp_path / "timm")
    for pretrained in (str(tmp_path / "timm"), str(tmp_path / "timm" / "model.safetensors")):
        again = MetaAlignForImageClassification.from_backbone("resnet18", LABELS, "dann", pretrained=pretrained).eval()
        assert torch.equal(again(images).features, timm_model(images).features)

    vit, images = build("native_vit", None)
    vit.eval().export_native().save_pretrained(tmp_path / "vit")
    again = MetaAlignForImageClassification.from_backbone(str(tmp_path / "vit"), ["a", "b"], "dann").eval()
    again.save_pretrained(tmp_path / "again")
    assert str(tmp_path) not in (tmp_path / "again" / "config.json").read_text(), "folders of this machine are not told"
    assert torch.equal(again(images).features, vit(images).features)


def test_a_checkpoint_with_missing_tensors_is_refused(tmp_path):
    from safetensors.torch import load_file, save_file

    tiny().save_pretrained(tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    removed = next(key for key in state if key.startswith("backbone."))
    del state[removed]
    save_file(state, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"1 tensors are missing.*backbone"):
        MetaAlignForImageClassification.from_pretrained(tmp_path)


def test_a_checkpoint_of_a_newer_layout_is_refused(tmp_path):
    tiny().save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["format_version"] = 99
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match="layout version 99"):
        MetaAlignForImageClassification.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "resnet5O", "pretrained": False}, "resnet5O"),
        ({"name": "bert", "pretrained": False}, "no image classifier"),
        ({"name": "resnet"}, "model type without weights"),
        ({"name": {"model_type": "nothing"}, "pretrained": False}, "model_type"),
        ({"name": "resnet18", "pretrained": "/no/such/folder"}, "does not exist"),
        ({"name": "resnet18", "pretrained": "/no/such.safetensors"}, "does not exist"),
        ({"name": "resnet18", "pretrained": False, "no_such_option": 1}, "no_such_option"),
        ({"name": "resnet18", "pretrained": False, "alignment": "dan"}, "dann"),
        ({"name": "resnet18", "pretrained": False, "alignment": {"name": "dann", "hiden": 3}}, "hidden"),
        ({"name": "resnet18", "pretrained": False, "labels": ["one"]}, "labels"),
        ({"name": "levit_128s", "pretrained": False}, "levit_128s"),
    ],
)
def test_bad_input_is_told_in_one_line(arguments, message):
    arguments = {"labels": LABELS, **arguments}
    with pytest.raises(UserError, match=message) as caught:
        MetaAlignForImageClassification.from_backbone(**arguments)
    assert "\n" not in str(caught.value)
