"""Group weights, scopes, shared prefixes, gradient scaling and what else a step can be asked for."""

import copy

import pytest
import timm
import torch
from torch import nn
from transformers import (
    AutoModel,
    ConvNextConfig,
    Dinov2Config,
    ResNetConfig,
    SwinConfig,
    ViTConfig,
)

from metaalign_hf.coordination import Joint, MetaAlign, SharedPrefix, Stage, find_stages
from metaalign_hf.models.detectors.stages import detector_stages
from tests.helpers.networks import DETECTORS, NETWORKS, Classifier, conv_net, resnet, vit
from tests.helpers.steps import EXACT, assert_same, closures, gradients, sgd


@pytest.fixture(autouse=True)
def double():
    torch.set_default_dtype(torch.double)
    yield
    torch.set_default_dtype(torch.float)


def make(name: str = "conv") -> tuple[Classifier, torch.Tensor, torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    model = Classifier(NETWORKS[name]())
    if name == "resnet":
        model.eval()
    return model, torch.randn(8, 3, 16, 16), torch.tensor([0, 1, 2, 1]), torch.tensor([1.0] * 4 + [0.0] * 4)


def last_entry(model: nn.Module) -> nn.Module:
    return [stage for stage in find_stages(model) if stage.entry is not None][-1].entry


# Group weights


def test_a_group_weight_follows_the_slope_of_the_meta_test_loss():
    """The reported inner products are the derivative of L_test(theta') with respect to the weights, by autograd."""
    setting = model, images, labels, domains = make("resnet")
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    meta = MetaAlign(optimizer, 0.3, relative=False, groups="stage", weight_lr=0.5, module=model)
    names = meta.group_names
    assert names == ["stem", "stage1", "stage2", "stage3", "stage4", "head"]
    logits = torch.linspace(-0.5, 0.5, len(names))
    meta.group_weights.logits = logits.clone()
    group_of = {name: stage.name for stage in find_stages(model) for name in stage.parameters}

    free = logits.clone().requires_grad_()
    weights = len(names) * free.softmax(0)
    parameters = dict(model.named_parameters())
    steps = torch.autograd.grad(model.task(images[:4], labels), parameters.values(), allow_unused=True)
    moved = {
        name: p.detach() if g is None else p.detach() - 0.3 * weights[names.index(group_of[name])] * g
        for (name, p), g in zip(parameters.items(), steps, strict=True)
    }
    loss = torch.func.functional_call(model, moved, (images, domains, "alignment"))
    (slope,) = torch.autograd.grad(loss, free)

    report = meta.backward(*closures(setting))
    torch.testing.assert_close(report.alignment_loss, loss.detach())
    torch.testing.assert_close(report.group_weights, weights.detach())
    assert report.group_weights.mean().item() == pytest.approx(1.0)
    torch.testing.assert_close(meta.group_weights.logits, logits - 0.5 * slope)
    assert {f"cosine/{name}" for name in names} <= set(report.to_dict())
    torch.testing.assert_close(report.group_inner_products.sum(), report.inner_product)


def test_group_weights_are_saved_and_restored():
    setting = make("resnet")
    meta = MetaAlign(sgd(setting[0]), 5.0, groups="stage", module=setting[0], weight_lr=10.0)
    for _ in range(3):
        meta.backward(*closures(setting))
    state = meta.state_dict()
    again = MetaAlign(sgd(setting[0]), 5.0, groups="stage", module=setting[0], weight_lr=10.0)
    again.load_state_dict(state)
    expected, found = meta.backward(*closures(setting)), again.backward(*closures(setting))
    assert found.first == expected.first == "alignment"
    assert torch.equal(found.group_weights, expected.group_weights)
    assert not torch.allclose(found.group_weights, torch.ones(6))
    with pytest.raises(ValueError, match="other groups|are of the groups"):
        MetaAlign(sgd(setting[0]), groups=str.upper, module=setting[0]).load_state_dict(state)


def test_groups_by_function_and_by_list_scale_the_inner_step():
    model, *_ = setting = make()
    parts = {"b": [p for n, p in model.named_parameters() if n.startswith("backbone")]}
    parts["h"] = [p for n, p in model.named_parameters() if not n.startswith("backbone")]
    by_list = MetaAlign(sgd(model), 5.0, groups=list(parts.values()))
    by_name = MetaAlign(sgd(model), 5.0, groups=lambda name: name[0] if name.startswith("b") else "h", module=model)
    found = []
    for meta in (by_list, by_name):
        meta.group_weights.logits = torch.tensor([1.0, -1.0])
        meta.backward(*closures(setting))
        found.append(gradients(model))
    assert_same(found[0], found[1], **EXACT)
    MetaAlign(sgd(model), 5.0).backward(*closures(setting))
    assert not torch.allclose(found[0]["backbone.0.weight"], gradients(model)["backbone.0.weight"], rtol=1e-6)


# Inner steps that scale themselves


@pytest.mark.parametrize("factor", [1.0, 1000.0])
def test_a_trust_ratio_moves_every_tensor_by_a_share_of_its_length(factor):
    """Whatever the scale of the loss or the learning rate."""
    model, images, labels, domains = make()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    shares = {}

    def watch():
        for name, p in model.named_parameters():
            shares[name] = float(((p - before[name]).norm() / before[name].norm()).detach())
        return model.alignment(images, domains)

    meta = MetaAlign(sgd(model), 0.02, rule="trust_ratio")
    meta.backward([lambda: factor * model.task(images[:4], labels)], [watch])
    moved = {name: share for name, share in shares.items() if share > 0}
    assert list(moved.values()) == pytest.approx([0.02] * len(moved))
    assert set(moved) == {name for name in before if not name.startswith("discriminator")}


@pytest.mark.parametrize("factor", [1.0, 1000.0])
def test_a_normalised_step_has_the_length_that_was_asked_for(factor):
    model, images, labels, domains = make()
    meta = MetaAlign(sgd(model), 0.3, rule="normalised")
    report = meta.backward(
        [lambda: factor * model.task(images[:4], labels)], [lambda: model.alignment(images, domains)]
    )
    assert float(report.displacement) == pytest.approx(0.3)


# Scopes and shared prefixes


def test_only_the_scope_takes_the_inner_step():
    model, images, labels, domains = make("resnet")
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    for scope, prefixes in {
        "last_stage": ("backbone.layer4", "backbone.fc", "classifier"),
        "head": ("classifier",),
        (lambda name, p: "layer2" in name): ("backbone.layer2",),
    }.items():
        moved = set()

        def watch(moved=moved):
            moved |= {n for n, p in model.named_parameters() if not torch.equal(p, before[n])}
            return model.alignment(images, domains)

        MetaAlign(sgd(model), 5.0, scope=scope, module=model).backward(
            [lambda: model.task(images[:4], labels)], [watch]
        )
        assert moved and all(name.startswith(prefixes) for name in moved), scope


@pytest.mark.parametrize("first", ["task", "alignment"])
@pytest.mark.parametrize("name", NETWORKS)
def test_a_shared_prefix_changes_the_cost_and_not_the_gradient(name, first):
    model, images, labels, domains = setting = make(name)
    full = MetaAlign(sgd(model), 5.0, first=first, scope="last_stage", module=model)
    full.backward(*closures(setting))
    expected = gradients(model)
    entry = last_entry(model)
    calls = []
    inner = next(iter(model.backbone.children()))
    handle = inner.register_forward_hook(lambda *_: calls.append(inner.forward.__name__))
    prefixes = [SharedPrefix(model, entry) for _ in range(2)]  # two micro-batches of two source and two target rows

    def task(prefix, rows):
        def run():
            with prefix.run(slice(2)):
                return model.task(images[[*rows, *(r + 4 for r in rows)]], labels[rows])

        return run

    def alignment(prefix, rows):
        def run():
            both = [*rows, *(r + 4 for r in rows)]
            with prefix.run():
                return model.alignment(images[both], domains[both])

        return run

    rows = [[0, 1], [2, 3]]
    meta = MetaAlign(sgd(model), 5.0, first=first, scope="last_stage", module=model)
    report = meta.backward(
        [task(p, r) for p, r in zip(prefixes, rows, strict=True)],
        [alignment(p, r) for p, r in zip(prefixes, rows, strict=True)],
        shared=prefixes,
    )
    handle.remove()
    assert_same(gradients(model), expected, rtol=1e-8, atol=1e-11)
    assert report.displacement > 0
    assert calls.count("answer") == 2 and len(calls) == 4, "each micro-batch computes the prefix once"


def test_a_way_around_the_shared_prefix_is_found():
    class Skips(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer1, self.layer2 = nn.Linear(8, 8), nn.Linear(8, 8)

        def forward(self, x):
            x = self.layer1(x)
            return x + self.layer2(x)

    torch.manual_seed(0)
    model = Classifier(Skips())
    prefix = SharedPrefix(model, model.backbone.layer2)
    x, labels, domains = torch.randn(8, 8), torch.tensor([0, 1, 2, 1]), torch.tensor([1.0] * 4 + [0.0] * 4)

    def task():
        with prefix.run():
            return model.task(x, torch.cat([labels, labels]))

    def alignment():
        with prefix.run():
            return model.alignment(x, domains)

    with pytest.raises(RuntimeError, match="another way"):
        MetaAlign(sgd(model), scope="last_stage", module=model).backward([task], [alignment], shared=[prefix])
    assert all(p.grad is None for p in model.parameters())


def test_running_statistics_with_a_shared_prefix_move_once_a_step():
    model, images, labels, domains = make("resnet")
    model.train()
    reference = copy.deepcopy(model)
    reference.backbone(images)
    prefix = SharedPrefix(model, last_entry(model))

    def task():
        with prefix.run(slice(4), freeze_statistics=True):
            return model.task(images, labels)

    def alignment():
        with prefix.run():
            return model.alignment(images, domains)

    meta = MetaAlign(sgd(model), 0.0, scope="last_stage", module=model)
    meta.backward([task], [alignment], shared=[prefix])
    for (name, found), (_, expected) in zip(model.named_buffers(), reference.named_buffers(), strict=True):
        torch.testing.assert_close(found, expected, msg=lambda m, name=name: f"{name}: {m}")


# Scaled gradients, bad gradients


def scaled(setting, scale: float, **options):
    torch.set_default_dtype(torch.float)
    model, images, labels, domains = setting
    setting = model.float(), images.float(), labels, domains.float()
    scaler = torch.amp.GradScaler("cpu", init_scale=scale)
    optimizer = sgd(model)
    return setting, scaler, optimizer, MetaAlign(optimizer, 5.0, scaler=scaler, module=model, **options)


@pytest.mark.parametrize("options", [{"order": 1}, {"order": 2}, {"smoothing": 0.7}])
def test_a_scaled_step_is_the_unscaled_one(options):
    setting, _, _, meta = scaled(make(), 1024.0, groups=lambda name: name.split(".")[0], **options)
    expected_report = MetaAlign(sgd(setting[0]), 5.0, **options).backward(*closures(setting))
    expected = gradients(setting[0])
    report = meta.backward(*closures(setting))
    found = {name: g / 1024 for name, g in gradients(setting[0]).items()}
    assert_same(found, expected, rtol=1e-4, atol=1e-6)
    for name in ("cosine", "inner_product", "task_gradient_norm", "displacement"):
        torch.testing.assert_close(getattr(report, name), getattr(expected_report, name), rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("broken", ["task", "alignment"])
def test_an_overflow_skips_the_whole_step_and_restores_the_parameters(broken):
    setting, scaler, optimizer, meta = scaled(make(), 1024.0)
    model = setting[0]
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    task, alignment = closures(setting)
    spoil = lambda loss: lambda: loss() * 3e38  # noqa: E731
    task, alignment = ([spoil(task[0])], alignment) if broken == "task" else (task, [spoil(alignment[0])])
    report = meta.backward(task, alignment)
    scaler.step(optimizer)
    scaler.update()
    assert report.skipped and scaler.get_scale() == 512.0
    for name, p in model.named_parameters():
        assert torch.equal(p, before[name]), name


@pytest.mark.parametrize("coordinator", [Joint, MetaAlign])
@pytest.mark.parametrize("broken", ["task", "alignment"])
def test_a_gradient_that_is_not_finite_names_its_objective(coordinator, broken):
    setting = make()
    model = setting[0]
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    task, alignment = closures(setting)
    spoil = lambda loss: lambda: loss() * float("nan")  # noqa: E731
    task, alignment = ([spoil(task[0])], alignment) if broken == "task" else (task, [spoil(alignment[0])])
    with pytest.raises(FloatingPointError, match=f"gradient of the {broken} objective is nan"):
        coordinator(sgd(model)).backward(task, alignment)
    assert all(torch.equal(p, before[name]) and p.grad is None for name, p in model.named_parameters())


# Compiled and checkpointed models


def test_gradient_checkpointing_changes_nothing():
    model, *_ = setting = make("vit")
    MetaAlign(sgd(model), 5.0).backward(*closures(setting))
    expected = gradients(model)
    model.backbone.set_grad_checkpointing()
    MetaAlign(sgd(model), 5.0).backward(*closures(setting))
    assert_same(gradients(model), expected, **EXACT)


@pytest.mark.slow
def test_a_compiled_model_takes_the_same_step():
    model, images, labels, domains = make()
    MetaAlign(sgd(model), 5.0, module=model).backward(*closures((model, images, labels, domains)))
    expected = gradients(model)
    compiled = torch.compile(model)
    MetaAlign(sgd(model), 5.0, module=compiled).backward(
        [lambda: compiled(images[:4], labels, "task")], [lambda: compiled(images, domains, "alignment")]
    )
    assert_same(gradients(model), expected, rtol=1e-8, atol=1e-11)


# Stages


def native(config) -> nn.Module:
    return AutoModel.from_config(config)


STAGED = {
    "timm_resnet": (resnet, "layer4"),
    "timm_vit": (vit, "blocks.3"),
    "timm_convnext": (lambda: timm.create_model("convnext_atto", num_classes=0), "stages.3"),
    "timm_swin": (lambda: timm.create_model("swin_tiny_patch4_window7_224", depths=(1, 1, 1, 1)), "layers.3"),
    "timm_efficientnet": (lambda: timm.create_model("efficientnet_lite0", num_classes=0), "blocks.6"),
    "resnet": (lambda: native(ResNetConfig(hidden_sizes=[8, 8, 8, 8], embedding_size=8)), "encoder.stages.3"),
    "convnext": (lambda: native(ConvNextConfig(hidden_sizes=[8] * 4, depths=[1] * 4)), "encoder.stages.3"),
    "swin": (lambda: native(SwinConfig(embed_dim=12, depths=[1] * 4, num_heads=[2] * 4)), "encoder.layers.3"),
    "vit": (lambda: native(ViTConfig(hidden_size=12, num_attention_heads=2, intermediate_size=8)), "9"),
    "dinov2": (lambda: native(Dinov2Config(hidden_size=12, num_attention_heads=2)), "9"),
}


@pytest.mark.parametrize("name", STAGED)
def test_stages_are_found(name):
    build, entry = STAGED[name]
    model = Classifier(build())
    stages = find_stages(model)
    assert [stage.name for stage in stages] == ["stem", "stage1", "stage2", "stage3", "stage4", "head"]
    names = [name for stage in stages for name in stage.parameters]
    assert sorted(names) == sorted(name for name, _ in model.named_parameters())
    path = next(path for path, module in model.named_modules() if module is stages[-2].entry)
    assert path.endswith(entry)


@pytest.mark.parametrize("name", DETECTORS)
def test_the_parts_of_a_detector_are_its_stages(name):
    model = DETECTORS[name]()
    stages = detector_stages(model)
    assert [stage.name for stage in stages] == ["backbone", "encoder", "decoder", "head"]
    names = [name for stage in stages for name in stage.parameters]
    assert sorted(names) == sorted(name for name, _ in model.named_parameters())


def test_a_model_may_name_its_own_stages():
    class Named(nn.Sequential):
        def parameter_stages(self) -> list[Stage]:
            return [Stage("early", ["0.weight"]), Stage("late", ["1.weight"])]

    model = Named(nn.Linear(2, 3, bias=False), nn.Linear(3, 1, bias=False))
    joint = Joint(sgd(model), groups="stage", module=model)
    x = torch.randn(4, 2)
    report = joint.backward([lambda: model(x).mean()], [lambda: model(x).pow(2).mean()])
    assert {"cosine/early", "cosine/late"} <= set(report.to_dict())
    assert [stage.name for stage in find_stages(model)] == ["early", "late"]


def test_a_network_without_stages_is_refused():
    with pytest.raises(ValueError, match="no stages"):
        find_stages(nn.Bilinear(2, 2, 2))


# Smoothing of the task (SDAT)


@pytest.mark.parametrize("first", ["task", "alignment"])
@pytest.mark.parametrize("kind", [Joint, MetaAlign])
def test_a_smoothed_step_is_the_formula(kind, first):
    """g_task at base + rho g / |g|, where the base is theta or, as meta-test, theta'; alignment as it is."""
    setting = model, images, labels, domains = make()
    parameters = list(model.parameters())
    rho, alpha = 0.7, 0.3

    def task(point: list[torch.Tensor]) -> list[torch.Tensor]:
        climbed = shifted(point, gradient(point, "task"), rho)
        return gradient(climbed, "task")

    def gradient(point: list[torch.Tensor], objective: str) -> list[torch.Tensor]:
        point = [p.detach().requires_grad_() for p in point]
        moved = dict(zip(dict(model.named_parameters()), point, strict=True))
        given = (images[:4], labels, "task") if objective == "task" else (images, domains, "alignment")
        loss = torch.func.functional_call(model, moved, given)
        return torch.autograd.grad(loss, point, materialize_grads=True, allow_unused=True)

    def shifted(point, direction, length):
        size = torch.stack([d.square().sum() for d in direction]).sum().sqrt()
        return [p + length * d / size for p, d in zip(point, direction, strict=True)]

    before = [p.detach().clone() for p in parameters]
    if kind is Joint:
        expected = [a + b for a, b in zip(task(before), gradient(before, "alignment"), strict=True)]
        coordinator = Joint(sgd(model), smoothing=rho)
    else:
        coordinator = MetaAlign(sgd(model), alpha, False, first, smoothing=rho)
        train = task(before) if first == "task" else gradient(before, "alignment")
        inner = [p - alpha * g for p, g in zip(before, train, strict=True)]
        test = gradient(inner, "alignment") if first == "task" else task(inner)
        expected = [a + b for a, b in zip(train, test, strict=True)]
    coordinator.backward(*closures(setting))
    for p, wanted, old in zip(parameters, expected, before, strict=True):
        torch.testing.assert_close(p.grad, wanted, **EXACT)
        assert torch.equal(p, old), "restored to the bit"


def test_smoothing_climbs_along_the_gradient_of_the_whole_accumulated_batch():
    setting = model, images, labels, _ = make()
    task, alignment = closures(setting)
    MetaAlign(sgd(model), 0.3, False, smoothing=0.7).backward(task, alignment)
    whole = gradients(model)
    parts = [lambda i=i: model.task(images[i : i + 2], labels[i : i + 2]) for i in (0, 2)]
    MetaAlign(sgd(model), 0.3, False, smoothing=0.7).backward(parts, alignment)
    assert_same(gradients(model), whole, **EXACT)


def test_a_smoothed_step_moves_running_statistics_once():
    setting = model, *_ = make("resnet")
    model.train()
    plain = copy.deepcopy(model)
    plain_setting = (plain, *setting[1:])
    Joint(sgd(plain), module=plain).backward(*closures(plain_setting))
    Joint(sgd(model), module=model, smoothing=0.7).backward(*closures(setting))
    for name, value in plain.named_buffers():
        if name.endswith("num_batches_tracked"):
            assert torch.equal(dict(model.named_buffers())[name], value), name


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"order": 3}, "order is 3.*1 or 2"),
        ({"scope": "neck"}, "all, last_stage, head"),
        ({"groups": "layer"}, "none, stage"),
        ({"roles": "random"}, "alternate, task, alignment"),
        ({"weight_lr": float("inf")}, "weight_lr"),
        ({"smoothing": -0.1}, "smoothing"),
        ({"smoothing": 0.1, "order": 2}, "order is 2.*smoothing"),
        ({"rule": "adaptive"}, "fixed, trust_ratio, normalised"),
        ({"scope": "head", "module": None}, "module="),
        ({"groups": "stage", "module": None}, "module="),
        ({"scope": lambda name, p: False}, "no parameter"),
    ],
)
def test_wrong_names_list_the_valid_ones(arguments, message):
    model = Classifier(conv_net())
    with pytest.raises(ValueError, match=message):
        MetaAlign(sgd(model), **{"module": model, **arguments})
