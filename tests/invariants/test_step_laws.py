# ruff: noqa: F811
"""Laws of the step: see each test's name. float64, so that equality means equality."""

import copy
from collections.abc import Callable

import pytest
import timm
import torch
from torch import nn

from metaalign_hf.coordination import Joint, MetaAlign, frozen_running_statistics
from tests.helpers.networks import Classifier, conv_net, resnet, vit
from tests.helpers.steps import EXACT, SLOW, assert_same, closures, double, gradients, setting, sgd  # noqa: F401


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
    model = Classifier(conv_net())  # no batch normalisation, whose statistics are of a micro-batch by nature
    images, labels = torch.randn(8, 3, 16, 16), torch.tensor([0, 1, 2, 1])
    domains = torch.tensor([1.0, 0.0] * 4)

    def make():
        return MetaAlign(sgd(model), 3.0, first=first) if coordinator is MetaAlign else Joint(sgd(model))

    make().backward([lambda: model.task(images[:4], labels)], [lambda: model.alignment(images, domains)])
    expected = gradients(model)
    make().backward(
        [lambda i=i: model.task(images[i : i + 2], labels[i : i + 2]) for i in (0, 2)],
        [lambda i=i: model.alignment(images[i : i + 2], domains[i : i + 2]) for i in (0, 2, 4, 6)],
    )
    assert_same(gradients(model), expected, **EXACT)


def by_autograd(model, train, test, alpha, order, between: Callable[[], None] = lambda: None):
    """The gradient of `L_train(theta) + L_test(theta - alpha g_train(theta))`, written out.

    Order 2 differentiates through the inner step, order 1 holds it constant. With gradient reversal the chain rule
    through g_train is what J^T means.
    """
    theta = dict(model.named_parameters())

    def call(loss, parameters):
        return torch.func.functional_call(Wrapped(model, loss), {f"model.{n}": p for n, p in parameters.items()}, ())

    train_loss = call(train, theta)
    g_train = torch.autograd.grad(train_loss, theta.values(), create_graph=order == 2, allow_unused=True)
    steps = dict(zip(theta, g_train, strict=True))
    between()
    if order == 2:
        moved = {n: p if steps[n] is None else p - alpha[n] * steps[n] for n, p in theta.items()}
        total = torch.autograd.grad(call(test, moved), theta.values(), allow_unused=True)
    else:
        moved = {n: p if steps[n] is None else (p - alpha[n] * steps[n]).detach() for n, p in theta.items()}
        moved = {n: p.requires_grad_() for n, p in moved.items()}
        total = torch.autograd.grad(call(test, moved), moved.values(), allow_unused=True)
    return {
        name: sum(g.detach() for g in (a, b) if g is not None)
        for name, a, b in zip(theta, g_train, total, strict=True)
        if a is not None or b is not None
    }


class Wrapped(nn.Module):
    """Makes a loss of a model a module, for functional_call."""

    def __init__(self, model: nn.Module, loss: Callable) -> None:
        super().__init__()
        self.model, self.loss = model, loss

    def forward(self) -> torch.Tensor:
        return self.loss(self.model)


@pytest.mark.parametrize("first", ["task", "alignment"])
@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize("relative", [True, False])
def test_law_4_the_gradient_is_that_of_the_formula(setting, first, order, relative):
    model, images, labels, domains = setting
    if isinstance(getattr(model, "backbone", None), timm.models.ResNet):
        model.backbone.eval()  # functional_call would move the running statistics; see the tests of those below
    inner_lr = 5.0 if relative else 0.3
    alpha = {
        name: inner_lr * ((0.02 if name.startswith(SLOW) else 0.2) if relative else 1.0)
        for name, _ in model.named_parameters()
    }
    losses = {"task": lambda m: m.task(images[:4], labels), "alignment": lambda m: m.alignment(images, domains)}
    second = "alignment" if first == "task" else "task"
    expected = by_autograd(model, losses[first], losses[second], alpha, order)
    report = MetaAlign(sgd(model), inner_lr, relative, first, order=order).backward(*closures(setting))
    assert_same(gradients(model), expected, rtol=1e-8, atol=1e-11)
    assert report.first == first
    assert report.displacement > 0


def test_the_second_order_is_what_finite_differences_say():
    """Without gradient reversal the meta objective is a scalar, whose slope can be measured."""
    torch.manual_seed(0)
    model = Classifier(conv_net())
    images, labels, others = torch.randn(8, 3, 16, 16), torch.tensor([0, 1, 2, 1]), torch.tensor([2, 2, 0, 1])
    alpha, epsilon = 0.3, 1e-5
    direction = [torch.randn_like(p) for p in model.parameters()]

    def meta_objective() -> float:
        parameters = dict(model.named_parameters())
        train = model.task(images[:4], labels)
        steps = torch.autograd.grad(train, parameters.values(), allow_unused=True)
        moved = {
            f"model.{name}": p if g is None else p - alpha * g
            for (name, p), g in zip(parameters.items(), steps, strict=True)
        }
        test = torch.func.functional_call(Wrapped(model, lambda m: m.task(images[4:], others)), moved, ())
        return float((train + test).detach())

    meta = MetaAlign(sgd(model), alpha, relative=False, order=2)
    meta.backward([lambda: model.task(images[:4], labels)], [lambda: model.task(images[4:], others)])
    slope = sum(
        float((p.grad * d).sum()) for p, d in zip(model.parameters(), direction, strict=True) if p.grad is not None
    )
    values = []
    for sign in (1, -1):
        with torch.no_grad():
            torch._foreach_add_(list(model.parameters()), direction, alpha=sign * epsilon)
        values.append(meta_objective())
        with torch.no_grad():
            torch._foreach_add_(list(model.parameters()), direction, alpha=-sign * epsilon)
    assert slope == pytest.approx((values[0] - values[1]) / (2 * epsilon), rel=1e-6)


@pytest.mark.parametrize("micro_batches", [1, 2])
def test_the_second_order_repeats_dropout_and_leaves_the_random_numbers_where_two_passes_leave_them(micro_batches):
    torch.manual_seed(0)
    model = Classifier(nn.Sequential(conv_net(), nn.Dropout(0.5)))
    images, labels, domains = torch.randn(8, 3, 16, 16), torch.tensor([0, 1, 2, 1]), torch.tensor([1.0, 0.0] * 4)
    alpha = {name: 0.3 for name, _ in model.named_parameters()}
    torch.manual_seed(7)
    expected = by_autograd(
        model,
        lambda m: sum(m.task(images[:4], labels) for _ in range(micro_batches)) / micro_batches,
        lambda m: m.alignment(images, domains),
        alpha,
        order=2,
    )
    after = torch.rand(1)
    torch.manual_seed(7)
    setting = (model, images, labels, domains)
    task, alignment = closures(setting)
    MetaAlign(sgd(model), 0.3, relative=False, order=2).backward(task * micro_batches, alignment)
    assert_same(gradients(model), expected, rtol=1e-8, atol=1e-11)
    assert torch.equal(torch.rand(1), after)


def test_a_kernel_without_double_backward_is_named_before_training():
    model = Classifier(vit())
    for block in model.backbone.blocks:
        block.attn.fused_attn = True
    setting = (model, torch.randn(8, 3, 16, 16), torch.tensor([0, 1, 2, 1]), torch.tensor([1.0, 0.0] * 4))
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    with pytest.raises(RuntimeError, match="eager"):
        MetaAlign(sgd(model), order=2).probe(*closures(setting))
    assert all(torch.equal(p, before[name]) and p.grad is None for name, p in model.named_parameters())
    for block in model.backbone.blocks:
        block.attn.fused_attn = False
    MetaAlign(sgd(model), order=2).probe(*closures(setting))


def test_the_inner_step_differs_from_the_joint_gradient(setting):
    model = setting[0]
    Joint(sgd(model)).backward(*closures(setting))
    joint = gradients(model)
    MetaAlign(sgd(model), 5.0).backward(*closures(setting))
    shared = {name: g for name, g in gradients(model).items() if "backbone" in name}
    changed = [name for name, g in shared.items() if not torch.allclose(g, joint[name], rtol=1e-6, atol=0)]
    assert len(changed) > len(shared) / 2


@pytest.mark.parametrize("first", ["task", "alignment"])
def test_laws_5_and_6_parameters_are_restored_bit_by_bit(setting, first):
    model = setting[0]
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
    everything = list(model.parameters())
    g_task = torch.autograd.grad(model.task(images[:4], labels), everything, allow_unused=True)
    g_alignment = torch.autograd.grad(model.alignment(images, domains), everything, allow_unused=True)
    pairs = [(a, b) for a, b in zip(g_task, g_alignment, strict=True) if a is not None and b is not None]
    product = sum((a * b).sum() for a, b in pairs)
    norms = [torch.stack([pair[i].norm() for pair in pairs]).norm() for i in (0, 1)]
    report = Joint(sgd(model)).backward(*closures(setting))
    torch.testing.assert_close(report.inner_product, product)
    torch.testing.assert_close(report.cosine, product / (norms[0] * norms[1]))
    assert {"first", "task_loss", "alignment_loss", "cosine", "task_gradient_norm"} <= set(report.to_dict())


def test_roles_swap_as_scheduled():
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    roles = [MetaAlign(optimizer, roles="task"), MetaAlign(optimizer), MetaAlign(optimizer, swap_every=2)]
    assert [[m.role(i)[0] for i in range(5)] for m in roles] == [list("ttttt"), list("tatat"), list("ttaat")]
    assert MetaAlign(optimizer, first="alignment").role(0) == "alignment"


def test_the_group_multiplier_scales_the_inner_step(setting):
    model = setting[0]
    optimizer = sgd(model)
    optimizer.param_groups[1]["inner_lr_multiplier"] = 0.1
    every = [torch.ones_like(p) for group in optimizer.param_groups for p in group["params"]]
    sizes = MetaAlign(optimizer, 2.0).inner_step_sizes(every)
    count = len(optimizer.param_groups[0]["params"])
    assert set(sizes[:count]) == {2.0 * 0.02} and sizes[-1] == pytest.approx(2.0 * 0.2 * 0.1)


def test_running_statistics_come_from_the_mixed_pass_alone():
    torch.manual_seed(0)
    model = Classifier(resnet())
    images, labels = torch.randn(8, 3, 16, 16), torch.tensor([0, 1, 2, 1])
    domains = torch.tensor([1.0] * 4 + [0.0] * 4)
    reference = copy.deepcopy(model)
    reference.backbone(images)

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
        ({"swap_every": 0}, "swap_every"),
    ],
)
def test_wrong_settings_are_refused(arguments, message):
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    with pytest.raises(ValueError, match=message):
        MetaAlign(optimizer, **arguments)


def test_an_objective_without_closures_is_refused(setting):
    with pytest.raises(ValueError, match="closure"):
        MetaAlign(sgd(setting[0])).backward(closures(setting)[0], [])
