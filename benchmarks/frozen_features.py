"""Frozen ImageNet features of the solar and digit domains, for benchmarks that cost seconds a run.

    python benchmarks/frozen_features.py features.safetensors

EfficientNet-Lite0's pooled features in evaluation mode: of the solar cells at 160 pixels and their flips, and of the
digits at 96 pixels. Images, their order and the split are those of `metaalign_hf.data`.
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torchvision.transforms.v2 import functional as F

from imagenet_weights import write_imagenet_weights
from metaalign_hf.data.digits import load_digits_images, split_digits
from metaalign_hf.data.solar import load_solar_cells, split_solar_cells

BACKBONE = "tf_efficientnet_lite0"
SOLAR = ("solar_mono", "solar_poly")
DIGITS = ("uci_digits", "mnist", "mnist_m")
FLIPS: tuple[tuple[int, ...], ...] = ((), (-1,), (-2,), (-2, -1))
BATCH = 32


def frozen_features(cache: Path) -> dict[str, tuple[Tensor, Tensor, Tensor]]:
    """Features of all five domains.

    Args:
        cache: A .safetensors file outside the repository; it is written where it does not exist.

    Returns:
        For each of `SOLAR` and `DIGITS`: features `(n, views, 1280)`, float32, first those of the image as it is (the
        view to evaluate on), for solar cells also flipped from left to right, upside down, and both; labels `(n,)`; and
        which are test images `(n,)`, bool.
    """
    if not cache.exists():
        cache.parent.mkdir(parents=True, exist_ok=True)
        save_file(_compute(), cache)
    found = load_file(cache)
    return {
        name: (found[f"{name}.features"], found[f"{name}.labels"], found[f"{name}.is_test"].bool())
        for name in (*SOLAR, *DIGITS)
    }


def imagenet_backbone() -> Any:
    """EfficientNet-Lite0 with its ImageNet weights, in evaluation mode."""
    model = timm.create_model(BACKBONE).eval()
    with tempfile.TemporaryDirectory() as folder:
        model.load_state_dict(load_file(write_imagenet_weights(BACKBONE, Path(folder) / "weights.safetensors")))
    return model


def _compute() -> dict[str, Tensor]:
    model = imagenet_backbone()
    model.reset_classifier(0)
    model = model.to(memory_format=torch.channels_last)  # a third faster
    found = {}
    for name in (*SOLAR, *DIGITS):
        images, labels, test = solar_cells(name) if name in SOLAR else digit_images(name)
        size, flips = (160, FLIPS) if name in SOLAR else (96, FLIPS[:1])
        found[f"{name}.features"] = outputs(model, images, size, flips)
        found[f"{name}.labels"] = torch.tensor(labels)
        found[f"{name}.is_test"] = chosen(test, len(labels))
    return found


def chosen(indices: list[int], count: int) -> Tensor:
    """Whether each of so many images is one of those, `(count,)`, bool."""
    mask = torch.zeros(count, dtype=torch.bool)
    mask[indices] = True
    return mask


def solar_cells(name: str) -> tuple[list[Tensor], list[int], list[int]]:
    """Images, labels and indices of the test images."""
    cells = load_solar_cells(name)
    assert cells.labels is not None
    return [cells[i] for i in range(len(cells))], list(cells.labels), list(split_solar_cells(name)[1])


def digit_images(name: str) -> tuple[list[Tensor], list[int], list[int]]:
    """Images, labels and indices of the test images."""
    images, labels = load_digits_images(name)
    return list(images), list(labels), split_digits(name)[1]


@torch.no_grad()
def outputs(model: nn.Module, images: list[Tensor], size: int, flips: tuple[tuple[int, ...], ...] = FLIPS) -> Tensor:
    """What a model gives for each view of images of one size in pixels, `(n, views, ...)`."""
    return torch.cat([_views(model, images[i : i + BATCH], size, flips) for i in range(0, len(images), BATCH)])


def _views(model: nn.Module, batch: list[Tensor], size: int, flips: tuple[tuple[int, ...], ...]) -> Tensor:
    images = torch.stack([F.resize(image, [size, size]) for image in batch])
    images = ((images.float() / 255 - 0.5) / 0.5).contiguous(memory_format=torch.channels_last)
    return torch.stack([model(images.flip(flip) if flip else images) for flip in flips], dim=1)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        raise SystemExit(__doc__)
    started = time.perf_counter()
    for domain, (features, _, test) in frozen_features(Path(sys.argv[1])).items():
        print(f"{domain}: features {tuple(features.shape)}, {int(test.sum())} test images")
    print(f"{time.perf_counter() - started:.0f} s")
