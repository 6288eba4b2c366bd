"""The parts of a detector, which share a group weight or take the inner step together."""

from __future__ import annotations

from torch import nn

from ...coordination import Stage

__all__ = ["detector_stages"]

_PARTS = ("encoder", "decoder")


def detector_stages(module: nn.Module) -> list[Stage]:
    """The stages `backbone`, `encoder`, `decoder` and `head`, by the names of a DETR's submodules.

    Args:
        module: A detector, or a model around one.

    Returns:
        Those that have parameters; none where no submodule has children `encoder` and `decoder` (YOLOS).
    """
    for path, part in module.named_modules():
        names = [name for name, _ in part.named_children()]
        if all(name in names for name in _PARTS):
            prefix = f"{path}." if path else ""
            break
    else:
        return []
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
