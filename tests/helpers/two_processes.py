"""Law 3 inside two gloo processes: the gradient of a wrapped model is that of one process on the whole batch.

Run by test_two_processes.py through torch.distributed.run; prints the cases that hold, and fails on the first that does
not.
"""

import copy
import os
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from metaalign_hf.coordination import (
    DoublyPerturbed,
    Game,
    Joint,
    MetaAlign,
    RememberedMetaAlign,
    SharedPrefix,
    find_stages,
)
from metaalign_hf.training.checkpoints import damage, load_checkpoint, save_checkpoint, whole_tensors
from metaalign_hf.training.weights import WeightAverage
from tests.helpers.networks import Classifier, conv_net, vit


def data(rank: int, world: int, micro_batches: int):
    """Images, classes and domains of this rank's micro-batches; all ranks together have 8 source and 8 target rows."""
    generator = torch.Generator().manual_seed(3)
    images = torch.randn(16, 3, 16, 16, generator=generator, dtype=torch.float64)
    labels = torch.randint(0, 3, (8,), generator=generator)
    size = 8 // (world * micro_batches)
    for index in range(micro_batches):
        start = (rank * micro_batches + index) * size
        rows = slice(start, start + size)
        mixed = torch.cat([images[rows], images[8:][rows]])
        yield mixed, labels[rows], torch.tensor([1.0] * size + [0.0] * size, dtype=torch.float64)


def gradients(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    found = {}
    for name, p in model.named_parameters():
        if p.grad is not None:
            whole = p.grad.full_tensor() if isinstance(p.grad, DTensor) else p.grad
            found[name.removeprefix("_orig_mod.").removeprefix("module.")] = whole.double()
    return found


def step(model, bare, rank, world, micro_batches, share, steps=2, update=False, **options):
    """The reports and gradients of a task-first and an alignment-first step; the optimiser steps where asked."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.3)
    kind = options.pop("kind", MetaAlign)
    meta = kind(optimizer, module=model, **options)
    reports = []
    for number in range(steps):
        batches = list(data(rank, world, micro_batches))
        entry = [stage for stage in find_stages(bare) if stage.entry is not None][-1].entry
        prefixes = [SharedPrefix(bare, entry) for _ in batches] if share else []

        def task(index, batches=batches, prefixes=prefixes):
            mixed, labels, _ = batches[index]
            if not prefixes:
                return model(mixed[: len(labels)], labels, "task")
            with prefixes[index].run(slice(len(labels))):
                return model(mixed, labels, "task")

        def alignment(index, batches=batches, prefixes=prefixes):
            mixed, _, domains = batches[index]
            if not prefixes:
                return model(mixed, domains, "alignment")
            with prefixes[index].run():
                return model(mixed, domains, "alignment")

        reports.append(
            meta.backward(
                [lambda i=i: task(i) for i in range(len(batches))],
                [lambda i=i: alignment(i) for i in range(len(batches))],
                shared=prefixes,
                step=number,
            )
        )
        reports[-1] = (reports[-1].to_dict(), gradients(model))
        if update:
            optimizer.step()
    return reports


def build(network) -> Classifier:
    torch.manual_seed(0)
    return Classifier(network()).double()


def shard(model: torch.nn.Module, **options) -> torch.nn.Module:
    parts = list(model.backbone.blocks) if hasattr(model.backbone, "blocks") else [model.backbone[0], model.backbone[2]]
    for part in [*parts, model.classifier]:
        fully_shard(part, **options)
    return fully_shard(model, **options)


CASES = {
    "joint": {"kind": Joint},
    "remembered": {"kind": RememberedMetaAlign, "steps": 3, "update": True},
    "remembered accumulation": {"kind": RememberedMetaAlign, "steps": 3, "micro_batches": 2, "update": True},
    "remembered role": {"kind": RememberedMetaAlign, "steps": 3, "remember": "role", "update": True},
    "remembered trust ratio": {
        "kind": RememberedMetaAlign,
        "inner_lr": 0.2,
        "rule": "trust_ratio",
        "steps": 3,
        "update": True,
    },
    "game": {"kind": Game, "inner_lr": 0.2, "rule": "trust_ratio", "solver": "heun"},
    "doubly perturbed": {"kind": DoublyPerturbed},
    "order 1": {},
    "accumulation": {"micro_batches": 2},
    "smoothing": {"smoothing": 0.7, "micro_batches": 2},
    "groups": {"groups": "stage", "weight_lr": 5.0},
    "shared": {"scope": "last_stage", "share": True},
    "shared accumulation": {"scope": "last_stage", "share": True, "micro_batches": 2},
    "order 2": {"order": 2},
    "order 2 accumulation": {"order": 2, "micro_batches": 2},
}
COMPILED = ("remembered", "accumulation")


def compare(name: str, found, expected, rtol: float, atol: float) -> None:
    for number, ((report, grads), (wanted, reference)) in enumerate(zip(found, expected, strict=True)):
        assert grads.keys() == reference.keys(), (name, number, grads.keys() ^ reference.keys())
        for key in reference:
            torch.testing.assert_close(grads[key], reference[key], rtol=rtol, atol=atol, msg=f"{name}, {number}, {key}")
        for key in wanted:
            if key in ("cosine", "inner_product", "displacement") or key.startswith("weight/"):
                assert abs(report[key] - wanted[key]) <= atol + rtol * abs(wanted[key]), (name, number, key)


def sharded_checkpoints(mesh, rank: int, folder: Path) -> None:
    """A checkpoint of shards holds whole tensors, and training goes on from it in shards or in one piece alike."""

    def momentum(model):
        return torch.optim.SGD(model.parameters(), lr=0.3, momentum=0.9)

    def take(model, optimizer):
        model(torch.ones(4, 3, 16, 16, dtype=torch.float64), torch.tensor([0, 1, 2, 0]), "task").backward()
        optimizer.step()
        optimizer.zero_grad()

    def tensors(model):
        return whole_tensors(model.state_dict())

    for network in (conv_net, vit):
        models = [shard(build(network), mesh=mesh), build(network)]
        optimizers = [momentum(model) for model in models]
        for model, optimizer in zip(models, optimizers, strict=True):
            take(model, optimizer)
        place = folder / network.__name__
        saved = save_checkpoint(place, 1, {"model": models[0]}, optimizers[0], {}, 1, write=rank == 0)
        dist.barrier()
        assert damage(saved) is None
        resumed = [shard(build(network), mesh=mesh), build(network)]
        others = [momentum(model) for model in resumed]
        for model, optimizer in zip(resumed, others, strict=True):
            load_checkpoint(saved, {"model": model}, optimizer)
        for model, optimizer in zip([*models, *resumed], [*optimizers, *others], strict=True):
            take(model, optimizer)
        expected = tensors(models[0])
        for name, value in tensors(resumed[0]).items():
            assert torch.equal(value, expected[name]), name
        for model in (models[1], resumed[1]):
            for name, value in tensors(model).items():
                torch.testing.assert_close(value, expected[name], rtol=1e-10, atol=1e-12, msg=name)


def averages_of_statistics(rank: int) -> None:
    """Running statistics, which each process moves by its own images, are averaged over them: everyone has the same."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4))
    average = WeightAverage(model, 0.9)
    before = average.module[1].running_mean.clone()
    model(torch.randn(8, 3, 8, 8, generator=torch.Generator().manual_seed(rank)))
    moved = [torch.empty(4) for _ in range(2)]
    dist.all_gather(moved, model[1].running_mean)
    assert not torch.equal(*moved)
    average.apply_update_(model, 0.75)
    torch.testing.assert_close(average.module[1].running_mean, 0.75 * before + 0.25 * (moved[0] + moved[1]) / 2)
    found = [torch.empty(4) for _ in range(2)]
    dist.all_gather(found, average.module[1].running_var)
    assert torch.equal(*found)


def norms(model, rank, world):
    """What an alignment share measures, of two micro-batches a process."""
    batches = list(data(rank, world, 2 // world))
    joint = Joint(torch.optim.SGD(model.parameters(), lr=0.3), module=model)
    task = [lambda b=b: model(b[0][: len(b[1])], b[1], "task") for b in batches]
    return joint.shared_norms(task, [lambda b=b: model(b[0], b[2], "alignment") for b in batches])


def main() -> None:
    dist.init_process_group("gloo")
    rank, world = dist.get_rank(), dist.get_world_size()
    assert world == 2, "two processes were asked for"
    mesh = dist.device_mesh.init_device_mesh("cpu", (world,))
    for network in (conv_net, vit):
        for name, case in CASES.items():
            options = dict(case)
            micro_batches, share = options.pop("micro_batches", 1), options.pop("share", False)
            bare = build(network)
            expected = step(bare, bare, 0, 1, micro_batches, share, **options)

            bare = build(network)
            wrapped = DistributedDataParallel(bare, find_unused_parameters=True)
            found = step(wrapped, bare, rank, world, micro_batches, share, **options)
            compare(f"ddp {name} {network.__name__}", found, expected, 1e-10, 1e-13)

            if name in COMPILED and network is conv_net:
                bare = build(network)
                # As accelerate does it: the compiled module is around the wrapper.
                outer = torch.compile(DistributedDataParallel(bare, find_unused_parameters=True), backend="eager")
                found = step(outer, bare, rank, world, micro_batches, share, **options)
                compare(f"compiled ddp {name} {network.__name__}", found, expected, 1e-10, 1e-13)

            if options.get("order") == 2:
                continue
            bare = shard(build(network), mesh=mesh)
            found = step(bare, bare, rank, world, micro_batches, share, **options)
            compare(f"fsdp {name} {network.__name__}", found, expected, 1e-10, 1e-13)

        expected = norms(build(network), 0, 1)
        wrapped = DistributedDataParallel(build(network), find_unused_parameters=True)
        for kind, model in (("ddp", wrapped), ("fsdp", shard(build(network), mesh=mesh))):
            for value, wanted in zip(norms(model, rank, world), expected, strict=True):
                assert abs(value - wanted) <= 1e-10 * wanted, (kind, "norms", network.__name__, value, wanted)

        reference = build(network).float()
        expected = step(copy.deepcopy(reference).double(), reference.double(), 0, 1, 1, False)
        half = MixedPrecisionPolicy(param_dtype=torch.bfloat16, cast_forward_inputs=True)
        bare = shard(build(network).float(), mesh=mesh, mp_policy=half)
        found = step(bare, bare, rank, world, 1, False)
        scale = max(float(g.abs().max()) for _, grads in expected for g in grads.values())
        compare(f"fsdp bf16 {network.__name__}", found, expected, 0.1, 0.02 * scale)

    refused = shard(build(conv_net), mesh=mesh)
    try:
        MetaAlign(torch.optim.SGD(refused.parameters(), lr=1.0), order=2, module=refused)
    except ValueError as error:
        assert "FSDP2" in str(error)
    else:
        raise AssertionError("order 2 under FSDP2 must be refused")
    sharded_checkpoints(mesh, rank, Path(sys.argv[1]))
    averages_of_statistics(rank)
    dist.barrier()
    if rank == 0:
        print("every case holds", flush=True)
    dist.destroy_process_group()


if __name__ == "__main__":
    assert "RANK" in os.environ, "start through torch.distributed.run"
    main()
