"""Laws of the step: see each test's name. float64, so that equality means equality."""

import copy

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import nn

from metaalign_hf.alignment import reverse_gradient
from metaalign_hf.coordination import Joint, MetaAlign, frozen_running_statistics


def conv_net() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, 2), nn.Tanh(), nn.Conv2d(6, 8, 3, 2), nn.Tanh(), nn.Flatten(), nn.Linear(72, 8)
    )


def vit() -> nn.Module:
    return timm.create_model(
        "vit_tiny_patch16_224", img_size=16, patch_size=8, depth=2, embed_dim=12, num_heads=2, num_classes=8
    )


def resnet() -> nn.Module:
    return timm.create_model("resnet18", num_classes=8)


NETWORKS = {"conv": conv_net, "vit": vit, "resnet": resnet}


class Model(nn.Module):
    """A network with a class head and a domain head behind gradient reversal, as plain as can be."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.classifier = nn.Linear(8, 3)
        self.discriminator = nn.Sequential(nn.Linear(8, 5), nn.Tanh(), nn.Linear(5, 1))

    def task(self, images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return F.cross_entropy(self.classifier(self.network(images)), labels)

    def alignment(self, images: torch.Tensor, domains: torch.Tensor) -> torch.Tensor:
        logits = self.discriminator(reverse_gradient(self.network(images), 0.7)).squeeze(1)
        return F.binary_cross_entropy_with_logits(logits, domains)


@pytest.fixture(params=NETWORKS)
def setting(request):
    """A model, images, labels, domain labels: 4 source rows, then 4 target rows."""
    torch.manual_seed(0)
    model = Model(NETWORKS[request.param]()).double()
    images = torch.randn(8, 3, 16, 16, dtype=torch.double)
    labels = torch.tensor([0, 1, 2, 1])
    domains = torch.tensor([1.0] * 4 + [0.0] * 4, dtype=torch.double)
    return model, images, labels, domains


def closures(setting):
    model, images, labels, domains = setting
    return [lambda: model.task(images[:4], labels)], [lambda: model.alignment(images, domains)]


def sgd(model: nn.Module) -> torch.optim.SGD:
    heads = [*model.classifier.parameters(), *model.discriminator.parameters()]
    return torch.optim.SGD([{"params": list(model.network.parameters()), "lr": 0.02}, {"params": heads, "lr": 0.2}])


def gradients(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def assert_same(found, expected, **tolerance) -> None:
    assert found.keys() == expected.keys()
    for name in expected:
        torch.testing.assert_close(found[name], expected[name], msg=lambda m, name=name: f"{name}: {m}", **tolerance)


EXACT = {"rtol": 1e-10, "atol": 1e-12}


@pytest.mark.parametrize("first", ["task", "alignment"])
def test_law_1_inner_lr_0_is_the_joint_gradient(setting, first):
    model = setting[0]
    Joint(sgd(model)).backward(*closures(setting))
    expected = gradients(model)
    MetaAlign(sgd(model), inner_lr=0.0, first=first).backward(*closures(setting))
    assert_same(gradients(model), expected, **EXACT)


def test_the_split_joint_gradient_is_that_of_the_sum(setting):
    model, images, labels, domains = setting
    Joint(sgd(model)).backward(*closures(setting))
    found = gradients(model)
    model.zero_grad()
    (model.task(images[:4], labels) + model.alignment(images, domains)).backward()
    assert_same(found, gradients(model), **EXACT)


@pytest.mark.parametrize("first", ["task", "alignment"])
@pytest.mark.parametrize("coordinator", [Joint, MetaAlign])
def test_law_2_accumulation_is_the_large_batch(coordinator, first):
    torch.manual_seed(0)
    model = Model(conv_net()).double()  # no batch normalisation, whose statistics are of a micro-batch by nature
    images, labels = torch.randn(8, 3, 16, 16, dtype=torch.double), torch.tensor([0, 1, 2, 1])
    domains = torch.tensor([1.0, 0.0] * 4, dtype=torch.double)

    def make():
        return MetaAlign(sgd(model), 3.0, first=first) if coordinator is MetaAlign else Joint(sgd(model))

    make().backward([lambda: model.task(images[:4], labels)], [lambda: model.alignment(images, domains)])
    expected = gradients(model)
    make().backward(
        [lambda i=i: model.task(images[i : i + 2], labels[i : i + 2]) for i in (0, 2)],
        [lambda i=i: model.alignment(images[i : i + 2], domains[i : i + 2]) for i in (0, 2, 4, 6)],
    )
    assert_same(gradients(model), expected, **EXACT)


def first_order_by_hand(model, train, test, alpha) -> dict[str, torch.Tensor]:
    """g_train(theta) + g_test(theta - alpha g_train), written out on a copy of the model."""
    named = dict(model.named_parameters())
    g_train = dict(zip(named, torch.autograd.grad(train(model), named.values(), allow_unused=True), strict=True))
    moved = copy.deepcopy(model)
    with torch.no_grad():
        for name, p in moved.named_parameters():
            if g_train[name] is not None:
                p -= alpha[name] * g_train[name]
    named = dict(moved.named_parameters())
    g_test = dict(zip(named, torch.autograd.grad(test(moved), named.values(), allow_unused=True), strict=True))
    total = {}
    for name in named:
        present = [g for g in (g_train[name], g_test[name]) if g is not None]
        if present:
            total[name] = sum(present[1:], present[0])
    return total


@pytest.mark.parametrize("first", ["task", "alignment"])
@pytest.mark.parametrize("relative", [True, False])
def test_law_4_first_order_is_the_formula(setting, first, relative):
    model, images, labels, domains = setting
    if isinstance(model.network, timm.models.ResNet):
        model.network.eval()  # by hand the copy's statistics move once more; see the test of running statistics
    inner_lr = 5.0 if relative else 0.3
    alpha = {
        name: inner_lr * ((0.02 if name.startswith("network") else 0.2) if relative else 1.0)
        for name, _ in model.named_parameters()
    }
    losses = {"task": lambda m: m.task(images[:4], labels), "alignment": lambda m: m.alignment(images, domains)}
    second = "alignment" if first == "task" else "task"
    expected = first_order_by_hand(model, losses[first], losses[second], alpha)
    report = MetaAlign(sgd(model), inner_lr, relative, first).backward(*closures(setting))
    assert_same(gradients(model), expected, **EXACT)
    assert report.first == first
    assert report.displacement > 0


def test_the_inner_step_differs_from_the_joint_gradient(setting):
    model = setting[0]
    Joint(sgd(model)).backward(*closures(setting))
    joint = gradients(model)
    MetaAlign(sgd(model), 5.0).backward(*closures(setting))
    changed = [name for name, g in gradients(model).items() if not torch.allclose(g, joint[name], rtol=1e-6)]
    assert len(changed) > len(joint) / 2


@pytest.mark.parametrize("first", ["task", "alignment"])
def test_laws_5_and_6_parameters_are_restored_bit_by_bit(setting, first):
    model = setting[0].float()
    setting = (model, setting[1].float(), setting[2], setting[3].float())
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer = sgd(model)
    MetaAlign(optimizer, 50.0, first=first).backward(*closures(setting))
    for group in optimizer.param_groups:
        group["lr"] = 0.0
    optimizer.step()
    for name, p in model.named_parameters():
        assert torch.equal(p, before[name]), name


@pytest.mark.parametrize("first", ["task", "alignment"])
def test_parameters_are_restored_when_the_meta_test_closure_raises(setting, first):
    model = setting[0]
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    task, alignment = closures(setting)

    def broken():
        moved = [n for n, p in model.named_parameters() if not torch.equal(p, before[n])]
        assert moved, "the meta-test pass must run at theta'"
        raise RuntimeError("out of memory")

    task, alignment = (task, [broken]) if first == "task" else ([broken], alignment)
    with pytest.raises(RuntimeError, match="out of memory"):
        MetaAlign(sgd(model), 5.0, first=first).backward(task, alignment)
    for name, p in model.named_parameters():
        assert torch.equal(p, before[name]), name
        assert p.grad is None


def test_the_report_measures_both_gradients(setting):
    model, images, labels, domains = setting
    shared = list(model.network.parameters())
    g_task = torch.autograd.grad(model.task(images[:4], labels), shared)
    g_alignment = torch.autograd.grad(model.alignment(images, domains), shared)
    product = sum((a * b).sum() for a, b in zip(g_task, g_alignment, strict=True))
    norms = [torch.stack([g.norm() for g in gs]).norm() for gs in (g_task, g_alignment)]
    report = Joint(sgd(model)).backward(*closures(setting))
    torch.testing.assert_close(report.inner_product, product)
    torch.testing.assert_close(report.cosine, product / (norms[0] * norms[1]))
    torch.testing.assert_close(report.task_loss, model.task(images[:4], labels).detach())
    assert set(report.to_dict()) >= {"first", "task_loss", "alignment_loss", "cosine", "task_gradient_norm"}


def test_roles_swap_as_scheduled():
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    roles = [MetaAlign(optimizer, swap_every=k, first="task") for k in (0, 1, 2)]
    assert [[m.role(i)[0] for i in range(5)] for m in roles] == [list("ttttt"), list("tatat"), list("ttaat")]
    assert MetaAlign(optimizer, first="alignment").role(0) == "alignment"


def test_the_group_multiplier_scales_the_inner_step(setting):
    model = setting[0]
    optimizer = sgd(model)
    optimizer.param_groups[1]["inner_lr_multiplier"] = 0.1
    sizes = MetaAlign(optimizer, 2.0).inner_step_sizes()
    count = len(optimizer.param_groups[0]["params"])
    assert set(sizes[:count]) == {2.0 * 0.02} and sizes[-1] == pytest.approx(2.0 * 0.2 * 0.1)


def test_running_statistics_come_from_the_mixed_pass_alone():
    torch.manual_seed(0)
    model = Model(resnet()).double()
    images, labels = torch.randn(8, 3, 16, 16, dtype=torch.double), torch.tensor([0, 1, 2, 1])
    domains = torch.tensor([1.0] * 4 + [0.0] * 4, dtype=torch.double)
    reference = copy.deepcopy(model)
    reference.network(images)

    def task():
        with frozen_running_statistics(model):
            return model.task(images[:4], labels)

    MetaAlign(sgd(model), 0.0).backward([task], [lambda: model.alignment(images, domains)])
    for (name, found), (_, expected) in zip(model.named_buffers(), reference.named_buffers(), strict=True):
        torch.testing.assert_close(found, expected, msg=lambda m, name=name: f"{name}: {m}")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"inner_lr": -1.0}, "inner_lr"),
        ({"inner_lr": float("nan")}, "inner_lr"),
        ({"first": "classification"}, "task, alignment"),
        ({"swap_every": -1}, "swap_every"),
    ],
)
def test_wrong_settings_are_refused(arguments, message):
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    with pytest.raises(ValueError, match=message):
        MetaAlign(optimizer, **arguments)


def test_an_objective_without_closures_is_refused(setting):
    with pytest.raises(ValueError, match="closure"):
        MetaAlign(sgd(setting[0])).backward(closures(setting)[0], [])
