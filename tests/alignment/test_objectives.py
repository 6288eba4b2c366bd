"""Alignment objectives against independent small computations."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from metaalign_hf import UserError
from metaalign_hf.alignment import (
    AlignmentBatch,
    AlignmentObjective,
    AlignmentOutput,
    alignment_names,
    alignment_options,
    build_alignment,
    normalise_alignment,
    register_alignment,
    reversal_strength,
    reverse_gradient,
    task_oriented,
)

D, K = 6, 3
ADVERSARIAL = ("dann", "cdan", "gvb", "mdd")


def batch(progress: float = 0.6, rows: int = 10, requires_grad: bool = False) -> AlignmentBatch:
    torch.manual_seed(1)
    features = torch.randn(rows, D, dtype=torch.double, requires_grad=requires_grad)
    logits = torch.randn(rows, K, dtype=torch.double, requires_grad=requires_grad)
    domains = torch.tensor([0] * (rows // 2) + [1] * (rows - rows // 2))
    return AlignmentBatch(features, logits, domains, progress)


def build(spec) -> nn.Module:
    torch.manual_seed(0)
    return build_alignment(spec, D, K).double().eval()


def bce(logit: float, source: bool) -> float:
    p = 1 / (1 + math.exp(-logit))
    return -math.log(p if source else 1 - p)


def mlp(discriminator: nn.Module, x: np.ndarray) -> np.ndarray:
    """The discriminator in eval mode, written out."""
    layers = [m for m in discriminator.hidden if isinstance(m, nn.Linear)]
    for layer in layers:
        x = np.maximum(x @ layer.weight.detach().numpy().T + layer.bias.detach().numpy(), 0)
    return x


def linear(layer: nn.Linear, x: np.ndarray) -> np.ndarray:
    return x @ layer.weight.detach().numpy().T + layer.bias.detach().numpy()


def softmax(x: np.ndarray) -> np.ndarray:
    e = np.exp(x - x.max(1, keepdims=True))
    return e / e.sum(1, keepdims=True)


def weighted(losses, weights, source) -> float:
    halves = []
    for rows in (source, ~source):
        w = weights[rows] / weights[rows].sum()
        halves.append((w * losses[rows]).sum())
    return sum(halves) / 2


@pytest.mark.parametrize("on", ["features", "predictions"])
@pytest.mark.parametrize("entropy_weights", [False, True])
def test_dann_is_its_formula(on, entropy_weights):
    b = batch()
    objective = build({"name": "dann", "on": on, "entropy_weights": entropy_weights, "hidden": 7})
    p, f, source = softmax(b.logits.numpy()), b.features.numpy(), b.domain_labels.numpy() == 0
    d = objective.objectives["dann"].discriminator
    logit = linear(d.output, mlp(d, f if on == "features" else p))[:, 0]
    losses = np.array([bce(x, s) for x, s in zip(logit, source, strict=True)])
    weights = 1 + np.exp((p * np.log(p + 1e-5)).sum(1)) if entropy_weights else np.ones(len(p))
    assert objective(b).loss.item() == pytest.approx(weighted(losses, weights, source), rel=1e-9)


@pytest.mark.parametrize("max_dim", [4096, 12])
def test_cdan_is_its_formula(max_dim):
    b = batch()
    objective = build({"name": "cdan", "max_dim": max_dim, "hidden": 7})
    inner = objective.objectives["cdan"]
    p, f, source = softmax(b.logits.numpy()), b.features.numpy(), b.domain_labels.numpy() == 0
    if max_dim == 4096:
        joint = np.einsum("bk,bd->bkd", p, f).reshape(len(f), -1)
    else:
        rf, rp = inner.project_features.numpy(), inner.project_predictions.numpy()
        assert rf.shape == (3, D) and rp.shape == (3, K)
        joint = (f @ rf.T) * (p @ rp.T) / math.sqrt(3)
    logit = linear(inner.discriminator.output, mlp(inner.discriminator, joint))[:, 0]
    losses = np.array([bce(x, s) for x, s in zip(logit, source, strict=True)])
    weights = 1 + np.exp((p * np.log(p + 1e-5)).sum(1))
    assert objective(b).loss.item() == pytest.approx(weighted(losses, weights, source), rel=1e-9)


def test_gvb_is_its_formula():
    b = batch()
    objective = build({"name": "gvb", "trade_off": 0.7, "hidden": 7})
    inner = objective.objectives["gvb"]
    p, f, source = softmax(b.logits.numpy()), b.features.numpy(), b.domain_labels.numpy() == 0
    hidden = mlp(inner.discriminator, p)
    share = linear(inner.discriminator.bridge, hidden)[:, 0]
    logit = linear(inner.discriminator.output, hidden)[:, 0] - share
    losses = np.array([bce(x, s) for x, s in zip(logit, source, strict=True)])
    weights = np.exp((p * np.log(p + 1e-5)).sum(1))
    z = linear(inner.bridge, f)
    expected = 0.7 * weighted(losses, weights, source) + np.abs(share).mean() + np.abs(z).mean()
    assert objective(b).loss.item() == pytest.approx(expected, rel=1e-9)
    assert objective.task_penalty(b.features[:5]).item() == pytest.approx(np.abs(z[:5]).mean(), rel=1e-9)
    assert objective.classifier_bridges() == [inner.bridge]


@pytest.mark.parametrize("name", ADVERSARIAL)
def test_reversal_turns_the_features_against_the_discriminator(name):
    """The gradient with respect to what is aligned is minus strength times that without reversal."""
    options = {"generator_penalty": 0.0, "discriminator_penalty": 0.0} if name == "gvb" else {}
    if name == "cdan":
        options = {"entropy_weights": False}
    spec = {"name": name, "hidden": 7, **options}
    found = {}
    for progress in (0.0, 0.3, 1.0):
        b = batch(progress, requires_grad=True)
        build(spec)(b).loss.backward()
        found[progress] = [g for g in (b.features.grad, b.logits.grad) if g is not None and g.abs().sum() > 0]
    assert found[0.0] == [], "at progress 0 nothing reaches the features"
    ratio = reversal_strength(0.3) / reversal_strength(1.0)
    for weak, strong in zip(found[0.3], found[1.0], strict=True):
        torch.testing.assert_close(weak, ratio * strong)


@pytest.mark.parametrize("name", ["dann", "cdan", "gvb"])
def test_smoothed_domain_labels_are_their_formula(name):
    """BCE with 1 - s and s for 1 and 0: that of the true domain and s times the other's, weighted."""
    b = batch()
    options = {
        "hidden": 7,
        **({"trade_off": 1.0, "generator_penalty": 0.0, "discriminator_penalty": 0.0} if name == "gvb" else {}),
    }
    swapped = AlignmentBatch(b.features, b.logits, 1 - b.domain_labels, b.progress)
    right, wrong = (build({"name": name, **options})(x).loss for x in (b, swapped))
    found = build({"name": name, **options, "label_smoothing": 0.2})(b).loss
    torch.testing.assert_close(found, 0.8 * right + 0.2 * wrong)


def test_daln_is_its_formula_and_turns_the_features_against_the_classifier():
    b = batch(requires_grad=True)
    weight = torch.randn(K, D, dtype=torch.double, requires_grad=True)
    bias = torch.randn(K, dtype=torch.double, requires_grad=True)
    p = softmax((b.features @ weight.T + bias).detach().numpy())
    singular = [np.sqrt(np.linalg.eigvalsh(rows.T @ rows).clip(0)).sum() / 5 for rows in (p[:5], p[5:])]
    found = {}
    for strength in (0.6, None):
        # Without reversal: the same loss by plain autograd.
        features = b.features.detach().requires_grad_()
        logits = features @ weight.T + bias
        if strength is None:
            parts = [torch.linalg.svdvals(rows.softmax(1)).sum() / 5 for rows in (logits[:5], logits[5:])]
            loss = parts[1] - parts[0]
        else:
            given = AlignmentBatch(features, logits, b.domain_labels, strength, classifier_weight=weight)
            loss = build("daln")(given).loss
        assert loss.item() == pytest.approx(singular[1] - singular[0], rel=1e-9)
        found[strength] = torch.autograd.grad(loss, [features, weight, bias])
    turned, plain = found.values()
    torch.testing.assert_close(turned[0], -reversal_strength(0.6) * plain[0])
    for a, c in zip(turned[1:], plain[1:], strict=True):
        torch.testing.assert_close(a, c)
    with pytest.raises(UserError, match="daln: it needs the weight of a linear classifier"):
        build("daln")(batch())


def test_gradient_reversal_twice():
    x = torch.tensor([2.0], dtype=torch.double, requires_grad=True)
    (first,) = torch.autograd.grad((reverse_gradient(x, 0.5) ** 3).sum(), x, create_graph=True)
    assert first.item() == pytest.approx(-0.5 * 3 * 4)
    (second,) = torch.autograd.grad(first.sum(), x)
    assert second.item() == pytest.approx(0.25 * 6 * 2)


def test_reversal_strength_is_a_function_of_progress():
    assert reversal_strength(0.0) == 0.0
    assert reversal_strength(1.0) == pytest.approx(2 / (1 + math.exp(-10)) - 1)
    assert reversal_strength(0.5, ceiling=0.1) == pytest.approx(0.1 * reversal_strength(0.5))


# What to build where the default is not at its best on 100 + 100 rows, for how many steps, and what to measure.
TOY = {
    "coral": ({"weight": 20.0}, 200, "spread"),
    "mcc": ({"weight": 0.3}, 200, "confusion"),
    "daln": ({}, 200, "confusion"),
    "mdd": ({"gamma": 1.0, "hidden": 64}, 600, "mean"),
    "toalign dann": ({"toalign": True, "hidden": 64}, 200, "positive"),
    "toalign cdan": ({"toalign": True, "hidden": 64}, 200, "positive"),
}


def toy_pair(kind: str) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Source rows, their labels, and target rows: shifted, or with another covariance where `kind` is spread."""
    labels = torch.randint(0, K, (100,))
    means = torch.eye(K, 8) * 3
    source = means[labels] + 0.3 * torch.randn(100, 8)
    target = means[torch.randint(0, K, (100,))] + 0.3 * torch.randn(100, 8)
    change = torch.zeros(8)
    change[5:] = 2.0
    return source, labels, target + (change * torch.randn(100, 1) if kind == "spread" else change)


def toy_distance(kind: str, b: AlignmentBatch) -> float:
    """A distance of the domains that is no objective's own, or the target's uncertainty where `kind` is confusion."""
    b = task_oriented(b, "toy") if kind == "positive" else b
    predictions = b.logits.softmax(1)
    (fs, ft), (ps, pt) = b.split(b.features, "toy"), b.split(predictions, "toy")
    if kind == "spread":
        return float((torch.cov(fs.T) - torch.cov(ft.T)).norm() / torch.cov(fs.T).norm())
    if kind == "confusion":
        return float(1 - pt.max(1).values.mean())
    means = float((fs.mean(0) - ft.mean(0)).norm() / fs.std(0).norm())
    return means if kind == "positive" else min(means, 10 * float((ps.mean(0) - pt.mean(0)).norm()))


# OSBP is for a target with classes of its own: the toy pair has none, and its last class is a known one.
@pytest.mark.parametrize("case", [*sorted({*alignment_names()} - {"osbp"}), "toalign dann", "toalign cdan"])
def test_alignment_reduces_the_distance_of_a_toy_pair(case):
    """With alignment the domains end closer than a linear map trained on the class loss alone leaves them."""
    name = case.rpartition(" ")[2]
    usual = {key: v for key, v in {"hidden": 64, "trade_off": 1.0}.items() if key in alignment_options(name)}
    options, steps, kind = TOY.get(case, (usual, 200, "mean"))
    distances = {}
    for aligned in (False, True):
        torch.manual_seed(0)
        source, labels, target = toy_pair(kind)
        # ToAlign reads features as amounts of something, as they are after a ReLU.
        network = nn.Sequential(nn.Linear(8, D), nn.ReLU() if kind == "positive" else nn.Identity())
        classifier = nn.Linear(D, K)
        alignment = build_alignment({"name": name, **options}, D, K)
        parameters = [*network.parameters(), *classifier.parameters(), *alignment.parameters()]
        optimizer = torch.optim.Adam(parameters, lr=5e-3)
        rows = torch.cat([labels, torch.full((100,), -100)])
        domains = torch.tensor([0] * 100 + [1] * 100)
        for step in range(steps + 1):
            features = network(torch.cat([source, target]))
            weight, logits = classifier.weight, classifier(features)
            for bridge in alignment.classifier_bridges():
                weight, logits = weight - bridge.weight, logits - bridge(features)
            b = AlignmentBatch(features, logits, domains, step / steps, rows, weight)
            if step == steps:
                with torch.no_grad():
                    distances[aligned] = toy_distance(kind, b)
                break
            loss = nn.functional.cross_entropy(logits[:100], labels)
            if aligned:
                loss = loss + alignment(b).loss
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    assert distances[True] < 0.7 * distances[False], distances


def test_objectives_combine_with_weights():
    b = batch()
    both = build([{"name": "dann", "weight": 0.5, "hidden": 7}, {"name": "gvb", "weight": 2.0, "hidden": 7}])
    alone = [objective(b).loss for objective in both.objectives.values()]
    output = both(b)
    torch.testing.assert_close(output.loss, 0.5 * alone[0] + 2.0 * alone[1])
    assert {"dann/domain_loss", "gvb/generator_bridge"} <= set(output.parts)
    assert not any(value.requires_grad for value in output.parts.values())


def test_the_projection_is_part_of_the_state():
    objective = build({"name": "cdan", "max_dim": 12})
    assert {"objectives.cdan.project_features", "objectives.cdan.project_predictions"} <= set(objective.state_dict())
    torch.manual_seed(99)
    again = build_alignment({"name": "cdan", "max_dim": 12}, D, K)
    expected = objective.state_dict()["objectives.cdan.project_features"]
    torch.testing.assert_close(again.state_dict()["objectives.cdan.project_features"].double(), expected)


def test_a_custom_objective_registers_in_a_few_lines():
    @register_alignment("test_mean_distance")
    class MeanDistance(AlignmentObjective):
        def __init__(self, feature_dim: int, num_labels: int, *, power: int = 2) -> None:
            super().__init__(feature_dim, num_labels)
            self.power = power

        def forward(self, batch: AlignmentBatch) -> AlignmentOutput:
            source, target = batch.split(batch.features, "test_mean_distance")
            return AlignmentOutput((source.mean(0) - target.mean(0)).abs().pow(self.power).sum())

    assert alignment_options("test_mean_distance") == {"power": 2}
    b = batch()
    loss = build({"name": "test_mean_distance", "power": 1})(b).loss
    torch.testing.assert_close(loss, (b.features[:5].mean(0) - b.features[5:].mean(0)).abs().sum())
    with pytest.raises(ValueError, match="registered already"):
        register_alignment("dann")(MeanDistance)


def test_specs_are_spelled_out():
    assert normalise_alignment(None) == []
    assert normalise_alignment("gvb") == [{"name": "gvb", "weight": 1.0}]
    assert normalise_alignment([{"name": "dann", "on": "predictions", "weight": 2}, "cdan"]) == [
        {"name": "dann", "weight": 2.0, "on": "predictions"},
        {"name": "cdan", "weight": 1.0},
    ]


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("dan", "did you mean dann"),
        ({"name": "dann", "onn": 1}, "did you mean on"),
        ({"name": "dann", "weight": -1}, "weight"),
        ({"name": "dann", "weight": "much"}, "weight"),
        ({"weight": 1}, "name"),
        (["dann", "dann"], "twice"),
        ({"name": "dann", "on": "labels"}, "features or predictions"),
        ({"name": "dann", "dropout": 2.0}, "dropout"),
        ({"name": "dann", "hidden": "wide"}, "dann"),
        ({"name": "mmd", "on": "logits"}, "features or predictions"),
        ({"name": "mmd", "estimator": "cubic"}, "quadratic or linear"),
        ({"name": "mmd", "multipliers": []}, "multipliers"),
        ({"name": "mmd", "multipliers": [1, -1]}, "multipliers"),
        ({"name": "jmmd", "bandwidth": 0}, "bandwidth"),
        ({"name": "jmmd", "prediction_bandwidth": "wide"}, "prediction_bandwidth"),
        ({"name": "coral", "on": "predictions"}, "features or logits"),
        ({"name": "mcc", "temperature": 0.0}, "temperature"),
        ({"name": "mdd", "gamma": -1.0}, "gamma"),
        ({"name": "cdan", "label_smoothing": 0.5}, "cdan: label_smoothing is 0.5; it must be a number from 0 to 0.5"),
        ({"name": "mdd", "dropout": 2.0}, "mdd: dropout"),
        (7, "must be a name"),
    ],
)
def test_wrong_specs_are_told_in_one_line(spec, message):
    with pytest.raises(UserError, match=message) as caught:
        build_alignment(spec, D, K)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", alignment_names())
def test_a_batch_of_one_domain_is_refused(name):
    b = batch()
    b.domain_labels = torch.zeros(10, dtype=torch.long)
    with pytest.raises(UserError, match=rf"{name}.*0 target rows"):
        build(name)(b)


@pytest.mark.parametrize("name", ["mmd", "jmmd", "coral"])
def test_one_row_of_a_domain_is_too_few_for_a_statistic(name):
    b = batch()
    b.domain_labels = torch.tensor([0] + [1] * 9)
    with pytest.raises(UserError, match=rf"{name}.*1 source rows.*needs 2"):
        build(name)(b)
