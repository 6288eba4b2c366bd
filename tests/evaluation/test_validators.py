"""Validators against independent computations, and on cases where the right order of the models is known."""

import dataclasses
import math
from copy import copy

import numpy as np
import pytest
import torch
from scipy.special import softmax
from scipy.stats import entropy
from sklearn.linear_model import LogisticRegression

from metaalign_hf import UserError
from metaalign_hf.evaluation import (
    CachedOutputs,
    compute_validators,
    get_validator,
    register_validator,
    validator_names,
    validators,
)

K = 3
NAMES = {"source_accuracy", "entropy", "mutual_information", "snd", "bnm", "dev", "a_distance", "agreement"}


def outputs(seed: int = 0, n_s: int = 40, n_t: int = 30, features: int = 5) -> CachedOutputs:
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    labels = torch.randint(0, K, (n_s,), generator=generator)
    return CachedOutputs(
        draw(n_s, features), 2 * draw(n_s, K), labels, draw(n_t, features) + 0.5, 2 * draw(n_t, K), 2 * draw(n_t, K)
    )


def value(name: str, cached: CachedOutputs) -> float:
    return get_validator(name)(cached)


def probabilities(logits: torch.Tensor) -> np.ndarray:
    return softmax(logits.double().numpy(), axis=1)


def test_they_are_all_there_and_all_computed_from_one_cache():
    assert set(validator_names()) == NAMES
    found = compute_validators(outputs())
    assert set(found) == NAMES and all(math.isfinite(v) for v in found.values())
    assert "agreement" not in compute_validators(dataclasses.replace(outputs(), target_logits_augmented=None))
    assert list(compute_validators(outputs(), ["bnm", "dev"])) == ["bnm", "dev"]


def test_target_labels_have_no_place():
    fields = {field.name for field in dataclasses.fields(CachedOutputs)}
    assert not any("target" in name and "label" in name for name in fields)


def test_every_docstring_names_paper_direction_and_failure():
    for name in NAMES:
        text = get_validator(name).function.__doc__
        assert "Source:" in text, name
        assert ("Higher is better" if get_validator(name).higher_is_better else "Lower is better") in text, name
        assert "Falls" in text or "prefers" in text, name


def test_predictions_alone_against_scipy():
    cached = outputs()
    p = probabilities(cached.target_logits)
    rows = entropy(p, axis=1)
    assert value("entropy", cached) == pytest.approx(rows.mean(), rel=1e-9)
    assert value("mutual_information", cached) == pytest.approx(entropy(p.mean(0)) - rows.mean(), rel=1e-9)
    singular = np.linalg.svd(p, compute_uv=False)
    assert value("bnm", cached) == pytest.approx(singular.sum() / math.sqrt(30 * K), rel=1e-9)
    right = (cached.source_logits.numpy().argmax(1) == cached.source_labels.numpy()).mean()
    assert value("source_accuracy", cached) == pytest.approx(right)
    same = cached.target_logits.numpy().argmax(1) == cached.target_logits_augmented.numpy().argmax(1)
    assert value("agreement", cached) == pytest.approx(same.mean())


def test_snd_one_image_at_a_time():
    cached = outputs(n_t=12)
    p = probabilities(cached.target_logits)
    unit = p / np.sqrt((p**2).sum(1, keepdims=True))
    found = []
    for i in range(12):
        similarity = np.array([unit[i] @ unit[j] / 0.05 for j in range(12) if j != i])
        found.append(entropy(softmax(similarity)))
    assert value("snd", cached) == pytest.approx(np.mean(found), rel=1e-6)


def log_odds_by_sklearn(cached: CachedOutputs) -> tuple[np.ndarray, np.ndarray]:
    """Log odds of the target of the source and of the target images, each from the other half's classifier."""
    s, t = cached.source_features.double().numpy(), cached.target_features.double().numpy()
    both = np.concatenate([s, t])
    s, t = ((x - both.mean(0)) / both.std(0, ddof=1) for x in (s, t))
    found = np.empty(len(s)), np.empty(len(t))
    for half in (0, 1):
        rows = np.concatenate([s[half::2], t[half::2]])
        domain = np.concatenate([np.zeros(len(s[half::2])), np.ones(len(t[half::2]))])
        classifier = LogisticRegression(C=1 / (1e-2 * len(rows)), tol=1e-10, max_iter=10_000).fit(rows, domain)
        for x, into in ((s, found[0]), (t, found[1])):
            into[1 - half :: 2] = classifier.decision_function(x[1 - half :: 2])
    return found


def test_dev_and_the_a_distance_against_scikit_learn():
    cached = outputs(n_s=60, n_t=40)
    on_source, on_target = log_odds_by_sklearn(cached)
    w = np.exp(on_source) * 60 / 40
    p = probabilities(cached.source_logits)
    wl = -np.log(p[np.arange(60), cached.source_labels.numpy()]) * w
    eta = -np.cov(wl, w)[0, 1] / np.var(w, ddof=1)
    assert value("dev", cached) == pytest.approx(wl.mean() + eta * w.mean() - eta, rel=1e-4)
    cut = math.log(40 / 60)
    error = ((on_source > cut).mean() + (on_target <= cut).mean()) / 2
    distance = max(0.0, 2 * (1 - 2 * error))
    assert value("a_distance", cached) == pytest.approx(value("source_accuracy", cached) - distance / 2, abs=1e-9)


def test_dev_estimates_the_target_risk_under_covariate_shift():
    """The model is good on one side and bad on the other; the target lies on the one side or on the other."""
    generator = torch.Generator().manual_seed(0)
    x_s = torch.randn(4000, 1, generator=generator, dtype=torch.double)
    labels = torch.zeros(4000, dtype=torch.long)

    def logits(x: torch.Tensor) -> torch.Tensor:
        return torch.cat([2 * x, -2 * x], 1)

    for shift in (-0.7, 0.7):
        x_t = 0.8 * torch.randn(4000, 1, generator=generator, dtype=torch.double) + shift
        risk = torch.nn.functional.cross_entropy(logits(x_t), labels).item()
        plain = torch.nn.functional.cross_entropy(logits(x_s), labels).item()
        dev = value("dev", CachedOutputs(x_s, logits(x_s), labels, x_t, logits(x_t)))
        assert abs(dev - risk) < 0.35 * abs(plain - risk), (dev, risk, plain)


def model(kind: str) -> CachedOutputs:
    """What models of known merit say: good, unadapted (unsure on the target), or collapsed (one class, certain)."""
    generator = torch.Generator().manual_seed(0)
    truth_s, truth_t = (torch.arange(n) % K for n in (60, 60))
    corners = 4 * torch.eye(K, 6)
    f_s, f_t = (corners[y] + 0.5 * torch.randn(60, 6, generator=generator) for y in (truth_s, truth_t))
    logits_s = 2 * f_s[:, :K]
    noise = torch.randn(60, K, generator=generator)
    if kind == "good":
        logits_t, augmented = 2 * f_t[:, :K], 2 * f_t[:, :K] + 0.3 * noise
    elif kind == "unadapted":
        f_t = f_t + torch.tensor([0.0, 0, 0, 5, 5, 5])
        logits_t, augmented = noise, noise + torch.randn(60, K, generator=generator)
    else:
        f_t = corners[torch.zeros(60, dtype=torch.long)] + 0.1 * torch.randn(60, 6, generator=generator)
        logits_t = augmented = torch.tensor([20.0, 0, 0]).expand(60, K)
    return CachedOutputs(f_s, logits_s, truth_s, f_t, logits_t, augmented)


def better(name: str, first: str, second: str) -> bool:
    validator = get_validator(name)
    return validator.score(validator(model(first))) > validator.score(validator(model(second)))


@pytest.mark.parametrize("name", sorted(NAMES - {"source_accuracy", "dev"}))
def test_a_good_model_beats_an_unadapted_one(name):
    assert better(name, "good", "unadapted")


@pytest.mark.parametrize("name", ["mutual_information", "bnm", "a_distance"])
def test_a_good_model_beats_a_collapsed_one(name):
    assert better(name, "good", "collapsed")


@pytest.mark.parametrize("name", ["entropy", "snd", "agreement"])
def test_some_fall_for_collapse_as_documented(name):
    assert not better(name, "good", "collapsed")
    assert "ollaps" in get_validator(name).function.__doc__


def test_the_source_accuracy_tells_none_of_them_apart():
    assert value("source_accuracy", model("good")) == value("source_accuracy", model("collapsed")) > 0.95


def test_the_values_draw_no_random_numbers_and_keep_the_gradient_mode():
    torch.manual_seed(0)
    expected = torch.randn(3)
    torch.manual_seed(0)
    with torch.no_grad():
        first = compute_validators(outputs())
    assert torch.equal(torch.randn(3), expected)
    assert first == compute_validators(outputs())


def test_custom_validators_register(monkeypatch):
    monkeypatch.setattr(validators, "_VALIDATORS", copy(validators._VALIDATORS))

    @register_validator("test_classes_used", higher_is_better=True)
    def classes_used(cached: CachedOutputs) -> float:
        return len(cached.target_logits.argmax(1).unique())

    assert compute_validators(model("good"))["test_classes_used"] == K
    with pytest.raises(ValueError, match="registered already"):
        register_validator("bnm", higher_is_better=True)(classes_used)


def test_bad_input_is_told():
    with pytest.raises(UserError, match="did you mean entropy"):
        get_validator("entrpy")
    with pytest.raises(UserError, match="agreement needs an augmented view"):
        get_validator("agreement")(dataclasses.replace(outputs(), target_logits_augmented=None))
    with pytest.raises(UserError, match="3 target images"):
        outputs(n_t=3)
    with pytest.raises(ValueError, match="do not match: 40, 40, 39"):
        dataclasses.replace(outputs(), source_labels=torch.zeros(39, dtype=torch.long))
    assert get_validator("bnm").score(math.nan) == -math.inf
