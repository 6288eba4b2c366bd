"""Stages of a network: the blocks that share a group weight, and the point at which the last of them begins."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field

from torch import nn

__all__ = ["Stage", "find_stages", "trunk_stages"]


@dataclass
class Stage:
    """A stage of a network.

    Attributes:
        name: `stem`, `stage1` .. `stage4`, `head`, or what a model calls its own.
        parameters: Full names of its parameters.
        entry: The module with which the stage begins; None where a stage does not begin with one module.
    """

    name: str
    parameters: list[str] = field(default_factory=list)
    entry: nn.Module | None = None


def find_stages(module: nn.Module) -> list[Stage]:
    """The stages of a network, in the order in which the forward pass meets them.

    A model may name its own by a method `parameter_stages`, which returns a list of `Stage`. In any other network the
    trunk is found first: the numbered run of blocks that holds most parameters, a `ModuleList`, a `Sequential`, or
    attributes such as `layer1` .. `layer4`. Up to five blocks are a stage each (ResNet, ConvNeXt, Swin); more are
    grouped in quarters (ViT). Parameters before the trunk are the stem, those after it, within the backbone, belong to
    the last stage. Where the module has a child `backbone`, the trunk is looked for there, and all other parameters are
    the head.

    Args:
        module: A timm or transformers model, or a model around one. Not wrapped in DistributedDataParallel.

    Returns:
        The stages that have parameters.

    Raises:
        ValueError: If no trunk can be found.
    """
    own = getattr(module, "parameter_stages", None)
    return trunk_stages(module) if own is None else own()


def trunk_stages(module: nn.Module) -> list[Stage]:
    """The stages of a network by its trunk; see `find_stages`."""
    backbone = getattr(module, "backbone", None)
    prefix, trunk_of = ("backbone.", backbone) if isinstance(backbone, nn.Module) else ("", module)
    blocks = _trunk(trunk_of)
    count = len(blocks) if len(blocks) <= 5 else 4
    stages = [Stage(f"stage{index + 1}") for index in range(count)]
    place: dict[str, int] = {}
    for index, (path, block) in enumerate(blocks):
        number = index * count // len(blocks)
        place[prefix + path] = number
        if stages[number].entry is None:
            stages[number].entry = block
    stem, head = Stage("stem"), Stage("head")
    begun = False
    for name, _ in module.named_parameters():
        owner = next((path for path in place if name.startswith(f"{path}.")), None)
        if owner is not None:
            stages[place[owner]].parameters.append(name)
            begun = True
        elif not name.startswith(prefix):
            head.parameters.append(name)
        else:
            (stages[-1] if begun else stem).parameters.append(name)
    return [stage for stage in (stem, *stages, head) if stage.parameters]


def _trunk(module: nn.Module) -> list[tuple[str, nn.Module]]:
    """Path and module of each block of the trunk."""
    runs = [
        (sum(p.numel() for _, block in run for p in block.parameters()), path, run)
        for path, run in _numbered_runs(module)
        if len(run) >= 2
    ]
    if not runs:
        raise ValueError(f"no stages found in a {type(module).__name__}: it has no numbered run of blocks")
    # Of equally large runs the outermost, which comes first.
    _, path, run = max(runs, key=lambda found: found[0])
    return [(f"{path}.{name}" if path else name, block) for name, block in run]


def _numbered_runs(module: nn.Module) -> Iterator[tuple[str, list[tuple[str, nn.Module]]]]:
    """Runs of children whose names differ in a number only, outermost first."""
    for path, part in module.named_modules():
        runs: dict[str, list[tuple[str, nn.Module]]] = {}
        for name, child in part.named_children():
            stem = re.sub(r"\d+$", "", name)
            if stem != name:
                runs.setdefault(stem, []).append((name, child))
        for run in runs.values():
            yield path, [(name, child) for name, child in run if any(True for _ in child.parameters())]
