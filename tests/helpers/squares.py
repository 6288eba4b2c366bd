"""Two domains of tiny pictures in folders: a square on the left or on the right, bright on black or pale on grey."""

from pathlib import Path

import torch
from PIL import Image

from tests.helpers.runs import TINY

SHAPES = ("left", "right")


def picture(shape: str, bright: int, ground: torch.Tensor) -> Image.Image:
    values = ground.clone()
    values[4:12, slice(1, 7) if shape == "left" else slice(9, 15)] += bright
    return Image.fromarray(values.clamp(0, 255).byte().numpy()).convert("RGB")


def write_squares(root: Path) -> Path:
    """`source`, `target` and `tests` in class folders, and `bare`, the target without labels; 24 pictures each."""
    numbers = torch.Generator().manual_seed(0)
    for domain, bright, ground in (("source", 220, 10), ("target", 120, 90), ("tests", 120, 90)):
        for number in range(24):
            shape = SHAPES[number % 2]
            made = picture(shape, bright, ground + 15 * torch.randn(16, 16, generator=numbers))
            files = [root / domain / shape / f"{number}.png"]
            files += [root / "bare" / f"{shape}-{number}.png"] if domain == "target" else []
            for file in files:
                file.parent.mkdir(parents=True, exist_ok=True)
                made.save(file)
    return root


def adapting(folders: Path, output: Path, *options: str) -> list[str]:
    """The words of a run of `tiny.yaml` from `source` to `target`, whose labels are in `tests`."""
    target = f"{{kind: imagefolder, path: {folders / 'target'}, test_path: {folders / 'tests'}}}"
    return [
        "train", "--config", TINY, "--data.source", f"imagefolder:{folders / 'source'}", "--data.target", target,
        "--training.output_dir", str(output), *options,
    ]  # fmt: skip
