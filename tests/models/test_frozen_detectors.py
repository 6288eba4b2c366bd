"""Detectors of every family with a frozen backbone: what stays, and what trains."""

import copy

import pytest
import torch
from transformers import DINOv3ViTConfig

from metaalign_hf import UserError
from tests.helpers.tiny_detectors import detector_settings, tiny_detector

FAMILIES = [family for family in detector_settings() if family != "yolos"]
BOXES = torch.tensor([[0.5, 0.5, 0.2, 0.3]])
LABELS = [{"class_labels": torch.tensor([0]), "boxes": BOXES}, {"class_labels": torch.tensor([1]), "boxes": BOXES}]


@pytest.mark.parametrize("family", FAMILIES)
def test_nothing_of_the_backbone_trains_or_moves(family):
    torch.manual_seed(0)
    model = tiny_detector(family, ["backbone_pixel", "encoder", "query"])
    model.freeze()
    model.train()
    assert not any(module.training for module in model.backbone.modules()) and model.alignment.training
    inside = f"detector.{model.adapter.frozen_name(model.detector)}."
    before = {name: value.clone() for name, value in model.state_dict().items() if name.startswith(inside)}
    domains = torch.tensor([0, 0, 1, 1])
    model(torch.randn(4, 3, 64, 64), labels=[*LABELS, None, None], domain_labels=domains).loss.backward()
    reached = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert reached and not any(name.startswith(inside) for name in reached)
    assert model.parameter_roles()["backbone"] == {} and before
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in before.items())


def test_yolos_has_no_backbone_apart():
    with pytest.raises(UserError, match="yolos has no backbone apart"):
        tiny_detector("yolos").freeze()


@pytest.mark.parametrize("family", FAMILIES)
def test_a_pass_on_outputs_of_the_backbone_is_the_pass_on_images(family):
    """Bit for bit: losses, gradients and moved statistics."""
    torch.manual_seed(0)
    model = tiny_detector(family, ["backbone_pixel", "encoder", "query"])
    model.freeze()
    assert model.train().leave_out_backbone((64, 64)) is None and model.training
    images, domains = torch.randn(4, 3, 64, 64), torch.tensor([0, 0, 1, 1])
    start = {name: value.clone() for name, value in model.state_dict().items()}
    with torch.no_grad():
        rows = model.frozen_outputs(images)
        assert rows.ndim == 2 and torch.equal(model.frozen_outputs(images[:1]), rows[:1]), "an image alone"

    def taken(inputs) -> dict[str, torch.Tensor]:
        model.load_state_dict(start)
        model.zero_grad()
        torch.manual_seed(1)
        output = model(inputs, labels=[*LABELS, None, None], domain_labels=domains)
        output.loss.backward()
        gradients = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
        moved = {f"after {name}": value.clone() for name, value in model.state_dict().items()}
        return {"logits": output.logits, "loss": output.loss, **moved, **gradients}

    expected, found = taken(images), taken(rows)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in found)


def test_a_copy_of_the_model_takes_outputs_of_the_backbone_as_well():
    """As the average of the weights is one."""
    model = tiny_detector("detr_convnext").eval()
    model.freeze()
    assert model.leave_out_backbone((64, 64)) is None
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        expected, rows = model(images), model.frozen_outputs(images)
        model.backbone.requires_grad_(False).apply(lambda module: [p.zero_() for p in module.parameters()])
        found, other = copy.deepcopy(model)(rows), model(rows.flip(0))
    assert torch.equal(found.logits, expected.logits) and not torch.equal(other.logits, expected.logits)


def test_where_other_parts_look_at_the_image_the_backbone_cannot_be_left_out():
    """DEIMv2 on DINOv3 has a branch of its own that begins with the pixels."""
    vit = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 64}
    backbone = DINOv3ViTConfig(**vit, patch_size=16, image_size=64, out_indices=[1, 2, 3], apply_layernorm=False)
    model = tiny_detector("deimv2", backbone_config=backbone, spatial_tuning_adapter_inplanes=8)
    model.freeze()
    assert model.leave_out_backbone((64, 64)) == "other parts of the detector look at the image as well"
