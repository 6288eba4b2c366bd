# ruff: noqa: F811
"""Laws of the steps from memory and of the game's steps. float64, so that equality means equality."""

import copy
import json

import pytest
import torch
from torch import nn

from metaalign_hf.coordination import DoublyPerturbed, Game, Joint, MetaAlign, RememberedMetaAlign
from metaalign_hf.coordination.last_update import preconditioned
from tests.helpers.networks import Classifier, conv_net
from tests.helpers.steps import EXACT, assert_same, double, gradients, setting, sgd  # noqa: F401

RHO = 0.2


def losses(setting, model=None):
    bare, images, labels, domains = setting
    model = bare if model is None else model

    def task():
        return model.task(images[:4], labels)

    def alignment():
        return model.alignment(images, domains)

    return task, alignment


def take(coordinator, setting, model=None, **options):
    task, alignment = losses(setting, model)
    return coordinator.backward([task], [alignment], both=[lambda: (task(), alignment())], **options)


def at(setting, moves, objective) -> dict[str, torch.Tensor]:
    """The gradient of one or both losses at parameters moved by `moves`, on a copy of the model."""
    moved = copy.deepcopy(setting[0])
    with torch.no_grad():
        for name, p in moved.named_parameters():
            p += moves.get(name, 0.0)
    task, alignment = losses(setting, moved)
    moved.zero_grad()
    {"task": task, "alignment": alignment, "both": lambda: task() + alignment()}[objective]().backward()
    return gradients(moved)


def trust(model: nn.Module, direction: dict[str, torch.Tensor], rho: float) -> dict[str, torch.Tensor]:
    """`-rho |theta_p| / |m_p| m_p` by name, written out."""
    return {
        name: -rho * p.detach().norm() / direction[name].norm() * direction[name]
        for name, p in model.named_parameters()
        if name in direction and direction[name].norm() > 0
    }


def combined(first, second, factor=1.0):
    zero = torch.zeros(())
    return {n: factor * (first.get(n, zero) + second.get(n, zero)) for n in {*first, *second}}


@pytest.mark.parametrize("make", [RememberedMetaAlign, Game], ids=lambda kind: kind.__name__)
def test_rho_0_is_the_joint_gradient_bit_for_bit(setting, make):
    model = setting[0]
    take(Joint(sgd(model)), setting)
    expected = gradients(model)
    coordinator = make(sgd(model), 0.0, module=model)
    for _ in range(2):
        take(coordinator, setting)
        found = gradients(model)
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_the_total_is_the_written_out_formula(setting):
    model = setting[0]
    meta = RememberedMetaAlign(sgd(model), RHO, rule="trust_ratio")
    memory: dict[str, torch.Tensor] = {}
    for number in range(3):
        expected = at(setting, trust(model, memory, RHO), "both")
        before = {n: p.detach().clone() for n, p in model.named_parameters()}
        report = take(meta, setting)
        assert_same(gradients(model), expected, **EXACT)
        assert all(torch.equal(before[n], p) for n, p in model.named_parameters())
        length = torch.stack([move.norm() for move in trust(model, memory, RHO).values()] or [torch.zeros(())]).norm()
        torch.testing.assert_close(report.displacement, length, **EXACT)
        assert (float(report.displacement) > 0) == (number > 0)
        memory = gradients(model)
        kept = dict(zip((n for n, _ in model.named_parameters()), in_order(model, meta), strict=True))
        assert all(torch.equal(kept[name], value) for name, value in memory.items())
        meta.optimizer.step()


def in_order(model, meta, name="total"):
    """What is remembered, in the order of the model's parameters."""
    parameters = [p for group in meta.optimizer.param_groups for p in group["params"]]
    found = dict(zip(map(id, parameters), meta.memory[name].gradients(), strict=True))
    return [found[id(p)] for p in model.parameters()]


def test_the_role_s_gradient_is_the_written_out_formula(setting):
    model = setting[0]
    meta = RememberedMetaAlign(sgd(model), RHO, rule="trust_ratio", remember="role", refresh_every=2)
    kept: dict[str, dict[str, torch.Tensor]] = {"task": {}, "alignment": {}}
    for number, role in enumerate(("task", "alignment", "task", "alignment")):
        move = trust(model, kept[role], RHO)
        expected = at(setting, move, "both")
        if number % 2 == 0:
            kept = {name: at(setting, move, name) for name in kept}
        report = take(meta, setting)
        assert report.first == role and (report.cosine is not None) == (number % 2 == 0)
        assert_same(gradients(model), expected, **EXACT)
        for name, wanted in kept.items():
            remembered = zip((n for n, _ in model.named_parameters()), in_order(model, meta, name), strict=True)
            assert_same(dict(remembered), wanted, **EXACT)
        meta.optimizer.step()


@pytest.mark.parametrize("remember", ["total", "role"])
def test_accumulation_is_the_large_batch(remember):
    torch.manual_seed(0)
    model = Classifier(conv_net())
    images, labels = torch.randn(8, 3, 16, 16), torch.tensor([0, 1, 2, 1])
    domains = torch.tensor([1.0, 0.0] * 4)

    def run(micro: int) -> list[dict[str, torch.Tensor]]:
        rows = [slice(i * 4 // micro, (i + 1) * 4 // micro) for i in range(micro)]
        task = [lambda r=r: model.task(images[r], labels[r]) for r in rows]
        mixed = [slice(2 * r.start, 2 * r.stop) for r in rows]
        alignment = [lambda r=r: model.alignment(images[r], domains[r]) for r in mixed]
        meta = RememberedMetaAlign(sgd(model), RHO, rule="trust_ratio", remember=remember, refresh_every=2)
        found = []
        for _ in range(4):
            meta.backward(task, alignment, both=[lambda t=t, a=a: (t(), a()) for t, a in zip(task, alignment)])  # noqa: B905
            found.append(gradients(model))
        return found

    for one, two in zip(run(1), run(2), strict=True):
        assert_same(two, one, **EXACT)


def changes(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    """What the optimiser's step changes, by name."""
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    optimizer.step()
    return {n: p.detach() - before[n] for n, p in model.named_parameters()}


@pytest.mark.parametrize("make", [RememberedMetaAlign, Game, MetaAlign], ids=lambda kind: kind.__name__)
def test_rule_update_steps_as_far_as_the_optimiser_has(setting, make):
    """`-c |d_p| / |m_p| m_p` by name, written out, with momentum, so that no other rule gives it."""
    model = setting[0]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=0.1)
    meta = make(optimizer, 2.0, rule="update", module=model)
    moved: dict[str, torch.Tensor] = {}
    memory: dict[str, torch.Tensor] = {}
    for number in range(3):
        if make is not RememberedMetaAlign:
            memory = at(setting, {}, "both" if make is Game else meta.role(number))
        move = {
            n: -2.0 * moved[n].norm() / m.norm() * m for n, m in memory.items() if n in moved and float(m.norm()) > 0
        }
        expected = at(setting, move, "both" if make is not MetaAlign else ("alignment", "task")[number % 2])
        report = take(meta, setting)
        if make is MetaAlign:
            expected = combined(expected, memory)
        assert_same(gradients(model), expected, **EXACT)
        assert (float(report.displacement) > 0) == (number > 0)
        memory = gradients(model)
        moved = changes(model, optimizer)


def test_under_adam_the_inner_step_is_scaled_as_adam_scales(setting):
    """`-c |d_p| / |D m_p| D m_p` with `D = 1 / (sqrt(v) + eps)`, written out from the optimiser's own state."""
    model = setting[0]
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    meta = RememberedMetaAlign(optimizer, 2.0)
    move: dict[str, torch.Tensor] = {}
    for number in range(3):
        expected = at(setting, move, "both")
        report = take(meta, setting)
        assert_same(gradients(model), expected, **EXACT)
        assert (float(report.displacement) > 0) == (number > 0)
        memory, moved = gradients(model), changes(model, optimizer)
        named = dict(model.named_parameters())
        scaled = {n: m / (optimizer.state[named[n]]["exp_avg_sq"].sqrt() + 1e-8) for n, m in memory.items()}
        move = {n: -2.0 * moved[n].norm() / s.norm() * s for n, s in scaled.items() if float(s.norm()) > 0}


@pytest.mark.parametrize("kind", [torch.float32, torch.float64, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("eps", [1e-8, 1e-3, 1e-14, 0.0])
def test_weights_that_nothing_has_reached_are_scaled_bit_for_bit_as_adam_scales(kind, eps):
    """Moments of zero and around the smallest normal number: `g / (sqrt(v) + eps)` as it is written."""
    generator = torch.Generator().manual_seed(0)
    exponents = torch.randint(-320, 3, (4000,), generator=generator, dtype=torch.double)
    moment = (torch.rand(4000, generator=generator, dtype=torch.double) * 10**exponents).to(kind)
    moment[:500] = 0
    weight = nn.Parameter(torch.zeros(4000, dtype=kind))
    optimizer = torch.optim.AdamW([weight], eps=eps)
    optimizer.state[weight]["exp_avg_sq"] = moment
    gradient = torch.randn(4000, generator=generator, dtype=torch.double).to(kind)
    (found,) = preconditioned(optimizer, [gradient])
    assert found is not None and found.dtype == kind
    assert torch.equal(found.nan_to_num(), (gradient / (moment.sqrt() + eps)).nan_to_num())


def test_with_plain_sgd_1_is_the_past_extragradient_step(setting):
    model = setting[0]
    meta = RememberedMetaAlign(torch.optim.SGD(model.parameters(), lr=0.05), 1.0)
    take(meta, setting)
    memory = gradients(model)
    meta.optimizer.step()
    expected = at(setting, {n: -0.05 * g for n, g in memory.items()}, "both")
    take(meta, setting)
    assert_same(gradients(model), expected, rtol=1e-9, atol=1e-11)


def test_a_step_that_moves_nothing_leaves_the_lengths(setting):
    model = setting[0]
    meta = RememberedMetaAlign(sgd(model))
    take(meta, setting)
    meta.optimizer.step()
    lengths = meta.state_dict()["updates"]
    assert max(lengths) > 0
    for group in meta.optimizer.param_groups:
        group["lr"] = 0.0
    take(meta, setting)
    meta.optimizer.step()
    assert meta.state_dict()["updates"] == lengths


def test_the_lengths_of_the_optimiser_s_step_are_state(setting):
    """A copy that takes over memory and state goes on bit for bit."""
    model = setting[0]
    meta = RememberedMetaAlign(sgd(model))
    for _ in range(2):
        take(meta, setting)
        meta.optimizer.step()
    other = (copy.deepcopy(model), *setting[1:])
    resumed = RememberedMetaAlign(sgd(other[0]))
    with pytest.raises(ValueError, match="no lengths of the optimiser's last step"):
        resumed.load_state_dict({"step": 2})
    resumed.memory.load_state_dict(meta.memory.state_dict())
    resumed.load_state_dict(json.loads(json.dumps(meta.state_dict())))
    assert float(take(resumed, other).displacement) == float(take(meta, setting).displacement) > 0
    found, wanted = gradients(other[0]), gradients(model)
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)


@pytest.mark.parametrize("solver", ["extragradient", "heun"])
def test_the_game_s_steps_are_the_written_out_formula(setting, solver):
    model = setting[0]
    here = at(setting, {}, "both")
    there = at(setting, trust(model, here, RHO), "both")
    take(Game(sgd(model), RHO, solver=solver, rule="trust_ratio", module=model), setting)
    assert_same(gradients(model), there if solver == "extragradient" else combined(here, there, 0.5), **EXACT)


def test_the_doubly_perturbed_step_is_the_written_out_formula(setting):
    model = setting[0]
    own = {name: at(setting, {}, name) for name in ("task", "alignment")}
    unit = {
        k: {n: g / torch.cat([x.flatten() for x in v.values()]).norm() for n, g in v.items()} for k, v in own.items()
    }

    def perturbed(name: str, other: str):
        up = {n: 0.3 * g for n, g in unit[name].items()}
        return at(setting, combined(up, {n: -RHO * g for n, g in unit[other].items()}), name)

    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    take(DoublyPerturbed(sgd(model), RHO, 0.3, module=model), setting)
    expected = combined(perturbed("task", "alignment"), perturbed("alignment", "task"))
    assert_same(gradients(model), expected, rtol=1e-9, atol=1e-11)
    assert all(torch.equal(before[n], p) for n, p in model.named_parameters())


@pytest.mark.parametrize("make", [RememberedMetaAlign, Game, DoublyPerturbed], ids=lambda kind: kind.__name__)
def test_a_closure_that_raises_leaves_the_parameters(make):
    torch.manual_seed(0)
    setting = (Classifier(conv_net()), torch.randn(8, 3, 16, 16), torch.tensor([0, 1, 2, 1]), torch.ones(8))
    model = setting[0]
    coordinator = make(sgd(model), RHO, module=model)
    take(coordinator, setting)
    coordinator.optimizer.step()
    before = [p.detach().clone() for p in model.parameters()]
    count = [0]

    def broken():
        count[0] += 1
        if count[0] == 2 or isinstance(coordinator, RememberedMetaAlign):
            assert not all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
            raise RuntimeError("stop")
        return losses(setting)[0]()

    with pytest.raises(RuntimeError, match="stop"):
        coordinator.backward([broken], [losses(setting)[1]])
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    assert all(p.grad is None for p in model.parameters())


def test_a_skipped_step_leaves_the_memory():
    """A scaled gradient overflows: the scaler skips the step, and the next inner step goes where this one went."""
    torch.set_default_dtype(torch.float)
    torch.manual_seed(0)
    setting = (Classifier(conv_net()), torch.randn(8, 3, 16, 16), torch.tensor([0, 1, 2, 1]), torch.ones(8))
    model = setting[0]
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    meta = RememberedMetaAlign(sgd(model), RHO, scaler=scaler)
    assert not take(meta, setting).skipped
    plain = {n: g / scaler.get_scale() for n, g in gradients(model).items()}
    kept = dict(zip((n for n, _ in model.named_parameters()), in_order(model, meta), strict=True))
    assert_same(kept, plain)
    before = [g.clone() for g in in_order(model, meta)]
    task, alignment = losses(setting)
    report = meta.backward(both=[lambda: (task() * float("inf"), alignment())])
    assert report.skipped
    assert all(torch.equal(a, b) for a, b in zip(before, in_order(model, meta), strict=True))


def test_a_game_on_which_the_joint_step_circles_and_memory_converges():
    """x descends x y and y ascends it; the equilibrium is (0, 0)."""
    radius = {}
    for name, make in {
        "joint": lambda o: Joint(o),
        "remembered": lambda o: RememberedMetaAlign(o, 1.0),
        "extragradient": lambda o: Game(o, 1.0),
        "reversed roles": lambda o: MetaAlign(o, 1.0),
    }.items():
        x, y = nn.Parameter(torch.tensor(1.0)), nn.Parameter(torch.tensor(1.0))
        coordinator = make(torch.optim.SGD([x, y], lr=0.1))
        for _ in range(400):
            coordinator.backward([lambda x=x, y=y: x * y.detach()], [lambda x=x, y=y: -x.detach() * y])
            coordinator.optimizer.step()
        radius[name] = float(torch.stack([x, y]).detach().norm())
    start = 2**0.5
    assert radius["joint"] > 2 * start
    assert radius["remembered"] < 0.3 * start and radius["extragradient"] < 0.3 * start


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda o: RememberedMetaAlign(o, -1.0), "inner_lr is -1.0: it must be a finite number, 0 or more"),
        (lambda o: RememberedMetaAlign(o, float("inf")), "inner_lr is inf"),
        (lambda o: RememberedMetaAlign(o, refresh_every=0), "refresh_every is 0: it must be 1 or more"),
        (
            lambda o: RememberedMetaAlign(o, remember="both"),
            "it must be one of total, role",
        ),
        (lambda o: Game(o, solver="euler"), "solver is 'euler'"),
        (lambda o: DoublyPerturbed(o, ascent=-1.0), "ascent is -1.0"),
    ],
)
def test_bad_input(make, message):
    with pytest.raises(ValueError, match=message.replace("(", "\\(")):
        make(torch.optim.SGD([nn.Parameter(torch.ones(2))], lr=0.1))
