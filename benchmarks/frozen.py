"""One adaptation run of a small network on frozen features, in about a second: the breadth of `accuracy.py`.

The network is two hidden layers of 128 units and a classifier. Steps, objectives, schedules and validators are the
package's; only the loop is this file's, so that nothing is read from disk.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metaalign_hf.alignment import AlignmentBatch, build_alignment
from metaalign_hf.coordination import Game, Joint, MetaAlign, RememberedMetaAlign, StepClosures
from metaalign_hf.evaluation import CachedOutputs, get_validator
from metaalign_hf.target_losses import TargetContext, TargetStep, build_target_losses, with_target_losses
from metaalign_hf.training.schedules import learning_rate_factor
from metaalign_hf.training.weights import WeightAverage

WIDTH = 128
BATCH = 32
OPTIONS = {"dann": {"hidden": 128}, "cdan": {"hidden": 128}, "gvb": {"hidden": 128}, "mcc": {}}
FIGURES = tuple(f"{domain}_{name}" for domain in ("source", "target", "whole") for name in ("class_mean", "accuracy"))


@dataclass(frozen=True)
class Domain:
    """Frozen features of a domain.

    Attributes:
        features: `(n, views, D)`; view 0 is the one that is evaluated.
        labels: Class indices `(n,)`; of a target they are used to report accuracy and for nothing else.
        is_test: `(n,)`, whether an image is in the test split.
        student: By target loss, features of views of the training images that only its student sees, `(n, views, D)`.
    """

    features: Tensor
    labels: Tensor
    is_test: Tensor
    student: dict[str, Tensor] = field(default_factory=dict)


class Network(nn.Module):
    """Two hidden layers, a classifier and an alignment objective."""

    alignment_scale: Tensor | None = None

    def __init__(self, width: int, classes: int, objective: str) -> None:
        super().__init__()
        self.backbone = nn.Sequential(nn.Linear(width, WIDTH), nn.ReLU(), nn.Linear(WIDTH, WIDTH), nn.ReLU())
        self.classifier = nn.Linear(WIDTH, classes)
        names = [] if objective == "none" else objective.split(" + ")
        self.alignment = build_alignment([{"name": name, **OPTIONS[name]} for name in names], WIDTH, classes)

    def parameter_groups(self, lr: float) -> list[dict[str, Any]]:
        """What trains at which learning rate: everything at the same."""
        return [{"params": list(self.parameters()), "lr": lr}]

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Hidden features and logits."""
        features = self.backbone(images)
        logits = self.classifier(features)
        for bridge in self.alignment.classifier_bridges() if self.alignment is not None else ():
            logits = logits - bridge(features)
        return features, logits

    def task_loss(self, features: Tensor, logits: Tensor, labels: Tensor) -> Tensor:
        """Cross entropy of the source rows, which come first."""
        rows = len(labels)
        loss = F.cross_entropy(logits[:rows], labels)
        penalty = self.alignment.task_penalty(features[:rows]) if self.alignment is not None else None
        return loss if penalty is None else loss + penalty

    def alignment_loss(self, features: Tensor, logits: Tensor, labels: Tensor, progress: float) -> Tensor:
        """The alignment loss of the whole batch."""
        assert self.alignment is not None
        rows = len(labels)
        unknown = labels.new_full((len(logits) - rows,), -100)
        domains = torch.cat([labels.new_zeros(rows), labels.new_ones(len(logits) - rows)])
        known = torch.cat([labels, unknown])
        batch = AlignmentBatch(features, logits, domains, progress, known, self.classifier.weight)
        return self.alignment(batch if self.alignment_scale is None else batch.scaled(self.alignment_scale)).loss


Coordinate = Callable[[torch.optim.Optimizer, Network], Any]


def run(
    source: Domain,
    target: Domain,
    objective: str,
    coordinate: Coordinate | None,
    *,
    lr: float,
    steps: int,
    seed: int,
    optimizer: str = "sgd",
    network_of: Callable[[int, int, str], Network] = Network,
    target_losses: Any = None,
    source_lr: float | None = None,
    evaluate: Callable[[Network, Domain, Domain, int], dict[str, Any]] | None = None,
) -> dict[str, Any]:
    """Adapt from scratch and evaluate the last network, or the average of the weights where a target loss keeps one.

    Args:
        source: The labelled domain.
        target: The other one.
        objective: Name of the alignment objective, or several with ` + `; `none` has no alignment.
        coordinate: Makes the coordinator; None trains on the source alone.
        lr: Learning rate; of which part, the network says.
        steps: Number of steps.
        seed: Seed of everything.
        optimizer: `sgd` or `adamw`.
        network_of: Makes the network.
        target_losses: As `training.target_losses`.
        source_lr: Learning rate of as many steps on the source alone, after which the source is gone: then the target
            losses train the network alone, with its classifier frozen.
        evaluate: Gives other figures of the trained network than those said below.

    Returns:
        Shares of 0..1 on the test splits: accuracy, class mean and average precision of the target, class mean of the
        source; the validator bnm; seconds per step. For a run that diverges, chance.
    """
    torch.manual_seed(seed)
    classes = int(source.labels.max()) + 1
    network = network_of(source.features.shape[-1], classes, objective)
    generator = torch.Generator().manual_seed(seed)
    draws = [Draw(domain, generator) for domain in (source, target)]
    if source_lr is not None:
        train_steps(network, None, draws, source_lr, steps, optimizer)
        network.classifier.requires_grad_(False)
    terms = None if target_losses is None else _TargetTerms(target_losses, network, target, classes, seed)
    started = time.perf_counter()
    try:
        train_steps(network, coordinate, draws, lr, steps, optimizer, terms, source_free=source_lr is not None)
    except FloatingPointError:
        return {**dict.fromkeys(FIGURES, 1 / classes), "bnm": 0.0, "diverged": 1.0, "seconds_per_step": 0.0}
    seconds = (time.perf_counter() - started) / steps
    kept = network if terms is None or terms.average is None else terms.average.module
    return {**(evaluate or _evaluate)(kept, source, target, classes), "seconds_per_step": seconds}


def train_steps(
    network: Network,
    coordinate: Coordinate | None,
    draws: list[Draw],
    lr: float,
    steps: int,
    optimizer: str,
    terms: _TargetTerms | None = None,
    source_free: bool = False,
    foreach: bool | None = True,
) -> None:
    """The steps of a run; `draws` are those of source and target, `coordinate` None trains on the source alone."""
    groups = network.parameter_groups(lr)
    rates = [group["lr"] for group in groups]
    if optimizer == "sgd":
        stepper: torch.optim.Optimizer = torch.optim.SGD(
            groups, momentum=0.9, nesterov=True, weight_decay=5e-4, foreach=foreach
        )
    else:
        stepper = torch.optim.AdamW(groups, weight_decay=5e-4)
    coordinator = coordinate(stepper, network) if coordinate is not None else None
    network.train()
    for step in range(steps):
        for group, rate in zip(stepper.param_groups, rates, strict=True):
            group["lr"] = rate * learning_rate_factor("inverse", step, steps)
        done = step / steps
        if source_free:
            assert terms is not None
            stepper.zero_grad()
            passes = terms.added(StepClosures(), draws[1]()[0], draws[1].chosen, done).alignment
            for run_pass in passes:
                (run_pass() / len(passes)).backward()
        elif coordinator is None:
            stepper.zero_grad()
            images, labels = draws[0]()
            network.task_loss(*network(images), labels).backward()
        else:
            images, labels = draws[0]()
            unlabelled, _ = draws[1]()
            closures = _closures(network, images, labels, unlabelled, done)
            if terms is not None:
                closures = terms.added(closures, unlabelled, draws[1].chosen, done)
            if (share := coordinator.share) is not None:  # as `training.gradient` does
                if share.due(step):
                    network.alignment_scale = None
                    full = _closures(network, images, labels, unlabelled, 1.0)
                    share.take(*coordinator.shared_norms(full.task, full.alignment))
                network.alignment_scale = torch.tensor(share.scale)
            coordinator.backward(closures.task, closures.alignment, both=closures.both, step=step)
        stepper.step()
        if terms is not None and terms.average is not None:
            terms.average.update(network, step + 1)


def _closures(network: Network, images: Tensor, labels: Tensor, unlabelled: Tensor, done: float) -> StepClosures:
    """The passes of a step."""
    both = torch.cat([images, unlabelled])

    def task() -> Tensor:
        return network.task_loss(*network(images), labels)

    if network.alignment is None:
        return StepClosures([task], [], [lambda: ((loss := task()), torch.zeros_like(loss))])

    def joint() -> tuple[Tensor, Tensor]:
        features, logits = network(both)
        aligned = network.alignment_loss(features, logits, labels, done)
        return network.task_loss(features, logits, labels), aligned

    def alignment() -> Tensor:
        return network.alignment_loss(*network(both), labels, done)

    return StepClosures([task], [alignment], [joint])


class _TargetTerms:
    """Target losses of a run, whose students see the cached views of a domain."""

    def __init__(self, spec: Any, network: Network, target: Domain, classes: int, seed: int) -> None:
        self.losses = build_target_losses(spec, TargetContext([str(label) for label in range(classes)]))
        taught = any(loss.needs_teacher for loss in self.losses)
        self.average = WeightAverage(network, 0.999) if taught else None
        self.network, self.views = network, target.student
        self.generator = torch.Generator().manual_seed(seed)

    def added(self, closures: StepClosures, images: Tensor, chosen: Tensor, done: float) -> StepClosures:
        """The passes with those of the target losses on these images, which are the `chosen` training images."""
        for loss in self.losses:
            if loss.name in self.views:
                views = self.views[loss.name]
                which = torch.randint(views.shape[1], (len(chosen),), generator=self.generator)
                loss.view = lambda _, seen=views[chosen, which]: seen
        teacher = self.network if self.average is None else self.average.module

        def logits_pass(_: Any, view: Any, loss: Callable[[Tensor], Tensor]) -> Callable[[], Tensor]:
            return lambda: loss(self.network(view["pixel_values"])[1])

        step = TargetStep(
            self.network,
            lambda values: SimpleNamespace(logits=teacher(values)[1]),
            [{}],
            [{"pixel_values": images}],
            done,
            logits_pass,
            logits_pass,
        )
        return with_target_losses(closures, self.losses, step)[0]


class Draw:
    """Endless random batches of a domain's training images, each image in a random view."""

    def __init__(self, domain: Domain, generator: torch.Generator) -> None:
        rows = ~domain.is_test
        self.features, self.labels, self.generator = domain.features[rows], domain.labels[rows], generator
        self.order = torch.empty(0, dtype=torch.long)

    def __call__(self) -> tuple[Tensor, Tensor]:
        if len(self.order) < BATCH:
            self.order = torch.randperm(len(self.labels), generator=self.generator)
        self.chosen, self.order = self.order[:BATCH], self.order[BATCH:]
        views = torch.randint(self.features.shape[1], (BATCH,), generator=self.generator)
        return self.features[self.chosen, views], self.labels[self.chosen]


@torch.no_grad()
def _evaluate(network: Network, source: Domain, target: Domain, classes: int) -> dict[str, Any]:
    from torchmetrics.functional.classification import multiclass_accuracy, multiclass_average_precision

    network.eval()
    outputs = {}
    for name, domain, rows in (
        ("source", source, source.is_test),
        ("target", target, target.is_test),
        ("unlabelled", target, ~target.is_test),
    ):
        features, logits = network(domain.features[rows, 0])
        outputs[name] = (features, logits, domain.labels[rows])
    # Of the validators only the package's default, which costs nothing.
    found: dict[str, Any] = {"bnm": get_validator("bnm")(CachedOutputs(*outputs["source"], *outputs["unlabelled"][:2]))}
    outputs["whole"] = tuple(torch.cat(pair) for pair in zip(outputs["target"], outputs["unlabelled"], strict=True))
    for name in ("source", "target", "whole"):
        _, logits, labels = outputs[name]
        found[f"{name}_class_mean"] = float(multiclass_accuracy(logits, labels, classes, average="macro"))
        found[f"{name}_accuracy"] = float(multiclass_accuracy(logits, labels, classes, average="micro"))
    _, logits, labels = outputs["target"]
    found["target_average_precision"] = float(multiclass_average_precision(logits.softmax(1), labels, classes))
    return found


class Noise(RememberedMetaAlign):
    """A control: as `RememberedMetaAlign`, along a random direction of the same length."""

    def backward(self, *arguments: Any, **options: Any) -> Any:
        """As its parent, with what is remembered of each tensor replaced by noise of its length."""
        for buffer in self.memory.buffers():
            noise = torch.randn_like(buffer)
            buffer.copy_(noise * (buffer.norm() / noise.norm()))
        return super().backward(*arguments, **options)


class Reversed(RememberedMetaAlign):
    """A control: as `RememberedMetaAlign`, in the opposite direction."""

    def backward(self, *arguments: Any, **options: Any) -> Any:
        """As its parent, with the memory's sign reversed."""
        for buffer in self.memory.buffers():
            buffer.neg_()
        return super().backward(*arguments, **options)


def remembered(inner_lr: float = 3.0, **options: Any) -> Coordinate:
    return lambda optimizer, network: RememberedMetaAlign(optimizer, inner_lr, module=network, **options)


FORMS: dict[str, Coordinate] = {
    "joint": lambda optimizer, network: Joint(optimizer),
    "remembered": remembered(),
    "fresh": lambda o, n: MetaAlign(o, 3.0, rule="update"),
    "fresh, trust ratio 0.1": lambda o, n: MetaAlign(o, 0.1, rule="trust_ratio"),
    "extragradient": lambda o, n: Game(o, 1.0),
    "joint, SDAT 0.02": lambda o, n: Joint(o, smoothing=0.02),
    "fresh, fixed 100, as published": lambda o, n: MetaAlign(o, 100.0),
    "size: 1": remembered(1.0),
    "size: 10": remembered(10.0),
    "control: noise": lambda o, n: Noise(o, module=n),
    "control: reversed": lambda o, n: Reversed(o, module=n),
}
"""Forms of the step. Where no rule is named, the inner step is three times as long as the optimiser's last step, and
that of extragradient is a step of the learning rate."""
