"""FSDP2 by accelerate where there is no accelerator.

Accelerate (1.15) shards where it finds one: `AcceleratorState` takes FSDP from the launch, or from the plugin that it
is given, for the distributed types of accelerators alone, and leaves processes on the CPU as MULTI_CPU. Nothing else of
its FSDP2 path asks for a device: with that one attribute set, `Accelerator.prepare` and all that follows run as they
are, on gloo.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from accelerate import DistributedType
from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import load_fsdp_model, load_fsdp_optimizer, save_fsdp_model, save_fsdp_optimizer
from torch.distributed.tensor import DTensor

from metaalign_hf import MetaAlignForImageClassification
from metaalign_hf.configuration import TrainingConfig
from metaalign_hf.training.checkpoints import whole_tensors
from metaalign_hf.training.machine import build_accelerator

__all__ = ["checkpoint_of_accelerate", "sharding"]

# What `accelerate launch --use_fsdp --fsdp_version 2` sets.
_LAUNCHED = {
    "ACCELERATE_USE_FSDP": "true",
    "FSDP_VERSION": "2",
    "FSDP_RESHARD_AFTER_FORWARD": "true",
    "FSDP_CPU_RAM_EFFICIENT_LOADING": "true",
    "FSDP_SYNC_MODULE_STATES": "true",
}

_ON_THE_CPU = (DistributedType.MULTI_CPU, DistributedType.FSDP)  # the latter after an earlier run in here


@contextmanager
def sharding(**more: str) -> Iterator[None]:
    """Inside, processes on the CPU shard as if they had been launched with `--use_fsdp --fsdp_version 2`."""
    plain, before = AcceleratorState.__init__, dict(os.environ)

    def on_the_cpu(self, *arguments, **keywords):
        plain(self, *arguments, **keywords)
        if keywords.get("fsdp_plugin") is not None and self.distributed_type in _ON_THE_CPU:
            self.distributed_type, self.fsdp_plugin = DistributedType.FSDP, keywords["fsdp_plugin"]
            # As accelerate does at the end of its own: every AcceleratorState that is made later takes it from there.
            PartialState._shared_state["distributed_type"] = DistributedType.FSDP

    os.environ.update(_LAUNCHED | more)
    AcceleratorState.__init__ = on_the_cpu
    try:
        yield
    finally:
        AcceleratorState.__init__ = plain
        if PartialState._shared_state.get("distributed_type") == DistributedType.FSDP:
            PartialState._shared_state["distributed_type"] = DistributedType.MULTI_CPU
        os.environ.clear()
        os.environ.update(before)


def checkpoint_of_accelerate(place: Path, trained: Path) -> None:
    """Accelerate's own sharded checkpoint: written, read, and trained on from as if there had been no break.

    Args:
        place: Where to write it.
        trained: The folder of a classifier.
    """

    def prepared():
        model = MetaAlignForImageClassification.from_pretrained(trained)
        return accelerator.prepare(model, torch.optim.AdamW(model.parameters(), lr=0.01))

    def step(model, optimizer, seed):
        generator = torch.Generator().manual_seed(2 * seed + accelerator.process_index)
        images = torch.randn(4, 3, 16, 16, generator=generator)
        domains = torch.tensor([0, 0, 1, 1])  # both losses, so that every parameter has a gradient
        accelerator.backward(model(images, torch.tensor([0, 1, -100, -100]), domains).loss)
        optimizer.step()
        optimizer.zero_grad()

    with sharding(FSDP_STATE_DICT_TYPE="SHARDED_STATE_DICT"):
        accelerator = build_accelerator(TrainingConfig(device="cpu", output_dir=str(place)))
        plugin = accelerator.state.fsdp_plugin
        model, optimizer = prepared()
        shards = [p.to_local().numel() for p in model.parameters() if isinstance(p, DTensor)]
        assert shards and sum(shards) < sum(p.numel() for p in model.parameters())
        step(model, optimizer, 1)
        save_fsdp_model(plugin, accelerator, model, place)
        save_fsdp_optimizer(plugin, accelerator, optimizer, model, place)
        step(model, optimizer, 2)
        expected = whole_tensors(model.state_dict())
        resumed, its = prepared()
        step(resumed, its, 3)
        load_fsdp_model(plugin, accelerator, resumed, place)
        load_fsdp_optimizer(plugin, accelerator, its, resumed, place)
        step(resumed, its, 2)
        found, gathered = whole_tensors(resumed.state_dict()), accelerator.get_state_dict(resumed)
        buffers = {name for name, _ in resumed.named_buffers()}  # each process has its own
        for name, value in expected.items():
            assert torch.equal(found[name], value) or name in buffers, name
            assert not accelerator.is_main_process or torch.equal(gathered[name], found[name]), name
