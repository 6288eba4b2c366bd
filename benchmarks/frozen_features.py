"""Frozen ImageNet features of the solar and digit domains, for benchmarks that cost seconds a run.

    python benchmarks/frozen_features.py features.safetensors

EfficientNet-Lite0's pooled features in evaluation mode: of the solar cells at 160 pixels and their flips, and of the
digits at 96 pixels. Images, their order and the split are those of `metaalign_hf.data`. Views of training images that
only the student of a target loss sees (`student_views`) are made when a benchmark first asks for them.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable, Sequence
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
from metaalign_hf.target_losses.views import masked_view, strong_view

BACKBONE = "tf_efficientnet_lite0"
SOLAR = ("solar_mono", "solar_poly")
DIGITS = ("uci_digits", "mnist", "mnist_m")
FLIPS: tuple[tuple[int, ...], ...] = ((), (-1,), (-2,), (-2, -1))
BATCH = 32
STUDENT_VIEWS = 3
MEAN = STD = (0.5, 0.5, 0.5)


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


def student_views(cache: Path, name: str) -> dict[str, Tensor]:
    """Features of views of a domain's training images that the students of target losses see.

    They are the package's own views with its defaults: two operations of RandAugment with magnitude 10 for
    `self_training`, and patches of 2/7 of the image's side, of which 70 % are masked, for `masked_consistency`. Solar
    cells are flipped first, each view otherwise.

    Args:
        cache: The file of `frozen_features`; each domain has a file beside it, which is written where it is missing.
        name: The domain.

    Returns:
        For each of the two losses features `(n, STUDENT_VIEWS, 1280)`, float32.
    """
    path = cache.with_name(f"{cache.stem}-views-{name}.safetensors")
    if not path.exists():
        images, _, test = solar_cells(name) if name in SOLAR else digit_images(name)
        size, flips = (160, FLIPS) if name in SOLAR else (96, FLIPS[:1])
        kept = [images[i] for i in (~chosen(test, len(images))).nonzero().flatten().tolist()]
        model, patch = _feature_extractor(), round(size * 2 / 7)
        torch.manual_seed(0)
        made: dict[str, Callable[[Tensor], Tensor]] = {
            "self_training": lambda pixels: strong_view(pixels, MEAN, STD),
            "masked_consistency": lambda pixels: masked_view(pixels, patch, 0.7),
        }
        turned = [flips[i % len(flips)] for i in range(STUDENT_VIEWS)]
        save_file({loss: outputs(model, kept, size, turned, view) for loss, view in made.items()}, path)
    return load_file(path)


def imagenet_backbone() -> Any:
    """EfficientNet-Lite0 with its ImageNet weights, in evaluation mode."""
    model = timm.create_model(BACKBONE).eval()
    with tempfile.TemporaryDirectory() as folder:
        model.load_state_dict(load_file(write_imagenet_weights(BACKBONE, Path(folder) / "weights.safetensors")))
    return model


def _feature_extractor() -> Any:
    model = imagenet_backbone()
    model.reset_classifier(0)
    return model.to(memory_format=torch.channels_last)  # a third faster


def _compute() -> dict[str, Tensor]:
    model = _feature_extractor()
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
def outputs(
    model: nn.Module,
    images: list[Tensor],
    size: int,
    flips: Sequence[tuple[int, ...]] = FLIPS,
    view: Callable[[Tensor], Tensor] = lambda pixels: pixels,
) -> Tensor:
    """What a model gives for a view of images of one size in pixels, after each flip: `(n, flips, ...)`."""
    found = []
    for i in range(0, len(images), BATCH):
        batch = torch.stack([F.resize(image, [size, size]) for image in images[i : i + BATCH]])
        pixels = (batch.float() / 255 - 0.5) / 0.5
        seen = [view(pixels.flip(flip) if flip else pixels) for flip in flips]
        found.append(torch.stack([model(x.contiguous(memory_format=torch.channels_last)) for x in seen], dim=1))
    return torch.cat(found)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        raise SystemExit(__doc__)
    started = time.perf_counter()
    for domain, (features, _, test) in frozen_features(Path(sys.argv[1])).items():
        print(f"{domain}: features {tuple(features.shape)}, {int(test.sum())} test images")
    print(f"{time.perf_counter() - started:.0f} s")
