"""Images per second and core: our loading against a plain datasets + PIL pipeline and timm's loader, in one run.

    python benchmarks/data.py

JPEG photographs of 500 pixels, cut from those of scikit-learn, become normalised batches of 224 pixels, in one thread
and without workers. Rounds of all pipelines take turns, and each is timed by its processor time, so that other programs
matter less. ResNet-50's forward and backward pass is timed in the same way, to compute how long a step waits.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from PIL import Image
from rich import box
from rich.table import Table
from torchvision import transforms

from metaalign_hf import load_domain
from metaalign_hf.data import training_stream
from metaalign_hf.models import build_image_processor
from runs import RESULTS, machine

PINNED = RESULTS / "data.json"
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
IMAGES, BATCH = 96, 32
SUPPOSED = (500, 1000, 2000)
"""Images a second that a GPU may take; none was at hand."""
OURS, PILLOW, PLAIN, TIMM = "metaalign_hf", "the same with Pillow's decoder", "datasets + PIL", "timm"
ROWS = "metaalign_hf, rows of parquet"


def write_photographs(folder: Path, side: int = 500) -> None:
    """JPEG files of two classes, most of them `side` wide, of the qualities and shapes that photographs come in."""
    from sklearn.datasets import load_sample_images

    generator = np.random.default_rng(0)
    photographs = [Image.fromarray(pixels) for pixels in load_sample_images().images]
    for number in range(IMAGES):
        width, height = (side, side * 3 // 4) if number % 3 else (side * 3 // 4, side)
        left, top = generator.integers(90), generator.integers(40)
        part = photographs[number % 2].crop((left, top, left + 540 * width // max(width, height), top + 380))
        place = folder / "train" / "ab"[number % 2] / f"{number:03}.jpg"
        place.parent.mkdir(parents=True, exist_ok=True)
        part.resize((width, height), Image.Resampling.BICUBIC).save(place, quality=int(generator.integers(75, 96)))


def ours(folder: Path) -> Iterator[Any]:
    """The stream of training batches of a run."""
    from metaalign_hf import DomainConfig

    place = str(folder / "train")
    images = load_domain(DomainConfig(kind="imagefolder", path=place, test_path=place)).train
    return training_stream(images, build_image_processor(224, 256, MEAN, STD), batch_size=BATCH, seed=0)


def ours_of_rows(folder: Path) -> Iterator[Any]:
    """The same files as rows of a parquet file."""
    import datasets

    from metaalign_hf import DomainConfig

    place = str(folder / "train.parquet")
    data = datasets.load_dataset("imagefolder", data_dir=str(folder), cache_dir=str(folder / "cache"))["train"]
    data.to_parquet(place)
    images = load_domain(DomainConfig(kind="parquet", path=place, test_path=place)).train
    return training_stream(images, build_image_processor(224, 256, MEAN, STD), batch_size=BATCH, seed=0)


def with_pillow(folder: Path) -> Iterator[Any]:
    """The same, decoded by Pillow."""
    stream = ours(folder)
    while True:
        with mock.patch("metaalign_hf.data.images.decoded_jpeg", return_value=None):
            batch = next(stream)
        yield batch


def plain(folder: Path) -> Iterator[Any]:
    """`datasets` with torchvision's transforms of PIL images, as its documentation has it."""
    import datasets

    steps = [transforms.Resize((256, 256)), transforms.RandomCrop(224), transforms.RandomHorizontalFlip()]
    view = transforms.Compose([*steps, transforms.ToTensor(), transforms.Normalize(MEAN, STD)])
    data = datasets.load_dataset("imagefolder", data_dir=str(folder), cache_dir=str(folder / "cache"))["train"]
    data.set_transform(lambda rows: {"x": [view(image.convert("RGB")) for image in rows["image"]], "y": rows["label"]})
    return _repeated(torch.utils.data.DataLoader(data, batch_size=BATCH, shuffle=True))


def timms(folder: Path) -> Iterator[Any]:
    """The loader of timm; it resizes to the same square, and crops at the centre."""
    from timm.data import create_dataset, create_loader

    loader = create_loader(
        create_dataset("", root=str(folder / "train")),
        input_size=(3, 224, 224),
        batch_size=BATCH,
        use_prefetcher=False,
        interpolation="bilinear",
        mean=MEAN,
        std=STD,
        num_workers=0,
        crop_pct=0.875,
        crop_mode="squash",
        device=torch.device("cpu"),
        persistent_workers=False,
    )
    return _repeated(loader)


def _repeated(loader: Any) -> Iterator[Any]:
    while True:
        yield from loader


PIPELINES: dict[str, Callable[[Path], Iterator[Any]]] = {
    OURS: ours,
    ROWS: ours_of_rows,
    PILLOW: with_pillow,
    PLAIN: plain,
    TIMM: timms,
}


def resnet50_rate(steps: int = 2) -> float:
    """Images per second of processor time of ResNet-50's forward and backward pass, in one thread."""
    from torchvision.models import resnet50

    model, images = resnet50(num_classes=65), torch.randn(32, 3, 224, 224)
    taken = []
    for _ in range(steps):
        started = time.process_time()
        model(images).logsumexp(1).mean().backward()
        taken.append(time.process_time() - started)
    return len(images) / min(taken)


def measure(rounds: int) -> dict[str, Any]:
    """Images per second of every pipeline, and of each the ratio to the plain one: the median and range of rounds."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as scratch:
        write_photographs(Path(scratch))
        streams = {name: make(Path(scratch)) for name, make in PIPELINES.items()}
        rates: dict[str, list[float]] = {name: [] for name in streams}
        for name, _ in itertools.product(streams, range(IMAGES // BATCH)):
            next(streams[name])
        for _ in range(rounds):
            for name, stream in streams.items():
                started = time.process_time()
                for _ in range(IMAGES // BATCH):
                    next(stream)
                rates[name].append(IMAGES / (time.process_time() - started))
    found: dict[str, Any] = {"machine": machine(), "rounds": rounds, "images": IMAGES, "batch": BATCH}
    for name, measured in rates.items():
        ratios = [rate / other for rate, other in zip(measured, rates[PLAIN], strict=True)]
        found[name] = {
            "images_per_second": statistics.median(measured),
            "ratio": statistics.median(ratios),
            "least": min(ratios),
            "most": max(ratios),
        }
    return found | {"resnet50_images_per_second": resnet50_rate()}


def tables() -> dict[str, Table]:
    """The table of the README."""
    found = json.loads(PINNED.read_text())
    table = Table("pipeline", "images a second and core", "against datasets + PIL", box=box.MARKDOWN, title="loading")
    for name in PIPELINES:
        row = found[name]
        spread = "" if name == PLAIN else f" ({row['least']:.2f} to {row['most']:.2f})"
        table.add_row(name, f"{row['images_per_second']:.0f}", f"x{row['ratio']:.2f}{spread}")
    rate, measured = found[OURS]["images_per_second"], found["resnet50_images_per_second"]
    waits = Table(
        "ResNet-50 takes", "without workers it waits", "workers for less than 5 %", box=box.MARKDOWN, title="waiting"
    )
    for taken in (measured, *SUPPOSED):
        told = (
            f"{taken:.1f} a second (measured, one thread)" if taken == measured else f"{taken:,.0f} a second (supposed)"
        )
        waits.add_row(told, f"{100 * taken / (taken + rate):.1f} %", str(math.ceil(0.95 * taken / rate)))
    return {"loading": table, "waiting": waits}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    PINNED.write_text(json.dumps(measure(parser.parse_args().rounds), indent=1) + "\n")
    print(PINNED.read_text())
