"""A small model in float64 with the two losses of a step, and how gradients are compared."""

import pytest
import torch
from torch import nn

from tests.helpers.networks import DETECTORS, NETWORKS, Classifier


@pytest.fixture(autouse=True)
def double():
    torch.set_default_dtype(torch.double)
    yield
    torch.set_default_dtype(torch.float)


@pytest.fixture(params=[*NETWORKS, *DETECTORS])
def setting(request):
    """A model, images, labels, domain labels: 4 source rows, then 4 target rows."""
    torch.manual_seed(0)
    domains = torch.tensor([1.0] * 4 + [0.0] * 4)
    if request.param in NETWORKS:
        return Classifier(NETWORKS[request.param]()), torch.randn(8, 3, 16, 16), torch.tensor([0, 1, 2, 1]), domains
    boxes = torch.tensor([[0.5, 0.4, 0.3, 0.2], [0.3, 0.6, 0.2, 0.4]])
    labels = [{"class_labels": torch.tensor([i % 3, 1]), "boxes": boxes.roll(i, 0)} for i in range(4)]
    return DETECTORS[request.param]().eval(), torch.randn(8, 3, 64, 64), labels, domains


def closures(setting):
    model, images, labels, domains = setting
    return [lambda: model.task(images[:4], labels)], [lambda: model.alignment(images, domains)]


def sgd(model: nn.Module) -> torch.optim.SGD:
    slow = [p for name, p in model.named_parameters() if name.startswith(SLOW)]
    heads = [p for name, p in model.named_parameters() if not name.startswith(SLOW)]
    return torch.optim.SGD([{"params": slow, "lr": 0.02}, {"params": heads, "lr": 0.2}])


SLOW = ("backbone", "detector")


def gradients(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def assert_same(found, expected, **tolerance) -> None:
    for name in {*found, *expected}:
        # A parameter without a gradient is one with gradient zero.
        zero = torch.zeros_like(expected.get(name, found.get(name)))
        left, right = found.get(name, zero), expected.get(name, zero)
        torch.testing.assert_close(left, right, msg=lambda m, name=name: f"{name}: {m}", **tolerance)


EXACT = {"rtol": 1e-10, "atol": 1e-12}
