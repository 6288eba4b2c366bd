"""Detectors of every family with a frozen backbone: what stays, and what trains."""

import pytest
import torch

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
