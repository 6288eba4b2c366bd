"""Runs of one library for `peers.py`, in that library's environment.

    ENVIRONMENT/bin/python benchmarks/peers_worker.py LIBRARY [DATA.safetensors] < jobs.jsonl > figures.jsonl

Other libraries need torch, safetensors and themselves here, nothing of metaalign_hf.
"""

from __future__ import annotations

import ctypes
import json
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

WIDTH, BATCH = 128, 32


@dataclass(frozen=True)
class Job:
    """What to run; `network` is `small`, that of `frozen.py` on frozen features, or `resnet18` on images of noise."""

    objective: str
    form: str
    pair: str
    lr: float
    steps: int
    seed: int
    network: str = "small"


class Network(nn.Module):
    """Backbone and classifier, as in `frozen.py`."""

    def __init__(self, job: Job, inputs: int, classes: int) -> None:
        super().__init__()
        if job.network == "small":
            self.backbone = nn.Sequential(nn.Linear(inputs, WIDTH), nn.ReLU(), nn.Linear(WIDTH, WIDTH), nn.ReLU())
        else:
            self.backbone = nn.Sequential(resnet18(), nn.Linear(512, WIDTH), nn.ReLU())
        self.classifier = nn.Linear(WIDTH, classes)

    def forward(self, x: Tensor, sample_weight: Tensor | None = None) -> Tensor:
        """Logits; the second argument is skada's."""
        return self.classifier(self.backbone(x))


class Discriminator(nn.Module):
    """The package's discriminator: two hidden layers with dropout; with `reverse`, probabilities of reversed input."""

    def __init__(self, inputs: int, reverse: Callable[[Tensor], Tensor] | None = None) -> None:
        super().__init__()
        hidden = (nn.Linear(inputs, WIDTH), nn.ReLU(), nn.Dropout(0.5), nn.Linear(WIDTH, WIDTH), nn.ReLU())
        self.layers = nn.Sequential(*hidden, nn.Dropout(0.5), nn.Linear(WIDTH, 1))
        self.reverse = reverse
        for layer in self.layers:
            if isinstance(layer, nn.Linear):
                nn.init.kaiming_normal_(layer.weight)
                nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor, sample_weight: Tensor | None = None) -> Tensor:
        """`(B,)`."""
        return self.layers(x).squeeze(1) if self.reverse is None else self.layers(self.reverse(x)).squeeze(1).sigmoid()


def resnet18() -> nn.Module:
    """A network of ordinary size without its classifier, from scratch."""
    from torchvision.models import resnet18

    network = resnet18()
    network.fc = nn.Identity()
    return network


def factor(step: int) -> float:
    """The schedule `inverse`."""
    return (1 + 0.001 * step) ** -0.75


SGD = {"momentum": 0.9, "nesterov": True, "weight_decay": 5e-4}


def batches(features: Tensor, labels: Tensor, generator: torch.Generator) -> Iterator[tuple[Tensor, Tensor]]:
    """Endless random batches of images, each in a random view."""
    while True:
        order = torch.randperm(len(labels), generator=generator)
        for chosen in order.split(BATCH)[: len(labels) // BATCH]:
            views = torch.randint(features.shape[1], (BATCH,), generator=generator)
            yield features[chosen, views], labels[chosen]


def run_pytorch_adapt(job: Job, network: Network, classes: int, source: Any, target: Any) -> float:
    """Train by an adapter's `training_step` in a plain loop, as its README does; returns seconds per step."""
    from pytorch_adapt.adapters import CDANE, DANN, Classifier
    from pytorch_adapt.containers import Misc, Models, Optimizers
    from pytorch_adapt.hooks import MCCHook

    models: dict[str, nn.Module] = {"G": network.backbone, "C": network.classifier}
    options: dict[str, Any] = {}
    if job.objective == "mcc":
        adapter_of, options = Classifier, {"hook_kwargs": {"post": [MCCHook()]}}
    elif job.objective == "dann":
        adapter_of, models["D"] = DANN, Discriminator(WIDTH)
    else:
        adapter_of, models["D"] = CDANE, Discriminator(WIDTH * classes)
        options = {"misc": Misc({"feature_combiner": _Multilinear()})}
    optimizers = Optimizers((torch.optim.SGD, {"lr": job.lr, **SGD}))
    adapter = adapter_of(models=Models(models), optimizers=optimizers, **options)
    generator = torch.Generator().manual_seed(job.seed)
    draws = [batches(*domain, generator) for domain in (source, target)]
    for model in models.values():
        model.train()
    started = time.perf_counter()
    for step in range(job.steps):
        for optimizer in adapter.optimizers.values():
            optimizer.param_groups[0]["lr"] = job.lr * factor(step)
        images, labels = next(draws[0])
        batch = {"src_imgs": images, "src_labels": labels, "src_domain": torch.zeros(BATCH)}
        adapter.training_step({**batch, "target_imgs": next(draws[1])[0], "target_domain": torch.ones(BATCH)})
    return (time.perf_counter() - started) / job.steps


class _Multilinear(nn.Module):
    def forward(self, features: Tensor, predictions: Tensor) -> Tensor:
        return (predictions.unsqueeze(2) * features.unsqueeze(1)).flatten(1)


def run_skada(job: Job, network: Network, classes: int, source: Any, target: Any) -> float:
    """Train by `fit`; returns seconds per step between the first batch and the last."""
    from skada.deep import CDAN, DANN, MCC
    from skada.deep.modules import GradientReversalLayer
    from skorch.callbacks import Callback, LRScheduler

    class Stop(Callback):
        """Ends the training after so many steps, and times them."""

        times: tuple[float, ...] = ()

        def on_batch_begin(self, net: Any, training: bool = False, **unused: Any) -> None:
            self.times = self.times or (time.perf_counter(),)

        def on_batch_end(self, net: Any, training: bool = False, **unused: Any) -> None:
            self.times += (time.perf_counter(),)
            if len(self.times) > job.steps:
                raise KeyboardInterrupt  # skorch's own way to end a training early

    def discriminator(inputs: int) -> Discriminator:
        return Discriminator(inputs, lambda x: GradientReversalLayer.apply(x, 1.0))

    options: dict[str, Any] = {}
    if job.objective == "dann":
        method, options = DANN, {"domain_classifier": discriminator(WIDTH)}
    elif job.objective == "dann, its own discriminator":
        method, options = DANN, {"num_features": WIDTH}
    elif job.objective == "cdan":
        method, options = CDAN, {"domain_classifier": discriminator(WIDTH * classes)}
    else:
        method = MCC
    stop = Stop()
    scheduler = LRScheduler(torch.optim.lr_scheduler.LambdaLR, lr_lambda=factor, step_every="batch")
    optimizer = {
        "optimizer": torch.optim.SGD,
        "lr": job.lr,
        **{f"optimizer__{key}": value for key, value in SGD.items()},
    }
    net = method(
        network,
        "backbone",
        **options,
        **optimizer,
        batch_size=BATCH,
        max_epochs=10**6,
        train_split=None,
        callbacks=[scheduler, ("stop", stop)],
        verbose=0,
    )
    (images, labels), (others, _) = source, target
    views = images.shape[1]
    inputs = torch.cat([images.flatten(0, 1), others.flatten(0, 1)])
    unknown = torch.full((others.shape[0] * views,), -1)
    known = torch.cat([labels.repeat_interleave(views), unknown])
    domains = torch.cat([torch.ones(len(labels) * views), torch.full((len(unknown),), -2.0)]).long()
    try:
        net.fit(inputs, known, domains)
    except RuntimeError as error:
        if "between 0 and 1" not in str(error):  # what its cross entropy says of a network that diverged
            raise
    trained = net.module_.base_module_
    network.load_state_dict(trained.state_dict())
    times = next(callback for name, callback in net.callbacks_ if name == "stop").times
    return (times[-1] - times[0]) / job.steps


def run_metaalign(job: Job, network: Network, classes: int, source: Any, target: Any) -> float:
    """Train by the package's coordinator in the loop of `frozen.py`; returns seconds per step."""
    import frozen

    class Wide(frozen.Network):
        def __init__(self, width: int, classes: int, objective: str) -> None:
            super().__init__(width, classes, objective)
            self.backbone = network.backbone

    generator = torch.Generator().manual_seed(job.seed)
    trained = Wide(0, classes, job.objective)
    domains = [frozen.Domain(*domain, torch.zeros(len(domain[1]), dtype=torch.bool)) for domain in (source, target)]
    draws = [frozen.Draw(domain, generator) for domain in domains]
    started = time.perf_counter()
    # The optimiser of the other libraries' runs: a foreach step keeps copies of all weights.
    frozen.train_steps(trained, frozen.FORMS[job.form], draws, job.lr, job.steps, "sgd", foreach=None)
    return (time.perf_counter() - started) / job.steps


RUNS = {"pytorch-adapt": run_pytorch_adapt, "skada": run_skada, "metaalign_hf": run_metaalign}


@torch.no_grad()
def figures(network: nn.Module, source: Any, target: Any, classes: int) -> dict[str, float]:
    """BNM on the target's training images, and the class means of both domains' test images."""
    network.eval()
    found = {}
    for name, (features, labels, is_test) in (("source", source), ("target", target)):
        predicted = network(features[is_test, 0]).argmax(1)
        hits = [(predicted[labels[is_test] == c] == c).double().mean() for c in range(classes)]
        found[f"{name}_class_mean"] = float(torch.stack(hits).mean())
    probabilities = network(target[0][~target[2], 0]).softmax(1)
    if not probabilities.isfinite().all():  # it diverged
        return {"source_class_mean": 1 / classes, "target_class_mean": 1 / classes, "bnm": 0.0}
    found["bnm"] = float(torch.linalg.matrix_norm(probabilities, "nuc")) / (len(probabilities) * classes) ** 0.5
    return found


def memory(key: str) -> float:
    """A memory figure of this process in MiB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(key)) / 1024


def main() -> None:
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    library, data = sys.argv[1], load_file(sys.argv[2]) if len(sys.argv) > 2 else {}
    for line in sys.stdin:
        job = Job(**json.loads(line))
        torch.manual_seed(job.seed)
        if job.network == "small":
            source, target = (
                (
                    data[f"{job.pair}.{end}.features"],
                    data[f"{job.pair}.{end}.labels"],
                    data[f"{job.pair}.{end}.is_test"] > 0,
                )
                for end in ("source", "target")
            )
        else:
            source, target = (
                (torch.randn(512, 1, 3, 64, 64), torch.randint(10, (512,)), torch.arange(512) < 32) for _ in range(2)
            )
        classes = int(source[1].max()) + 1
        network = Network(job, source[0].shape[-1], classes)
        training = [(features[~test], labels[~test]) for features, labels, test in (source, target)]
        ctypes.CDLL("libc.so.6").malloc_trim(0)  # else what an earlier job has freed counts as there before
        Path("/proc/self/clear_refs").write_text("5")  # the peak is counted from here
        before = memory("VmRSS")
        seconds = RUNS[library](job, network, classes, *training)
        peak = memory("VmHWM") - before
        found = {} if library == "metaalign_hf" else figures(network, source, target, classes)
        print(json.dumps({**found, "seconds_per_step": seconds, "peak_mib": peak}), flush=True)


if __name__ == "__main__":
    main()
