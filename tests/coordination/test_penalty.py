"""A penalty that stands in both losses is told apart in the report, and nothing but the report knows of it."""

import copy

import pytest
import torch
from torch import nn

from metaalign_hf.coordination import DoublyPerturbed, Joint, MetaAlign, RememberedMetaAlign, SharedPrefix
from tests.helpers.networks import Classifier


@pytest.fixture(autouse=True)
def double():
    torch.set_default_dtype(torch.double)
    yield
    torch.set_default_dtype(torch.float)


class Bridged(Classifier):
    """A classifier with a bridge whose size both losses punish; dropout and batch normalisation on the way."""

    def __init__(self) -> None:
        front = nn.Sequential(nn.Conv2d(3, 6, 3, 2), nn.BatchNorm2d(6), nn.Tanh(), nn.Dropout(0.3), nn.Flatten())
        super().__init__(nn.Sequential(front, nn.Linear(294, 8)))
        self.bridge = nn.Linear(8, 3)

    def penalty(self, images: torch.Tensor) -> torch.Tensor:
        return 5 * self.bridge(self.backbone(images)).abs().mean()

    def term(self, images: torch.Tensor, domains: torch.Tensor) -> torch.Tensor:
        return super().alignment(images, domains)

    def alignment(self, images: torch.Tensor, domains: torch.Tensor) -> torch.Tensor:
        torch_state = torch.get_rng_state()
        loss = self.term(images, domains)
        torch.set_rng_state(torch_state)  # one pass of the features serves both terms
        return loss + self.penalty(images)


IMAGES = torch.randn(8, 3, 16, 16, generator=torch.Generator().manual_seed(1), dtype=torch.double)
LABELS = torch.tensor([0, 1, 2, 1])
DOMAINS = torch.tensor([1.0] * 4 + [0.0] * 4, dtype=torch.double)


def optimizer(model: nn.Module) -> torch.optim.SGD:
    return torch.optim.SGD(model.parameters(), 0.1)


def passes(model: Bridged):
    task = [lambda: model.task(IMAGES[:4], LABELS) + model.penalty(IMAGES[:4])]
    return task, [lambda: model.alignment(IMAGES, DOMAINS)], [lambda: model.penalty(IMAGES)]


STEPS = {
    "joint": Joint,
    "task first": lambda o, **k: MetaAlign(o, first="task", **k),
    "alignment first": lambda o, **k: MetaAlign(o, first="alignment", **k),
    "order 2": lambda o, **k: MetaAlign(o, first="alignment", order=2, **k),
    "smoothed": lambda o, **k: MetaAlign(o, smoothing=0.05, **k),
    "pga": DoublyPerturbed,
    "remembered": lambda o, **k: RememberedMetaAlign(o, remember="role", refresh_every=1, **k),
}


@pytest.mark.parametrize("step", STEPS.values(), ids=STEPS)
def test_the_step_is_the_same_to_the_last_bit(step):
    torch.manual_seed(0)
    start = Bridged()
    found = []
    for told_apart in (False, True):
        model = copy.deepcopy(start)
        coordinator = step(optimizer(model), module=model)
        task, alignment, penalty = passes(model)
        torch.manual_seed(5)
        report = coordinator.backward(task, alignment, penalty=penalty if told_apart else ())
        assert (report.penalty_cosine is not None) is told_apart
        gradients = {name: p.grad for name, p in model.named_parameters()}
        found.append((gradients, model.state_dict(), torch.get_rng_state(), report.inner_product))
    (plain, told) = found
    assert all(torch.equal(plain[0][name], told[0][name]) for name in plain[0])
    assert all(torch.equal(plain[1][name], told[1][name]) for name in plain[1]), "running statistics moved once"
    assert torch.equal(plain[2], told[2]) and plain[3] == told[3]


def test_the_cosine_is_that_of_the_alignment_term_alone():
    torch.manual_seed(0)
    model = Bridged()
    task, alignment, penalty = passes(model)
    torch.manual_seed(5)
    report = Joint(optimizer(model), module=model).backward(task, alignment, penalty=penalty)

    def gradient(loss):
        names = [name for name, _ in model.named_parameters()]
        found = torch.autograd.grad(loss, list(model.parameters()), allow_unused=True)
        return dict(zip(names, found, strict=True))

    torch.manual_seed(5)
    g_task = gradient(task[0]())
    state = torch.get_rng_state()
    g_term = gradient(model.term(IMAGES, DOMAINS))
    torch.set_rng_state(state)
    g_penalty = gradient(model.penalty(IMAGES))

    def cosine(a, b):
        both = [name for name in a if a[name] is not None and b[name] is not None]
        a, b = (torch.cat([g[name].flatten() for name in both]) for g in (a, b))
        return torch.cosine_similarity(a, b, dim=0)

    # The bridge gets no gradient of the term: its share of the alignment gradient is zero.
    g_term = {
        n: g if g is not None or g_penalty[n] is None else torch.zeros_like(g_penalty[n]) for n, g in g_term.items()
    }
    total = {n: g if g is None or g_penalty[n] is None else g + g_penalty[n] for n, g in g_term.items()}
    whole = cosine(g_task, total)
    torch.testing.assert_close(report.cosine, cosine(g_task, g_term), rtol=1e-8, atol=1e-10)
    torch.testing.assert_close(report.penalty_cosine, cosine(g_task, g_penalty), rtol=1e-8, atol=1e-10)
    assert report.cosine < 0.1 < 0.2 < whole, "the penalty hides that the terms do not agree"
    assert {"cosine", "penalty_cosine", "penalty_gradient_norm"} <= set(report.to_dict())


@pytest.mark.parametrize("first", ["task", "alignment"])
def test_a_shared_prefix_is_not_touched(first):
    torch.manual_seed(0)
    start = Bridged()
    found = []
    for told_apart in (False, True):
        model = copy.deepcopy(start)
        prefix = SharedPrefix(model, model.backbone[1])
        own = lambda model=model, prefix=prefix: model.task(IMAGES, torch.cat([LABELS, LABELS]))  # noqa: E731

        def inside(run, prefix=prefix):
            def closure():
                with prefix.run():
                    return run()

            return closure

        torch.manual_seed(5)
        scope = lambda name, _: not name.startswith("backbone.0")  # noqa: E731
        report = MetaAlign(optimizer(model), first=first, module=model, scope=scope).backward(
            [inside(own)],
            [inside(lambda model=model: model.term(IMAGES, DOMAINS))],
            shared=[prefix],
            penalty=[inside(lambda model=model: model.penalty(IMAGES))] if told_apart else (),
        )
        found.append(({name: p.grad for name, p in model.named_parameters()}, report))
    (plain, _), (told, report) = found
    names = [name for name, g in plain.items() if g is not None]
    assert "backbone.0.0.weight" in names and all(torch.equal(plain[name], told[name]) for name in names)
    assert report.penalty_gradient_norm > 0
