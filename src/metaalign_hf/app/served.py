"""The models that an app asks, and what they say of image files: the answers of `metaalign predict`."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from ..data import ImageSet, image_files
from ..data.images import IMAGE_SUFFIXES
from ..errors import UserError
from ..hub import fetch, load_checkpoint
from ..paths import printable
from ..reports.page.shown import ShownRun
from ..reports.record import read_record
from ..run_folder import BASELINE_FOLDER, MODEL_CONFIG_FILE
from ..tasks import TaskKind, task_of_model
from ..tasks.base import Answer

__all__ = ["Asked", "Served", "Side", "ask", "disagree", "is_image", "open_served"]

TOP_K = 3
"""How many classes of a classifier are shown."""


@dataclass(frozen=True)
class Side:
    """A model of an app.

    Attributes:
        name: What it is called there.
        model: The model.
        processor: Its image processor.
    """

    name: str
    model: Any
    processor: Any


@dataclass(frozen=True)
class Served:
    """What an app shows.

    Attributes:
        title: What the app is called.
        words: What is known of the models, in a sentence; empty where nothing is.
        kind: Their task.
        sides: One model, or that before adaptation and the adapted one.
    """

    title: str
    words: str
    kind: TaskKind
    sides: tuple[Side, ...]

    @property
    def has_threshold(self) -> bool:
        """Whether the answers depend on a least score."""
        return any(option.name == "threshold" for option in self.kind.options)


@dataclass(frozen=True)
class Asked:
    """An image and what the models say of it.

    Attributes:
        name: Name of its file.
        answers: The answer of each model, in their order.
        draw: Makes a picture of the image, with what such an answer can draw in it.
    """

    name: str
    answers: tuple[Answer, ...]
    draw: Callable[[Answer], Image.Image]


def open_served(checkpoint: str, against: str | None = None) -> Served:
    """Load what an app shows.

    Args:
        checkpoint: A run's folder, a saved model, or the Hub id of a checkpoint.
        against: Another checkpoint, to stand on the left of it; by default the source-only run in a run's folder.

    Raises:
        UserError: If a checkpoint cannot be loaded, or the two are of different tasks.
    """
    folder = fetch(checkpoint)
    beside = folder / BASELINE_FOLDER
    first, second = "Source only", "Adapted"
    if against is None and (beside / MODEL_CONFIG_FILE).is_file():
        against = str(beside)
    elif against is not None:
        first, second = against, checkpoint
    sides = [Side(name, *load_checkpoint(where)) for name, where in ((first, against), (second, checkpoint)) if where]
    if len(sides) == 1:
        sides = [Side(checkpoint, sides[0].model, sides[0].processor)]
    kinds = [task_of_model(side.model) for side in sides]
    if kinds[0] != kinds[-1]:
        raise UserError(f"app: {against} is a {kinds[0].noun}, and {checkpoint} a {kinds[1].noun}")
    run = ShownRun(checkpoint, folder, read_record(folder))
    title = run.title if run.record.training else Path(checkpoint).name
    return Served(title, _measured(run), kinds[0], tuple(sides))


def _measured(run: ShownRun) -> str:
    """What the run measured on the target, in a sentence."""
    _, after = run.scores("target")
    alone = (run.record.summary.get("baseline") or {}).get("target")
    if after is None:
        return ""
    beside = "" if alone is None else f", and trained on the source alone {100 * alone:.1f} %"
    return f"On the target's test images: {run.record.measure.heading} {100 * after:.1f} %{beside}."


def ask(
    served: Served,
    paths: Sequence[Path],
    threshold: float,
    unreadable: Callable[[str], None],
    advance: Callable[[int, int], None] = lambda done, of: None,
) -> list[Asked]:
    """What the models say of image files.

    Args:
        served: The models.
        paths: The files; those that are no images by their names are left out.
        threshold: Least score of an object that a detector finds.
        unreadable: Called with a line for every file that cannot be read.
        advance: Called with how much is done, and of how much.

    Returns:
        The images that could be read. Where two models disagree, these images come first.
    """
    chosen = [path for path in paths if is_image(path)]
    for path in paths:
        if not is_image(path):
            unreadable(f"{path.name} is no image by its name; known kinds: {', '.join(IMAGE_SUFFIXES)}")
    if not chosen:
        return []
    files, task = image_files(chosen), served.kind.load()
    options = argparse.Namespace(**dict.fromkeys((option.name for option in served.kind.options), None))
    vars(options).update(output=None, batch_size=served.kind.batch_size, top_k=TOP_K, threshold=threshold)
    given: list[list[Answer]] = []
    skipped: dict[int, UserError] = {}
    for side in served.sides:
        found = []
        for answer in task.answers(side.model, side.processor, files, options, skipped.__setitem__):
            found.append(answer)
            advance(len(given) * len(files) + len(found), len(served.sides) * len(files))
        given.append(found)
    for index, error in skipped.items():
        path = files.paths[index]
        unreadable(str(error).replace(printable(path), path.name))
    kept = [index for index in range(len(files)) if index not in skipped]
    asked = list(_together(files, kept, given, task))
    if len(served.sides) > 1:
        asked.sort(key=lambda image: not disagree(image.answers))
    return asked


def is_image(path: Path) -> bool:
    """Whether a file is an image by its name, and not hidden."""
    return path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith(".")


def _together(files: ImageSet, kept: list[int], given: list[list[Answer]], task: Any) -> Iterator[Asked]:
    for index, *answers in zip(kept, *given, strict=True):

        def draw(answer: Answer, index: int = index) -> Image.Image:
            return task.picture(files[index], answer)

        yield Asked(files.paths[index].name, tuple(answers), draw)


def disagree(answers: Sequence[Answer]) -> bool:
    """Whether the models see something else in an image: another class, or other objects."""
    first, last = (sorted(str(row.get("label")) for row in answer.rows) for answer in (answers[0], answers[-1]))
    return first != last
