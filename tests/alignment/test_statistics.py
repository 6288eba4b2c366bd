"""Objectives without a discriminator, MDD and ToAlign against independent small computations, and their derivatives."""

import itertools
import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.autograd import gradcheck, gradgradcheck

from metaalign_hf import UserError
from metaalign_hf.alignment import AlignmentBatch, build_alignment, task_oriented

D, K = 4, 3
DOMAINS = torch.tensor([0, 1, 0, 0, 1, 1, 0, 1, 1, 0, 1])  # 5 source rows and 6 target rows, mixed
LABELS = torch.tensor([2, -100, 0, 1, -100, -100, 1, -100, -100, 2, -100])
MULTIPLIERS = [0.5, 1.0, 2.0]


def tensors(requires_grad: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(3)
    f = torch.randn(11, D, dtype=torch.double)
    logits = torch.randn(11, K, dtype=torch.double)
    return f.requires_grad_(requires_grad), logits.requires_grad_(requires_grad)


def batch(features=None, logits=None, progress: float = 0.6) -> AlignmentBatch:
    f, g = tensors()
    torch.manual_seed(4)
    weight = torch.randn(K, D, dtype=torch.double)
    return AlignmentBatch(
        f if features is None else features, g if logits is None else logits, DOMAINS, progress, LABELS, weight
    )


def build(spec) -> nn.Module:
    torch.manual_seed(0)
    return build_alignment(spec, D, K).double().eval()


def softmax(x: np.ndarray) -> np.ndarray:
    e = np.exp(x - x.max(1, keepdims=True))
    return e / e.sum(1, keepdims=True)


def halves(x: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
    return x[DOMAINS == 0].numpy(), x[DOMAINS == 1].numpy()


def squared(a, b) -> float:
    return float(((a - b) ** 2).sum())


def gaussians(a, b, bandwidth: float, multipliers=MULTIPLIERS) -> float:
    return sum(math.exp(-squared(a, b) / (m * bandwidth)) for m in multipliers) / len(multipliers)


def quadratic(s, t, k) -> float:
    """The unbiased estimate, one pair of rows at a time; rows are whatever k takes."""
    within = [sum(k(a, b) for a, b in itertools.permutations(x, 2)) / (len(x) * (len(x) - 1)) for x in (s, t)]
    return within[0] + within[1] - 2 * sum(k(a, b) for a in s for b in t) / (len(s) * len(t))


def linear(s, t, k) -> float:
    count = min(len(s), len(t)) // 2
    terms = []
    for i in range(count):
        a, b, c, d = s[2 * i], s[2 * i + 1], t[2 * i], t[2 * i + 1]
        terms.append(k(a, b) + k(c, d) - k(a, d) - k(b, c))
    return sum(terms) / count


def compared(s, t, estimator: str) -> list[tuple]:
    """The pairs of rows whose mean distance is the bandwidth."""
    if estimator == "quadratic":
        return list(itertools.combinations([*s, *t], 2))
    quads = [(s[i], s[i + 1], t[i], t[i + 1]) for i in range(0, 2 * (min(len(s), len(t)) // 2), 2)]
    return [pair for a, b, c, d in quads for pair in ((a, b), (c, d), (a, d), (b, c))]


@pytest.mark.parametrize("estimator", ["quadratic", "linear"])
@pytest.mark.parametrize("on", ["features", "predictions"])
@pytest.mark.parametrize("bandwidth", [None, 3.0])
def test_mmd_is_its_formula(estimator, on, bandwidth):
    b = batch()
    s, t = halves(b.features if on == "features" else torch.from_numpy(softmax(b.logits.numpy())))
    pairs = compared(s, t, estimator)
    width = bandwidth or sum(squared(x, y) for x, y in pairs) / len(pairs)
    estimate = quadratic if estimator == "quadratic" else linear
    expected = estimate(s, t, lambda x, y: gaussians(x, y, width))
    spec = {"name": "mmd", "on": on, "estimator": estimator, "multipliers": MULTIPLIERS, "bandwidth": bandwidth}
    assert build(spec)(b).loss.item() == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("estimator", ["quadratic", "linear"])
def test_jmmd_is_its_formula(estimator):
    b = batch()
    (fs, ft), (ps, pt) = halves(b.features), halves(torch.from_numpy(softmax(b.logits.numpy())))
    s, t = list(zip(fs, ps, strict=True)), list(zip(ft, pt, strict=True))

    def k(x, y) -> float:
        return gaussians(x[0], y[0], 5.0) * gaussians(x[1], y[1], 1.68, [1.0])

    expected = (quadratic if estimator == "quadratic" else linear)(s, t, k)
    spec = {"name": "jmmd", "estimator": estimator, "multipliers": MULTIPLIERS, "bandwidth": 5.0}
    assert build(spec)(b).loss.item() == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("estimator", ["quadratic", "linear"])
@pytest.mark.parametrize("name", ["mmd", "jmmd"])
def test_the_discrepancy_is_unbiased(name, estimator):
    """On samples of one distribution its mean is 0 within four standard errors, which a biased estimate is far from."""
    objective = build({"name": name, "estimator": estimator, "bandwidth": 8.0})
    generator = torch.Generator().manual_seed(0)
    found = []
    for _ in range(400):
        f, g = (torch.randn(11, c, dtype=torch.double, generator=generator) for c in (D, K))
        found.append(objective(AlignmentBatch(f, g, DOMAINS)).loss.item())
    assert abs(np.mean(found)) < 4 * np.std(found) / 20
    assert min(found) < 0


@pytest.mark.parametrize("on", ["features", "logits"])
def test_coral_is_its_formula(on):
    b = batch()
    s, t = halves(b.features if on == "features" else b.logits)
    expected = ((np.cov(s.T) - np.cov(t.T)) ** 2).sum() / (4 * s.shape[1] ** 2)
    assert build({"name": "coral", "on": on})(b).loss.item() == pytest.approx(expected, rel=1e-9)


def mcc_by_hand(logits: np.ndarray, temperature: float, weights: np.ndarray | None = None) -> float:
    p = softmax(logits / temperature)
    if weights is None:
        certainty = 1 + np.exp((p * np.log(p + 1e-5)).sum(1))
        weights = len(p) * certainty / certainty.sum()
    loss = 0.0
    for j in range(K):
        row = [sum(weights[i] * p[i, j] * p[i, k] for i in range(len(p))) for k in range(K)]
        loss += (sum(row) - row[j]) / sum(row)
    return loss / K


def test_mcc_is_its_formula_and_sees_the_target_alone():
    b = batch()
    _, t = halves(b.logits)
    objective = build({"name": "mcc", "temperature": 2.0})
    assert objective(b).loss.item() == pytest.approx(mcc_by_hand(t, 2.0), rel=1e-9)
    f, logits = tensors(requires_grad=True)
    objective(batch(f, logits)).loss.backward()
    assert logits.grad[DOMAINS == 0].abs().sum() == 0 and (logits.grad[DOMAINS == 1].abs().sum(1) > 0).all()


def test_the_gradient_of_mcc_holds_the_weights_constant():
    b = batch()
    _, t = halves(b.logits)
    p = softmax(t / 2.5)
    certainty = 1 + np.exp((p * np.log(p + 1e-5)).sum(1))
    weights = len(p) * certainty / certainty.sum()
    logits = b.logits.clone().requires_grad_()
    build("mcc")(batch(logits=logits)).loss.backward()
    numeric = np.zeros_like(t)
    for index in np.ndindex(*t.shape):
        step = np.zeros_like(t)
        step[index] = 1e-6
        numeric[index] = (mcc_by_hand(t + step, 2.5, weights) - mcc_by_hand(t - step, 2.5, weights)) / 2e-6
    np.testing.assert_allclose(logits.grad[DOMAINS == 1].numpy(), numeric, rtol=1e-5, atol=1e-9)


def test_mcc_stays_finite_where_a_class_has_no_probability():
    logits = torch.zeros(11, K)
    logits[:, 0] = 1e4
    b = AlignmentBatch(torch.zeros(11, D), logits.requires_grad_(), DOMAINS)
    loss = build_alignment("mcc", D, K)(b).loss
    loss.backward()
    assert torch.isfinite(loss) and torch.isfinite(logits.grad).all()


def test_mdd_is_its_formula():
    b = batch()
    objective = build({"name": "mdd", "gamma": 3.0, "hidden": 7})
    first, _, _, second = objective.objectives["mdd"].adversary
    hidden = np.maximum(b.features.numpy() @ first.weight.detach().numpy().T + first.bias.detach().numpy(), 0)
    q = softmax(hidden @ second.weight.detach().numpy().T + second.bias.detach().numpy())
    chosen = q[np.arange(11), b.logits.numpy().argmax(1)]
    source = DOMAINS.numpy() == 0
    expected = 3.0 * -np.log(chosen[source]).mean() - np.log(1 - chosen[~source]).mean()
    assert objective(b).loss.item() == pytest.approx(expected, rel=1e-9)


def test_mdd_stays_finite_for_any_score():
    objective = build_alignment({"name": "mdd", "hidden": 7}, D, K).eval()
    features = (1e4 * torch.randn(11, D)).requires_grad_()
    logits = objective.objectives["mdd"].adversary(features.detach()).detach()
    loss = objective(AlignmentBatch(features, logits, DOMAINS)).loss
    loss.backward()
    assert torch.isfinite(loss) and torch.isfinite(features.grad).all()


def test_positive_features_are_their_formula():
    b = batch()
    bias = torch.randn(K, dtype=torch.double)
    b.logits = b.features @ b.classifier_weight.T + bias
    found = task_oriented(b, "dann")
    f, w = b.features.numpy(), b.classifier_weight.numpy()
    for i, label in enumerate(LABELS.tolist()):
        expected = f[i]
        if DOMAINS[i] == 0:
            masked = w[label] * f[i]
            expected = math.sqrt((f[i] ** 2).sum() / (masked**2).sum()) * masked
            assert squared(expected, 0) == pytest.approx(squared(f[i], 0)), "the energy stays"
        np.testing.assert_allclose(found.features[i].numpy(), expected, rtol=1e-9)
        np.testing.assert_allclose(found.logits[i].numpy(), w @ expected + bias.numpy(), rtol=1e-9)


def test_a_feature_of_zeros_has_finite_derivatives():
    features = torch.zeros(11, D, requires_grad=True)
    b = batch(features, torch.zeros(11, K))
    b.classifier_weight = b.classifier_weight.float()
    found = task_oriented(b, "dann")
    (first,) = torch.autograd.grad(found.logits.square().sum() + found.features.sum(), features, create_graph=True)
    (second,) = torch.autograd.grad(first.square().sum(), features)
    assert (found.features == 0).all() and torch.isfinite(first).all() and torch.isfinite(second).all()


@pytest.mark.parametrize("name", ["dann", "cdan", "gvb"])
def test_toalign_is_the_objective_on_positive_features(name):
    spec = {"name": name, "hidden": 7, "generator_penalty": 0.0} if name == "gvb" else {"name": name, "hidden": 7}
    b = batch()
    positive = task_oriented(b, name)
    modified = build({**spec, "toalign": True})(b).loss
    torch.testing.assert_close(modified, build(spec)(positive).loss)
    assert modified.item() != pytest.approx(build(spec)(b).loss.item())


@pytest.mark.parametrize("name", ["dann", "cdan", "gvb"])
def test_toalign_without_labels_or_classifier_is_refused(name):
    objective = build({"name": name, "toalign": True, "hidden": 7})
    b = batch()
    b.labels = None
    with pytest.raises(UserError, match=f"{name}: toalign needs the label"):
        objective(b)
    b.labels = torch.full((11,), -100)
    with pytest.raises(UserError, match=f"{name}: toalign needs the label"):
        objective(b)
    b = batch()
    b.classifier_weight = None
    with pytest.raises(UserError, match=f"{name}: toalign needs the weight"):
        objective(b)


SMOOTH = {
    "mmd": {"name": "mmd", "bandwidth": 3.0},
    "mmd on predictions": {"name": "mmd", "bandwidth": 0.5, "on": "predictions"},
    "mmd linear": {"name": "mmd", "bandwidth": 3.0, "estimator": "linear"},
    "jmmd": {"name": "jmmd", "bandwidth": 3.0},
    "jmmd linear": {"name": "jmmd", "bandwidth": 3.0, "estimator": "linear"},
    "coral": {"name": "coral"},
    "coral on logits": {"name": "coral", "on": "logits"},
}


@pytest.mark.parametrize("spec", SMOOTH.values(), ids=SMOOTH)
def test_derivatives_are_those_of_the_value(spec):
    """First and second derivatives against finite differences of the value, nothing being held constant."""
    objective = build(spec)

    def loss(features, logits):
        return objective(batch(features, logits)).loss

    inputs = tensors(requires_grad=True)
    assert gradcheck(loss, inputs)
    assert gradgradcheck(loss, inputs)


@pytest.mark.parametrize(
    "spec",
    ["mmd", "jmmd", "mdd", *({"name": name, "toalign": True} for name in ("dann", "cdan", "gvb"))],
    ids=str,
)
def test_second_derivatives_are_those_of_the_gradient(spec):
    """Where something is held constant, the second derivative is still that of the gradient field with it constant."""
    options = {} if spec in ("mmd", "jmmd") else {"hidden": 7}
    objective = build({"name": spec, **options} if isinstance(spec, str) else {**spec, **options})
    f, logits = tensors(requires_grad=True)
    loss = objective(batch(f, logits)).loss
    first = torch.autograd.grad(loss, [f, logits], create_graph=True, allow_unused=True)
    present = [g for g in first if g is not None]
    second = torch.autograd.grad(sum(g.square().sum() for g in present), [f, logits], allow_unused=True)
    norms = [g.abs().sum() for g in second if g is not None]
    assert all(torch.isfinite(n) for n in norms) and sum(norms) > 0


def test_discrepancies_are_exact_under_autocast():
    """Far from the origin half precision would lose all distances."""
    f, logits = (x.float() for x in tensors())
    b = batch(f + 1000, logits)
    for spec in ("mmd", "jmmd", "coral"):
        objective = build_alignment(spec, D, K)
        expected = objective(batch(f, logits)).loss
        with torch.autocast("cpu", dtype=torch.bfloat16):
            torch.testing.assert_close(objective(b).loss, expected, rtol=2e-3, atol=1e-4)
