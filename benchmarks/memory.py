"""Memory of a training step by size of the backbone, computed: no weight is allocated and nothing is multiplied.

    python benchmarks/memory.py

Batches of 24 + 24 images of 224 pixels, CDAN with a bottleneck, AdamW, the default step. Counted are the weights
(float32), of what trains the gradients, AdamW's two averages and the step's memory of the last gradient, and what one
pass keeps for its backward pass, each tensor once. What kernels need for themselves, and what an allocator loses, comes
on top.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd.graph import saved_tensors_hooks

from metaalign_hf import MetaAlignForImageClassification

BACKBONES = {
    "ViT-S/16": "vit_small_patch16_224",
    "ViT-B/16": "vit_base_patch16_224",
    "ViT-L/14": "vit_large_patch14_clip_224",
}
CLASSES = 65
WAYS: dict[str, Callable[[MetaAlignForImageClassification], object]] = {
    "all": lambda model: None,
    "last quarter (`freeze: 4`)": lambda model: model.freeze(4),
    "adapters, r 16": lambda model: model.add_lora(r=16),
    "head (`freeze: all`), without a cache": lambda model: model.freeze("all"),
}


def gigabytes(
    backbone: str, way: str, bf16: bool, checkpointing: bool = False, images: int = 48
) -> tuple[float, float]:
    """Weights and their optimiser, and kept activations of a pass on so many images, in GB (1e9 bytes)."""
    with torch.device("meta"):
        labels = [str(number) for number in range(CLASSES)]
        model = MetaAlignForImageClassification.from_backbone(
            backbone, labels, "cdan", pretrained=False, bottleneck_dim=256
        )
        WAYS[way](model)
    if checkpointing:
        model.gradient_checkpointing_enable()
    model.train()
    with FakeTensorMode(allow_non_fake_inputs=True):
        model.to_empty(device="cpu")
        trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
        weights = 4 * (sum(p.numel() for p in model.parameters()) + 4 * trained)
        own = {p.untyped_storage()._cdata for p in model.parameters()}
        kept: dict[int, int] = {}

        def pack(tensor: torch.Tensor) -> torch.Tensor:
            storage = tensor.untyped_storage()
            if storage._cdata not in own:
                kept[storage._cdata] = storage.nbytes()
                held.append(tensor)
            return tensor

        held: list[torch.Tensor] = []
        pixels = torch.randn(images, 3, 224, 224)
        with (
            saved_tensors_hooks(pack, lambda tensor: tensor),
            torch.autocast("cpu", torch.bfloat16) if bf16 else nullcontext(),
        ):
            features = model.pooled(pixels)
            model.classifier(model.bottleneck(features)).float().logsumexp(1).sum()
    return weights / 1e9, sum(kept.values()) / 1e9


def main() -> None:
    print("| backbone | what trains | weights and optimiser | activations, `no` | `bf16` | `bf16`, checkpointed |")
    print("|---|---|---|---|---|---|")
    for name, backbone in BACKBONES.items():
        for way in WAYS:
            weights, plain = gigabytes(backbone, way, False)
            cells = [weights, plain, gigabytes(backbone, way, True)[1]]
            if not way.startswith("head"):
                cells.append(gigabytes(backbone, way, True, True)[1])
            shown = [f"{cell:.2f} GB" for cell in cells]
            print(f"| {name} | {way} | {' | '.join([*shown, ''][:4])} |")


if __name__ == "__main__":
    main()
