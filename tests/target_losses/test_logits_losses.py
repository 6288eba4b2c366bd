"""Target losses of a classifier against their written-out formulas, and in every step."""

import json
import math
from copy import deepcopy

import numpy as np
import pytest
import torch
from torch import nn

from metaalign_hf import UserError, load_config
from metaalign_hf.coordination import MetaAlign
from metaalign_hf.target_losses import (
    SelfTraining,
    TargetContext,
    TargetStep,
    build_target_losses,
    information_maximization,
    normalise_target_losses,
    with_target_losses,
)
from metaalign_hf.target_losses.views import masked_view, strong_view
from metaalign_hf.tasks.building import build_task
from metaalign_hf.training.steps import adaptation_step, build_coordinator
from metaalign_hf.training.weights import WeightAverage
from tests.helpers.runs import TINY

K = 4
CONTEXT = TargetContext(["a", "b", "c", "d"])


def build(spec):
    (loss,) = build_target_losses(spec, CONTEXT)
    return loss


def softmax(x: np.ndarray) -> np.ndarray:
    e = np.exp(x - x.max(1, keepdims=True))
    return e / e.sum(1, keepdims=True)


def logits(seed: int, rows: int = 9) -> torch.Tensor:
    return torch.randn(rows, K, generator=torch.Generator().manual_seed(seed)) * 2


def thresholds_of(kind: str, taught: list[np.ndarray], threshold: float) -> np.ndarray:
    """Thresholds of the last step, from the probabilities of all steps."""
    if kind == "fixed":
        return np.full(K, threshold)
    weights = np.array([0.99 ** (len(taught) - 1 - i) for i in range(len(taught))])

    def average(means: list) -> np.ndarray:
        return sum(w * m for w, m in zip(weights, means, strict=True)) / weights.sum()

    if kind == "adaptive":
        confidence = average([p.max(1).mean() for p in taught])
        of_class = average([p.mean(0) for p in taught])
        return np.minimum(threshold, confidence * of_class / of_class.max())
    shares = [[(p.max(1)[p.argmax(1) == c] >= threshold).sum() / len(p) for c in range(K)] for p in taught]
    sure = average([np.array(share) for share in shares])
    share = sure / sure.max()
    return threshold * share / (2 - share)


@pytest.mark.parametrize("quality", ["none", "confidence"])
@pytest.mark.parametrize("kind", ["fixed", "class_balanced", "adaptive"])
def test_self_training_is_its_formula(kind, quality):
    loss = build({"name": "self_training", "threshold": 0.7, "thresholds": kind, "quality": quality})
    taught, student = [logits(seed) for seed in range(3)], logits(7)
    for step in taught[:-1]:
        loss.losses([step])
    other = build({"name": "self_training", "threshold": 0.7, "thresholds": kind, "quality": quality})
    other.load_state_dict(json.loads(json.dumps(loss.state_dict())))
    (of_logits,), figures = loss.losses([taught[-1]])
    p = softmax(taught[-1].double().numpy())
    limit = thresholds_of(kind, [softmax(t.double().numpy()) for t in taught], 0.7)
    confidence, label = p.max(1), p.argmax(1)
    accepted = confidence >= limit[label]
    weight = accepted * (confidence if quality == "confidence" else 1.0)
    cross_entropy = -np.log(softmax(student.double().numpy())[range(9), label])
    assert float(of_logits(student)) == pytest.approx((weight * cross_entropy).mean(), rel=1e-5)
    assert figures == {"self_training_accepted": pytest.approx(accepted.mean())} and 0 < accepted.mean() < 1
    # Two micro-batches are one; and what a checkpoint kept goes on.
    (first, second), _ = other.losses([taught[-1][:5], taught[-1][5:]])
    halves = (5 * first(student[:5]) + 4 * second(student[5:])) / 9
    torch.testing.assert_close(halves, of_logits(student))
    torch.testing.assert_close(other.thresholds.values(), loss.thresholds.values(), rtol=1e-6, atol=0)


def test_class_balanced_thresholds_are_strict_as_long_as_nothing_is_sure():
    loss = build({"name": "self_training", "threshold": 0.9, "thresholds": "class_balanced"})
    (found,) = loss.label([torch.zeros(6, K)])
    assert loss.thresholds.values().tolist() == [0.9] * K and not found.weights.any()
    assert found.loss(logits(0, 6).requires_grad_()).requires_grad, "a loss of 0 with a gradient of 0"


def test_information_maximization_is_its_formula():
    x = logits(3)
    p = softmax(x.double().numpy())
    sure = -(p * np.log(p)).sum(1).mean()
    diverse = -(p.mean(0) * np.log(p.mean(0))).sum()
    assert float(information_maximization(x)) == pytest.approx(sure - diverse, rel=1e-5)
    (of_logits,), figures = build({"name": "information_maximization", "diversity": 0.3}).losses([torch.empty(0)])
    assert float(of_logits(x)) == pytest.approx(sure - 0.3 * diverse, rel=1e-5) and figures == {}
    best = information_maximization(100 * torch.eye(K))
    assert float(best) == pytest.approx(-math.log(K), rel=1e-4), "every class once, and surely"


def test_masked_consistency_is_its_formula_and_masks_whole_patches():
    taught, student = logits(1), logits(2)
    p = softmax(taught.double().numpy())
    cross_entropy = -np.log(softmax(student.double().numpy())[range(9), p.argmax(1)])
    for quality, weight in (("confidence", p.max(1)), ("none", 1.0)):
        (of_logits,), _ = build({"name": "masked_consistency", "quality": quality}).losses([taught])
        assert float(of_logits(student)) == pytest.approx((weight * cross_entropy).mean(), rel=1e-5)
    images = torch.randn(200, 3, 10, 10) + 5
    masked = masked_view(images, 4, 0.7)
    assert ((masked == 0) | (masked == images)).all()
    kept = (masked != 0).all(1)
    for corner in ((0, 0), (4, 4), (8, 8), (0, 8)):
        patch = kept[:, corner[0] : corner[0] + 4, corner[1] : corner[1] + 4].flatten(1)
        assert (patch.all(1) | ~patch.any(1)).all(), "a patch is kept or left out as a whole"
    assert kept.float().mean() == pytest.approx(0.3, abs=0.05)
    assert not masked_view(images, 4, 1.0).any() and torch.equal(masked_view(images, 4, 0.0), images)


def test_the_strong_view_is_another_one_for_each_image_and_draws_from_torchs_numbers():
    mean, std = (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)
    shift, scale = torch.tensor(mean).view(3, 1, 1), torch.tensor(std).view(3, 1, 1)
    pixels = (torch.randint(0, 256, (6, 3, 12, 12)).float() / 255 - shift) / scale

    def view(seed: int, **options: int) -> torch.Tensor:
        torch.manual_seed(seed)
        return strong_view(pixels, mean, std, **options)

    assert torch.equal(view(3), view(3)) and not torch.equal(view(3), view(4))
    colours = view(5, magnitude=20) * scale + shift
    assert colours.min() > -1e-5 and colours.max() < 1 + 1e-5
    torch.testing.assert_close(view(0, operations=1, magnitude=0)[0].shape, pixels[0].shape)


def test_a_weight_waits_and_then_rises():
    loss = build({"name": "information_maximization", "weight": 2.0, "burn_in": 0.25, "ramp_up": 0.5})
    found = [loss.weight_at(done) for done in (0.0, 0.24, 0.25, 0.5, 0.75, 1.0)]
    assert found == pytest.approx([0, 0, 0, 1, 2, 2])


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("selftraining", "training.target_losses: unknown target loss 'selftraining'.*self_training"),
        ({"name": "self_training", "threshold": 1.2}, "self_training: threshold is 1.2: it must lie in 0..1"),
        ({"name": "self_training", "threshold": "high"}, "threshold is 'high': it must lie in 0..1"),
        ({"name": "self_training", "tresholds": "fixed"}, "unknown option 'tresholds'.*thresholds"),
        ({"name": "self_training", "magnitude": 31}, "magnitude is 31: it must be a whole number from 0 to 30"),
        ({"name": "masked_consistency", "mask_ratio": 2}, "mask_ratio is 2: it must lie in 0..1"),
        ({"name": "information_maximization", "diversity": -1}, "diversity is -1"),
        ({"name": "self_training", "weight": -1}, "target_losses self_training: weight is -1"),
        ({"name": "self_training", "burn_in": 1.5}, "burn_in is 1.5: it must lie in 0..1"),
        ({"name": "self_training", "burn_in": 0.6, "ramp_up": 0.6}, "burn_in and ramp_up are 1.2 together"),
        (["self_training", "self_training"], "self_training is named twice"),
        ("mean_teacher", "mean_teacher is for object-detection; for image-classification: .*self_training"),
    ],
)
def test_bad_specs_are_refused(spec, words):
    with pytest.raises(UserError, match=words):
        build_target_losses(spec, CONTEXT)
    assert normalise_target_losses(None) == []


def test_a_mask_fits_into_the_image():
    options = {"training.target_losses": {"name": "masked_consistency", "mask_size": 17}}
    with pytest.raises(UserError, match="mask_size is 17: a patch must fit into the image of 16 x 16 pixels"):
        build_task(load_config(TINY, options))
    task = build_task(load_config(TINY, {"training.target_losses": "masked_consistency"}))
    assert task.target_losses[0].mask_size == 5, "2/7 of 16"


STEPS = {
    "joint": {"method": "joint"},
    "remembered": {"direction": "remembered"},
    "role": {"direction": "remembered", "remember": "role"},
    "fresh": {"direction": "fresh"},
    "last stage": {"inner_scope": "last_stage"},
    "second order": {"order": 2},
    "smoothed": {"smoothing": 0.02},
    "extragradient": {"method": "extragradient", "direction": "remembered"},
    "heun": {"method": "heun", "direction": "remembered"},
    "pga": {"method": "pga", "direction": "remembered"},
}


@pytest.fixture(scope="module")
def pair():
    return build_task(load_config(TINY)).pair


@pytest.mark.parametrize("alignment", [None, {"name": "dann", "hidden": 16}], ids=["alone", "dann"])
def test_every_step_takes_every_target_loss_with_and_without_alignment(alignment, pair):
    """The joint gradient is that of the sum of all terms; a fresh step without an inner one is the same."""
    spec = [
        {"name": "self_training", "threshold": 0.0, "weight": 0.5, "operations": 0},
        {"name": "masked_consistency", "weight": 2.0, "mask_ratio": 0.0},
        "information_maximization",
    ]
    config = load_config(TINY, {"model.alignment": alignment, "training.target_losses": spec})
    torch.manual_seed(0)
    task = build_task(config, pair)
    model = task.model.train()
    for layer in model.modules():
        if isinstance(layer, nn.Dropout):
            layer.eval()
    teacher = WeightAverage(model, 0.9).module
    with torch.no_grad():
        for parameter in teacher.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    source, target = ([next(stream) for _ in range(2)] for stream in task.streams(0, 0, 0, 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    parameters = list(model.parameters())
    start = {name: value.clone() for name, value in model.state_dict().items()}

    def gradient(settings: dict, progress: float = 0.5, build=build_coordinator) -> tuple:
        model.load_state_dict(start)
        step = TargetStep(
            model, teacher, source, target, progress, None, lambda s, v, loss: task.logits_pass(model, s, v, loss)
        )
        closures, _ = with_target_losses(task.closures(model, source, target, progress), task.target_losses, step)
        changes = {f"coordination.{key}": value for key, value in settings.items()}
        coordination = load_config(TINY, {**changes, "model.alignment": alignment}).coordination
        report = adaptation_step(build(coordination, optimizer, model, _Plain()), closures, 0)
        return report, [p.grad for p in parameters]

    def expected() -> torch.Tensor:
        total = torch.zeros(())
        for s, t in zip(source, target, strict=True):
            pixels, count = torch.cat([s["pixel_values"], t["pixel_values"]]), len(s["labels"])
            domains = torch.cat([torch.zeros(count), torch.ones(len(pixels) - count)]).long()
            labels = torch.cat([s["labels"], torch.full((len(pixels) - count,), -100)])
            output = model(pixels, labels=labels, domain_labels=domains, progress=0.5)
            with torch.no_grad():
                taught = teacher(t["pixel_values"]).logits.softmax(1).max(1)
            of_target = output.logits[count:]
            entropies = nn.functional.cross_entropy(of_target, taught.indices, reduction="none")
            total = total + output.loss + 0.5 * entropies.mean() + 2 * (taught.values * entropies).mean()
            total = total + information_maximization(of_target)
        return total / 2

    model.load_state_dict(start)
    wanted = torch.autograd.grad(expected(), parameters, allow_unused=True)
    found = {name: gradient(settings) for name, settings in STEPS.items()}
    found["still"] = gradient({}, build=lambda c, o, m, a: MetaAlign(o, 0.0, module=m))
    for name in ("joint", "remembered", "still"):
        report, gradients = found[name]
        for p, g, w in zip(parameters, gradients, wanted, strict=True):
            zero = torch.zeros_like(p)
            torch.testing.assert_close(zero if g is None else g, zero if w is None else w, rtol=1e-3, atol=1e-4)
        assert torch.isfinite(report.task_loss) and float(report.alignment_loss) != 0
    for name, (_, gradients) in found.items():
        assert all(g is None or torch.isfinite(g).all() for g in gradients), name
        assert any(g is not None and g.abs().max() > 0 for g in gradients), name
    # In a burn-in there is nothing to learn from the target: the task's gradient, or the step without target losses.
    for loss in task.target_losses:
        loss.burn_in = 0.9
    for settings in ({"method": "joint"}, {"direction": "fresh"}):
        report, _ = gradient(settings)
        assert torch.isfinite(report.task_loss)
        assert (float(report.alignment_loss) == 0) == (alignment is None)


class _Plain:
    """What the coordinators need of accelerate: a plain backward."""

    distributed_type, scaler, is_fsdp2 = "NO", None, False

    @staticmethod
    def backward(loss: torch.Tensor) -> None:
        loss.backward()


def test_the_share_that_is_right_is_for_the_report_alone():
    loss = build({"name": "self_training", "threshold": 0.6})
    assert isinstance(loss, SelfTraining)
    before = deepcopy(loss.state_dict())
    found = loss.judge(torch.tensor([[9.0, 0, 0, 0], [0, 9.0, 0, 0], [0.1, 0, 0, 0]]), torch.tensor([0, 3, 0]))
    assert found == (3, 2, 1) and loss.state_dict() == before
    loss.judged = found
    assert "of the 3 labelled test images 2 have one at the end, and 50.0 % of these are right" in loss.note(1)
