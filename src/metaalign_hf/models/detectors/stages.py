"""The parts of a detector, which share a group weight or take the inner step together."""

from __future__ import annotations

from torch import nn

from ...coordination import Stage, trunk_stages

__all__ = ["detector_stages", "stages_of_trunk"]

_PARTS = ("encoder", "decoder")


def detector_stages(module: nn.Module) -> list[Stage]:
    """The stages `backbone`, `encoder`, `decoder` and `head`, by the names of a DETR's submodules.

    Args:
        module: A detector, or a model around one.

    Returns:
        Those that have parameters; none where no submodule has a child `decoder` (YOLOS). LW-DETR has no encoder.
    """
    path = next((path for path, part in module.named_modules() if "decoder" in dict(part.named_children())), None)
    if path is None:
        return []
    prefix = f"{path}." if path else ""
    stages = {name: Stage(name) for name in ("backbone", *_PARTS, "head")}
    for name, _ in module.named_parameters():
        inner = name.removeprefix(prefix)
        part = inner.split(".", 1)[0] if name.startswith(prefix) else "head"
        if part in _PARTS:
            stages[part].parameters.append(name)
        elif "backbone" in part or part in ("conv_encoder", "vit"):
            stages["backbone"].parameters.append(name)
        else:
            # Projections before the encoder and anything else inside belong to the encoder's side, the rest is heads.
            stages["encoder" if name.startswith(prefix) and "proj" in part else "head"].parameters.append(name)
    return [stage for stage in stages.values() if stage.parameters]


def stages_of_trunk(module: nn.Module, path: str) -> list[Stage]:
    """The stages of a detector that is a plain network with heads: those of the network, and `head`.

    Args:
        module: A detector, or a model around one.
        path: Where the network is in it.
    """
    stages = trunk_stages(module.get_submodule(path))
    for stage in stages:
        stage.parameters = [f"{path}.{name}" for name in stage.parameters]
    head = [name for name, _ in module.named_parameters() if not name.startswith(f"{path}.")]
    return [*stages, Stage("head", head)]
