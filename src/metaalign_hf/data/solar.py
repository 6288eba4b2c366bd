"""The embedded solar domains: photographs of solar cells that the package `elpv-dataset` ships.

Electroluminescence images of single cells, 300 x 300, grey (Buerhop-Lutz et al., EU PVSEC 2018; Deitsch et al., Solar
Energy 2019). `solar_mono` are the monocrystalline cells, `solar_poly` the polycrystalline ones; the classes are sound
and defective. Only cells whose label is certain are used, a defect probability of 0 or 1: 588 sound and 313 defective
mono cells, 920 and 402 poly cells.

The list names the cells module by module, so neighbours may be of one module. They are split by blocks: each run of
one type in the list is cut into blocks of 60 neighbours (most modules have 60 cells), and the fourth of every five
blocks of a domain is for testing. Which of the five was chosen so that both splits hold both classes.

The images are under CC-BY-NC-SA-4.0. They are read where pip put them; this package copies and ships none.
"""

from __future__ import annotations

from functools import cache
from importlib.util import find_spec
from itertools import groupby
from pathlib import Path

from ..configuration import SOLAR
from ..errors import UserError
from ..text_files import read_text
from .images import FileLoader, ImageSet

__all__ = ["SOLAR_CLASSES", "load_solar_cells", "split_solar_cells"]

SOLAR_CLASSES = ("sound", "defective")
BLOCK = 60
FOLDS, TEST_FOLD = 5, 3
CERTAIN = {0.0: 0, 1.0: 1}


def load_solar_cells(name: str) -> ImageSet:
    """The cells of an embedded domain, with labels; images are decoded later.

    Args:
        name: `solar_mono` or `solar_poly`.

    Returns:
        The cells in the order of the list, numbered as `SOLAR_CLASSES`.

    Raises:
        UserError: If the name is unknown, or the package with the images is not installed.
    """
    cells = _cells(name)
    paths = tuple(path for path, _, _ in cells)
    return ImageSet(name, len(cells), FileLoader(paths), tuple(label for _, label, _ in cells), paths)


def split_solar_cells(name: str) -> tuple[list[int], list[int]]:
    """Indices of the training and of the test images: whole blocks of neighbouring cells."""
    blocks = [block for _, _, block in _cells(name)]
    train = [index for index, block in enumerate(blocks) if block % FOLDS != TEST_FOLD]
    test = [index for index, block in enumerate(blocks) if block % FOLDS == TEST_FOLD]
    return train, test


@cache
def _cells(name: str) -> tuple[tuple[Path, int, int], ...]:
    """File, label and number of the block of every cell with a certain label."""
    if name not in SOLAR:
        raise UserError(f"solar domain {name!r} is unknown; valid: {', '.join(SOLAR)}")
    spec = find_spec("elpv_dataset")
    if spec is None or spec.origin is None:
        raise UserError(f'the domain {name} needs the package elpv-dataset: pip install "metaalign-hf[solar]"')
    folder = Path(spec.origin).parent / "data"
    lines = read_text(folder / "labels.csv", f"domain {name}: the list").splitlines()
    rows = [line.split() for line in lines if line.strip()]
    cells, block = [], -1
    for kind, run in groupby(rows, key=lambda row: row[2]):
        if f"solar_{kind}" != name:
            continue
        for position, (file, probability, *_) in enumerate(run):
            block += position % BLOCK == 0
            if float(probability) in CERTAIN:
                cells.append((folder / file, CERTAIN[float(probability)], block))
    return tuple(cells)
