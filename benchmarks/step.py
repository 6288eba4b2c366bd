"""What a step costs: time and peak memory of every form of the MetaAlign step, relative to a joint step.

    python benchmarks/step.py [--networks resnet50_96 vit_small_224 ...] [--rounds 4] [--precision bf16]

All forms of a network are timed interleaved in one process, round by round, after one round of warm-up. A round is four
steps of each form, two in either order of the roles, and counts with their mean; the ratio is that of the medians. Peak
memory, of model, optimiser and two steps, is taken in one subprocess per form: of the resident set less what Python and
its libraries took before on a CPU, `torch.cuda.max_memory_allocated` on a GPU. `published` is the form of the authors'
code, written from its formula, with the task as meta-train: the inner step keeps the graph, the network runs on
functional weights, and one backward pass goes through both.
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import timm
import torch
import torch.nn.functional as F
from rich import box
from rich.table import Table
from torch import Tensor, nn
from transformers import RTDetrConfig, RTDetrForObjectDetection

from metaalign_hf.alignment import reverse_gradient
from metaalign_hf.coordination import Game, Joint, MetaAlign, RememberedMetaAlign, SharedPrefix, find_stages
from runs import RESULTS, machine

Losses = dict[str, Callable[[], Tensor]]


class Classifier(nn.Module):
    """A timm backbone, a classifier and a domain head behind gradient reversal; 65 classes as Office-Home has."""

    def __init__(self, name: str, **options: object) -> None:
        super().__init__()
        self.backbone = timm.create_model(name, num_classes=0, **options)
        for block in getattr(self.backbone, "blocks", []):
            block.attn.fused_attn = False  # the same kernels for every form; order 2 needs these
        width = self.backbone.num_features
        self.classifier = nn.Linear(width, 65)
        self.discriminator = nn.Sequential(nn.Linear(width, 256), nn.ReLU(), nn.Linear(256, 1))

    def forward(self, images: Tensor, labels: Tensor | None, domains: Tensor | None) -> tuple[Tensor, Tensor]:
        """Task loss of the first rows, which have labels, and alignment loss; 0 for what is not asked for."""
        features = self.backbone(images)
        zero = features.new_zeros(())
        task, alignment = zero, zero
        if labels is not None:
            task = F.cross_entropy(self.classifier(features[: len(labels)]), labels)
        if domains is not None:
            alignment = F.binary_cross_entropy_with_logits(
                self.discriminator(reverse_gradient(features, 1.0)).squeeze(1), domains
            )
        return task, alignment


class Detector(nn.Module):
    """RT-DETR (ResNet-18) with a domain head on its encoder; the joint step needs both of its passes, as ours does."""

    def __init__(self) -> None:
        super().__init__()
        backbone = {
            "model_type": "rt_detr_resnet", "depths": [2, 2, 2, 2], "layer_type": "basic",
            "hidden_sizes": [64, 128, 256, 512], "out_features": ["stage2", "stage3", "stage4"],
        }  # fmt: skip
        config = RTDetrConfig(
            backbone_config=backbone, encoder_in_channels=[128, 256, 512], decoder_layers=3, num_denoising=0
        )
        config._attn_implementation = "eager"
        self.backbone = RTDetrForObjectDetection(config)
        self.discriminator = nn.Linear(256, 1)

    def forward(self, images: Tensor, labels: list | None, domains: Tensor | None) -> tuple[Tensor, Tensor]:
        zero = images.new_zeros(())
        task, alignment = zero, zero
        if labels is not None:
            task = self.backbone(images[: len(labels)], labels=labels).loss
        if domains is not None:
            tokens = self.backbone(images).encoder_last_hidden_state[-1]
            alignment = F.binary_cross_entropy_with_logits(
                self.discriminator(reverse_gradient(tokens.mean((2, 3)), 1.0)).squeeze(1), domains
            )
        return task, alignment


@dataclass
class Network:
    """A network to measure: how to build it, the side of its images, images of each domain in a batch."""

    build: Callable[[], nn.Module]
    size: int
    batch: int
    detector: bool = False


NETWORKS = {
    "resnet50_96": Network(lambda: Classifier("resnet50"), 96, 24),
    "resnet50_224": Network(lambda: Classifier("resnet50"), 224, 8),
    "vit_small_224": Network(lambda: Classifier("vit_small_patch16_224"), 224, 8),
    "rt_detr_r18_160": Network(Detector, 160, 2, detector=True),
}
FORMS = (
    "joint",
    "remembered total",
    "remembered role",
    "order 1",
    "order 1, groups",
    "last stage, shared",
    "extragradient",
    "order 2",
    "order 2, task first",
    "published",
)
ROUND = 4
"""Steps of a round: both orders of the roles, and one refresh of what `remembered role` remembers."""


class Timed(MetaAlign):
    """Knows how long it has measured: norms, inner products and cosines, overall and by group."""

    spent = 0.0

    def _measure(self, *gradients):  # type: ignore[no-untyped-def]
        start = time.perf_counter()
        found = super()._measure(*gradients)
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.spent += time.perf_counter() - start
        return found


class Setting:
    """A network with its data, and one callable per form of the step."""

    def __init__(self, name: str, precision: str) -> None:
        torch.manual_seed(0)
        self.network = NETWORKS[name]
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.precision = precision
        self.model = self.network.build().to(self.device).train()
        for layer in self.model.modules():
            if isinstance(layer, nn.modules.batchnorm._BatchNorm):
                layer.eval()
        n = self.network.batch
        self.images = torch.randn(2 * n, 3, self.network.size, self.network.size, device=self.device)
        self.domains = torch.tensor([1.0] * n + [0.0] * n, device=self.device)
        self.labels: object = torch.randint(0, 65, (n,), device=self.device)
        if self.network.detector:
            boxes = torch.tensor([[0.5, 0.5, 0.3, 0.3], [0.3, 0.4, 0.2, 0.2]], device=self.device)
            classes = torch.tensor([0, 1], device=self.device)
            self.labels = [{"class_labels": classes, "boxes": boxes} for _ in range(n)]
        self.optimizer = self._optimizer()

    def _optimizer(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.model.parameters(), lr=1e-4, momentum=0.9)

    def cast(self):  # type: ignore[no-untyped-def]
        return torch.autocast(self.device.type, torch.bfloat16) if self.precision == "bf16" else nullcontext()

    def task(self) -> Tensor:
        with self.cast():
            return self.model(self.images[: self.network.batch], self.labels, None)[0]

    def alignment(self) -> Tensor:
        with self.cast():
            return self.model(self.images, None, self.domains)[1]

    def both(self) -> tuple[Tensor, Tensor]:
        with self.cast():
            return self.model(self.images, self.labels, self.domains)

    def step(self, form: str) -> Callable[[], None]:
        """A callable that takes one step of the form; joint measures nothing between its two losses, as usual."""
        if form == "published":
            return self.published
        if form == "joint":
            joint = Joint(self.optimizer)
            return lambda: self._finish(lambda: joint.backward(both=[self.both]))
        if form == "extragradient":
            game = Game(self.optimizer, 1.0, module=self.model)
            return lambda: self._finish(lambda: game.backward(both=[self.both]).to_dict())
        if form.startswith("remembered"):
            own = self._optimizer()  # it measures the optimiser's steps: not those of the other forms
            kept = RememberedMetaAlign(own, module=self.model, remember=form.split()[1], refresh_every=ROUND)
            return lambda: self._finish(
                lambda: kept.backward([self.task], [self.alignment], both=[self.both]).to_dict(), own
            )
        options = {
            "order 1": {},
            "order 1, groups": {"groups": "stage"},
            "order 2": {"order": 2},
            "order 2, task first": {"order": 2, "roles": "task"},
            "last stage, shared": {"scope": "last_stage"},
        }[form]
        meta = MetaAlign(self.optimizer, 1.0, module=self.model, **options)  # type: ignore[arg-type]
        if form != "last stage, shared":
            return lambda: self._finish(lambda: meta.backward([self.task], [self.alignment]).to_dict())
        entry = [stage for stage in find_stages(self.model) if stage.entry is not None][-1].entry
        assert entry is not None

        def shared() -> None:
            prefix = SharedPrefix(self.model, entry)

            def task() -> Tensor:
                with self.cast(), prefix.run(slice(self.network.batch)):
                    return self.model(self.images, self.labels, None)[0]

            def alignment() -> Tensor:
                with self.cast(), prefix.run():
                    return self.model(self.images, None, self.domains)[1]

            meta.backward([task], [alignment], shared=[prefix]).to_dict()

        return lambda: self._finish(shared)

    def _finish(self, backward: Callable[[], object], optimizer: torch.optim.Optimizer | None = None) -> None:
        backward()
        (optimizer or self.optimizer).step()

    def published(self) -> None:
        """The authors' form: graph kept through the inner step, functional weights, one backward through both."""
        self.optimizer.zero_grad(set_to_none=True)
        theta = dict(self.model.named_parameters())
        train = self.task()
        gradients = torch.autograd.grad(train, list(theta.values()), create_graph=True, allow_unused=True)
        moved = {
            name: p if g is None else p - 1e-4 * g.detach()
            for (name, p), g in zip(theta.items(), gradients, strict=True)
        }
        with self.cast():
            test = torch.func.functional_call(self.model, moved, (self.images, None, self.domains))[1]
        (train + test).backward()
        self.optimizer.step()


def forms_of(name: str, forms: Sequence[str]) -> list[str]:
    """A detector's multi-scale maps go around any last stage, so there is no prefix to share."""
    return [form for form in forms if not (NETWORKS[name].detector and form == "last stage, shared")]


def measure_time(name: str, precision: str, rounds: int, forms: Sequence[str] = FORMS) -> dict[str, float]:
    """Median seconds of each form, interleaved."""
    setting = Setting(name, precision)
    steps = {form: setting.step(form) for form in forms_of(name, forms)}
    seconds: dict[str, list[float]] = {form: [] for form in steps}
    for number in range(ROUND * (rounds + 1)):
        for form, step in steps.items():
            _wait(setting.device)
            start = time.perf_counter()
            step()
            _wait(setting.device)
            if number >= ROUND:
                seconds[form].append(time.perf_counter() - start)
    return {
        form: statistics.median(
            statistics.fmean(values[start : start + ROUND]) for start in range(0, len(values), ROUND)
        )
        for form, values in seconds.items()
    }


def measure_report(name: str, precision: str, rounds: int) -> float:
    """Share of a step of order 1 that its report by group costs, read out after every step."""
    setting = Setting(name, precision)
    meta = Timed(setting.optimizer, 1.0, groups="stage", module=setting.model)
    whole = read = 0.0
    for number in range(2 * rounds + 2):
        if number == 2:
            meta.spent = whole = read = 0.0
        _wait(setting.device)
        start = time.perf_counter()
        report = meta.backward([setting.task], [setting.alignment])
        setting.optimizer.step()
        _wait(setting.device)
        middle = time.perf_counter()
        report.to_dict()
        read += time.perf_counter() - middle
        whole += time.perf_counter() - start
    return (meta.spent + read) / whole


def measure_memory(name: str, precision: str, form: str) -> float:
    """Peak MiB of the model, its optimiser and two steps of one form."""
    before = _peak()
    setting = Setting(name, precision)
    step = setting.step(form)
    gc.collect()
    if setting.device.type == "cpu":
        Path("/proc/self/clear_refs").write_text("5")  # forget the peak of building the model
    step()
    step()
    return _peak() - before


def _peak() -> float:
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**20
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 2**10


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def tables() -> dict[str, Table]:
    """The tables of the README: time and memory by network, of all forms and of those of another day, on a CPU."""
    found = {}
    for name, path in (("step", "step-cpu-fp32.json"), ("step, from memory", "step-cpu-fp32-some.json")):
        pinned = {key: value for key, value in json.loads((RESULTS / path).read_text()).items() if key in NETWORKS}
        found[name] = Table("form", *(_headline(network) for network in pinned), box=box.MARKDOWN, title=name)
        for form in FORMS:
            cells = [_cell(form, rows.get(form)) for rows in pinned.values()]
            if any(cells):
                found[name].add_row(form, *cells)
    return found


def _headline(network: str) -> str:
    found = NETWORKS[network]
    return f"{network}, {found.batch} + {found.batch}"


def _cell(form: str, row: dict[str, float] | None) -> str:
    if row is None:
        return ""
    if form == "joint":
        return f"{1000 * row['seconds']:.0f} ms, {row['MiB']:.0f} MiB"
    return f"x{row['time']:.2f}, x{row['memory']:.2f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument("--forms", nargs="+", choices=FORMS, default=list(FORMS), help="joint and others")
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--memory-of", nargs=2, metavar=("NETWORK", "FORM"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if "joint" not in options.forms:  # what the others are compared with
        options.forms.insert(0, "joint")
    if options.memory_of:
        print(json.dumps(measure_memory(options.memory_of[0], options.precision, options.memory_of[1])))
        return
    found: dict[str, object] = {"machine": machine(), "precision": options.precision, "rounds": options.rounds}
    reports: list[str] = []
    some = "" if options.forms == list(FORMS) else "-some"
    path = RESULTS / f"step-{'cuda' if torch.cuda.is_available() else 'cpu'}-{options.precision}{some}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    for name in options.networks:
        seconds = measure_time(name, options.precision, options.rounds, options.forms)
        memory = {}
        for form in seconds:
            command = [sys.executable, __file__, "--precision", options.precision, "--memory-of", name, form]
            memory[form] = float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
        rows = {
            form: {
                "seconds": seconds[form],
                "time": seconds[form] / seconds["joint"],
                "MiB": memory[form],
                "memory": memory[form] / memory["joint"],
            }
            for form in seconds
        }
        found[name] = rows
        if not some:
            share = measure_report(name, options.precision, options.rounds)
            found[name] = {**rows, "report": share}
            reports.append(f"{name} {100 * share:.1f} %")
        path.write_text(json.dumps(found, indent=1) + "\n")  # after every network: it takes a while
    print(json.dumps(found, indent=1))
    if reports:
        print(f"Share of a step that its report costs when read after every step: {', '.join(reports)}")
    print(f"Figures: {path}")


if __name__ == "__main__":
    main()
