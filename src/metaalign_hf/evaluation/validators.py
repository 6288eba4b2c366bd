"""Validators: which of several models is best on the target, told without a target label.

A validator is a function of one `CachedOutputs`, what a model says about some labelled source images and some
unlabelled target images. Target labels have no place in it. No validator is right always: each one's docstring names
what it falls for, and `training.select_by` guards every one of them with the source accuracy.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import UserError
from ..progress import track
from ..registry import Registry
from .citations import A_DISTANCE, AGREEMENT, BNM, DEV, ENTROPY, MUTUAL_INFORMATION, SND

__all__ = [
    "FEWEST_IMAGES",
    "CachedOutputs",
    "Validator",
    "compute_validators",
    "get_validator",
    "register_validator",
    "validator_names",
]

FEWEST_IMAGES = 4
"""Images of each domain that every validator needs."""


@dataclass(frozen=True)
class CachedOutputs:
    """What a model says about N_s source and N_t target images, all in one order per domain; N_s may be 0.

    Attributes:
        source_features: `(N_s, D)`.
        source_logits: `(N_s, K)`.
        source_labels: Class indices `(N_s,)`.
        target_features: `(N_t, D)`.
        target_logits: `(N_t, K)`.
        target_logits_augmented: Logits `(N_t, K)` of an augmented view of the same target images; None where there is
            none.
    """

    source_features: Tensor
    source_logits: Tensor
    source_labels: Tensor
    target_features: Tensor
    target_logits: Tensor
    target_logits_augmented: Tensor | None = None

    def __post_init__(self) -> None:
        sizes = {
            "source": (len(self.source_features), len(self.source_logits), len(self.source_labels)),
            "target": (len(self.target_features), len(self.target_logits)),
        }
        if self.target_logits_augmented is not None:
            sizes["target"] = (*sizes["target"], len(self.target_logits_augmented))
        for domain, rows in sizes.items():
            if len(set(rows)) > 1:
                raise ValueError(f"the {domain} rows do not match: {', '.join(map(str, rows))}")
            if rows[0] < FEWEST_IMAGES and (domain == "target" or rows[0] > 0):
                raise UserError(
                    f"validators need {FEWEST_IMAGES} images of each domain; there are {rows[0]} {domain} images"
                )


@dataclass(frozen=True)
class Validator:
    """A validator with what must be known to use it.

    Attributes:
        name: Its name.
        higher_is_better: Whether the best model has the highest value, or the lowest.
        needs_augmented: Whether it needs an augmented view of the target.
        needs_source: Whether it needs source images.
        function: Its value.
    """

    name: str
    higher_is_better: bool
    needs_augmented: bool
    needs_source: bool
    function: Callable[[CachedOutputs], float]

    def __call__(self, outputs: CachedOutputs) -> float:
        """The value, computed in double precision on the CPU.

        Raises:
            UserError: If the outputs lack the augmented view that it needs.
        """
        if self.needs_source and len(outputs.source_logits) == 0:
            raise UserError(f"validator {self.name} needs source images")
        if self.needs_augmented and outputs.target_logits_augmented is None:
            raise UserError(f"validator {self.name} needs an augmented view of the target images")
        return float(self.function(_in_double(outputs)))

    def score(self, value: float) -> float:
        """The value turned so that higher is better; minus infinity where it is not a number."""
        if math.isnan(value):
            return -math.inf
        return value if self.higher_is_better else -value


_VALIDATORS: Registry[Validator] = Registry("validator", "validator {!r} is unknown", cited_as="validator")


def register_validator(
    name: str,
    *,
    higher_is_better: bool,
    needs_augmented: bool = False,
    needs_source: bool = False,
    citation: str | None = None,
) -> Callable[[Callable[[CachedOutputs], float]], Callable[[CachedOutputs], float]]:
    """Make a function of `CachedOutputs` known by name: a decorator.

    Args:
        name: The name; it must be free.
        higher_is_better: Whether the best model has the highest value, or the lowest.
        needs_augmented: Whether it reads `target_logits_augmented`.
        needs_source: Whether it reads what the model says of the source.
        citation: BibTeX of the publication, which model cards of runs that select by it then cite.

    Raises:
        ValueError: If another function has the name, or the citation is not BibTeX.
    """

    def make(function: Callable[[CachedOutputs], float]) -> Validator:
        return Validator(name, higher_is_better, needs_augmented, needs_source, function)

    return _VALIDATORS.register(name, make, citation=citation)


def validator_names() -> list[str]:
    """Names of all registered validators."""
    return _VALIDATORS.names()


def get_validator(name: str) -> Validator:
    """A validator by name.

    Raises:
        UserError: If there is no such validator.
    """
    return _VALIDATORS[name]


def compute_validators(outputs: CachedOutputs, names: Iterable[str] | None = None) -> dict[str, float]:
    """The values of validators, all from the same outputs.

    Args:
        outputs: What the model says.
        names: Which validators; by default all that the outputs suffice for.

    Returns:
        The value of each, by name.

    Raises:
        UserError: If a name is unknown, or a validator needs what the outputs lack.
    """
    if names is None:
        augmented = outputs.target_logits_augmented is not None
        names = [name for name in validator_names() if augmented or not get_validator(name).needs_augmented]
        if len(outputs.source_logits) == 0:
            names = [name for name in names if not get_validator(name).needs_source]
    names = list(names)
    if not all(bool(torch.isfinite(values).all()) for values in vars(outputs).values() if values is not None):
        return dict.fromkeys(names, math.nan)  # a model that diverged; decompositions would fail
    return {name: get_validator(name)(outputs) for name in track(names, "validators", len(names), "validators")}


@register_validator("source_accuracy", higher_is_better=True, needs_source=True)
def source_accuracy(outputs: CachedOutputs) -> float:
    """Share of source images classified correctly, in 0..1. Higher is better.

    It knows nothing of the target: it prefers models that do not adapt at all. Good as a guard, since a model that
    lost the task on the source has lost it on the target too.

    Source: the usual control, e.g. Musgrave et al., "Unsupervised Domain Adaptation: A Reality Check", 2021.
    """
    return float((outputs.source_logits.argmax(1) == outputs.source_labels).double().mean())


@register_validator("entropy", higher_is_better=False, citation=ENTROPY)
def entropy(outputs: CachedOutputs) -> float:
    """Mean entropy of the target's predictions, in nats, 0..log K. Lower is better.

    Falls for confident collapse: a model that gives every target image the same class with certainty has 0, the best
    value; and for objectives that minimise it, such as mcc.

    Source: Morerio et al., "Minimal-Entropy Correlation Alignment for Unsupervised Deep Domain Adaptation", ICLR
    2018, which chooses its hyper-parameters by it.
    """
    return float(_entropy(outputs.target_logits.log_softmax(1)).mean())


@register_validator("mutual_information", higher_is_better=True, citation=MUTUAL_INFORMATION)
def mutual_information(outputs: CachedOutputs) -> float:
    """Mutual information of target image and predicted class, `H(mean p) - mean H(p)`, in 0..log K. Higher is better.

    Asks for confident predictions that are spread over the classes, so the collapse onto one class that entropy falls
    for has 0. Falls for confident mistakes (classes that are swapped score as well as right ones), and is unfair to
    targets with unbalanced classes.

    Source: Krause et al., "Discriminative Clustering by Regularized Information Maximization", NeurIPS 2010; as a
    validator Musgrave et al., "Three New Validators and a Large-Scale Benchmark Ranking for Unsupervised Domain
    Adaptation", 2022.
    """
    log_p = outputs.target_logits.log_softmax(1)
    mean = log_p.exp().mean(0)
    return float(-torch.special.xlogy(mean, mean).sum() - _entropy(log_p).mean())


@register_validator("snd", higher_is_better=True, citation=SND)
def soft_neighbourhood_density(outputs: CachedOutputs, temperature: float = 0.05) -> float:
    """Soft neighbourhood density: the entropy of the similarities of target predictions, in 0..log(N_t - 1).

    With u_i the prediction of a target image, of length 1, and P_i the softmax of `u_i . u_j / temperature` over j !=
    i: `mean_i H(P_i)`. Higher is better: every image lies in a dense neighbourhood of its like.

    Falls for collapse: if all images get the same prediction, all are neighbours, and the value is at its maximum; so
    it prefers models that are unsure of everything to confident ones. Depends on N_t: compare values of equally many
    images only.

    Source: Saito et al., "Tune it the Right Way: Unsupervised Validation of Domain Adaptation via Soft Neighborhood
    Density", ICCV 2021, section 3.
    """
    unit = F.normalize(outputs.target_logits.softmax(1))
    others = ~torch.eye(len(unit), dtype=torch.bool)
    similarities = (unit @ unit.T)[others].reshape(len(unit), -1) / temperature
    return float(_entropy(similarities.log_softmax(1)).mean())


@register_validator("bnm", higher_is_better=True, citation=BNM)
def batch_nuclear_norm(outputs: CachedOutputs) -> float:
    """Nuclear norm of the target's prediction matrix P `(N_t, K)`, `|P|_* / sqrt(N_t min(N_t, K))`, in 0..1.

    Higher is better: it grows with confidence and with the number of classes predicted. All images form one batch.

    Falls for confident mistakes, for targets with unbalanced classes, and for objectives that raise it.

    Source: Cui et al., "Towards Discriminability and Diversity: Batch Nuclear-norm Maximization under Label
    Insufficient Situations", CVPR 2020; as a validator Musgrave et al. 2022 (see `mutual_information`).
    """
    p = outputs.target_logits.softmax(1)
    return float(torch.linalg.matrix_norm(p, "nuc") / math.sqrt(len(p) * min(p.shape)))


@register_validator("dev", higher_is_better=False, needs_source=True, citation=DEV)
def deep_embedded_validation(outputs: CachedOutputs) -> float:
    """Deep embedded validation: the source loss, weighted towards images that look like the target. Lower is better.

    With l_i the cross entropy of a source image and w_i = p(target | f_i) / p(source | f_i) N_s / N_t from a domain
    classifier on the features::

        eta = -Cov(l w, w) / Var(w)
        DEV = mean(l w) + eta mean(w) - eta

    where eta, a control variate, lowers the variance. The domain classifier is a logistic regression, fitted without
    the source images that it then weights (two halves, each weighted by the classifier of the other).

    Falls where the domains do not overlap: a few source images then carry all the weight and the value is noise; and
    where features are aligned with the wrong classes on top of one another.

    Source: You et al., "Towards Accurate Model Selection in Deep Unsupervised Domain Adaptation", ICML 2019, section 4.
    """
    losses = F.cross_entropy(outputs.source_logits, outputs.source_labels, reduction="none")
    log_odds = _cross_fitted(outputs)[: len(losses)]
    weights = (log_odds + math.log(len(losses) / len(outputs.target_features))).clamp(max=50).exp()
    weighted = losses * weights
    variance = weights.var()
    eta = -torch.cov(torch.stack([weighted, weights]))[0, 1] / variance if variance > 0 else weights.new_zeros(())
    return float(weighted.mean() + eta * weights.mean() - eta)


@register_validator("a_distance", higher_is_better=True, needs_source=True, citation=A_DISTANCE)
def distance_corrected_accuracy(outputs: CachedOutputs) -> float:
    """Source accuracy less half the proxy A-distance of the features, in -1..1. Higher is better.

    With e the error of a domain classifier (logistic regression, balanced domains, on images that it was not fitted
    on): `accuracy - d / 2`, `d = 2 (1 - 2 e)` and not below 0. The target's error is at most the source's plus half
    the divergence plus that of the best common classifier; this is the first two of the three.

    Falls where the third is large: features that are aligned with the wrong classes on top of one another. Says
    little where every model's features can be told apart perfectly, as wide features of few images often can.

    Source: Ben-David et al., "A theory of learning from different domains", Machine Learning 2010, theorem 2; the proxy
    distance of Ben-David et al., NeurIPS 2006.
    """
    says_target = _cross_fitted(outputs) > math.log(len(outputs.target_features) / len(outputs.source_features))
    split = len(outputs.source_features)
    error = (says_target[:split].double().mean() + (~says_target[split:]).double().mean()) / 2
    return source_accuracy(outputs) - max(0.0, float(1 - 2 * error))


@register_validator("agreement", higher_is_better=True, needs_augmented=True, citation=AGREEMENT)
def augmentation_agreement(outputs: CachedOutputs) -> float:
    """Share of target images that keep their predicted class in an augmented view, in 0..1. Higher is better.

    Falls for collapse (a constant prediction always agrees) and for consistent mistakes; says little where the
    augmentation is weak.

    Source: Sajjadi et al., "Regularization With Stochastic Transformations and Perturbations for Deep Semi-Supervised
    Learning", NeurIPS 2016, measures it as stability; that disagreement tracks test error: Jiang et al., "Assessing
    Generalization of SGD via Disagreement", ICLR 2022.
    """
    assert outputs.target_logits_augmented is not None
    return float((outputs.target_logits.argmax(1) == outputs.target_logits_augmented.argmax(1)).double().mean())


def _entropy(log_probabilities: Tensor) -> Tensor:
    """Entropy `(N,)` in nats of log-probabilities `(N, K)`."""
    return -(log_probabilities.exp() * log_probabilities).sum(1)


def _in_double(outputs: CachedOutputs) -> CachedOutputs:
    values = {
        name: value.detach().cpu() if name == "source_labels" else value.detach().cpu().double()
        for name, value in vars(outputs).items()
        if value is not None
    }
    return CachedOutputs(**values)


def _cross_fitted(outputs: CachedOutputs) -> Tensor:
    """Log odds of the target `(N_s + N_t,)` of every image, from a domain classifier that was not fitted on it.

    Images of even and odd position form the two halves; the caller's order must not depend on the class.
    """
    rows = torch.cat([outputs.source_features, outputs.target_features])
    rows = (rows - rows.mean(0)) / rows.std(0).clamp_min(1e-12)
    sizes = len(outputs.source_features), len(outputs.target_features)
    is_target = torch.cat([torch.zeros(sizes[0]), torch.ones(sizes[1])]).double()
    odd = torch.cat([torch.arange(size) % 2 for size in sizes]).bool()
    log_odds = torch.empty(len(rows), dtype=torch.double)
    for fitted in (odd, ~odd):
        log_odds[~fitted] = _logistic_regression(rows[fitted], is_target[fitted])(rows[~fitted])
    return log_odds


def _logistic_regression(rows: Tensor, is_target: Tensor, penalty: float = 1e-2) -> Callable[[Tensor], Tensor]:
    """A linear classifier fitted to rows `(N, D)`, with `penalty |w|^2 / 2` on its weights; gives log odds `(M,)`."""
    # Plain tensors from 0: nothing here may draw from the random numbers of training.
    weight = torch.zeros(rows.shape[1], dtype=rows.dtype, requires_grad=True)
    bias = torch.zeros((), dtype=rows.dtype, requires_grad=True)
    optimizer = torch.optim.LBFGS([weight, bias], max_iter=50, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = F.binary_cross_entropy_with_logits(rows @ weight + bias, is_target)
        loss = loss + 0.5 * penalty * weight.square().sum()
        loss.backward()
        return loss

    with torch.enable_grad():
        optimizer.step(closure)
    return lambda new: new @ weight.detach() + bias.detach()
