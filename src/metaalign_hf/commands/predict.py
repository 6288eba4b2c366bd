"""`metaalign predict`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import UserError
from ..paths import printable, require_readable
from .options import Parser, at_least_one, refuse_existing, share
from .tables import check_suffix, write_table

if TYPE_CHECKING:
    from torch import Tensor

    from ..data import ImageSet

__all__ = ["predict"]

EPILOG = """\
Without --output the answers are printed, one image (of detectors one object) a line, separated by tabs. The ending of
--output says the format: .csv, .json, .jsonl or .parquet; of detectors .json is COCO json, which coco:FILE reads.
An image that cannot be read is told on stderr and left out. The exit code is 0; 1 if no image could be read; 2 for
wrong arguments.
"""


def predict(arguments: list[str]) -> int:
    """Classify images, or find objects in them.

    Args:
        arguments: The words after `metaalign predict`.

    Returns:
        The exit code: 0, or 1 if no image could be read.

    Raises:
        UserError: If an argument or the checkpoint is wrong, or the output cannot be written.
    """
    options = _parser().read(arguments)
    require_readable(options.images)
    if options.output is not None:
        check_suffix(options.output)
    for path in (options.output, options.draw):
        if path is not None:
            refuse_existing(path)

    from ..data import image_files
    from ..detection_commands import is_detector, predict_detection
    from ..hub import load_checkpoint
    from ..progress import display, stage

    files = image_files(options.images)
    with display(), stage(f"loading {options.checkpoint}"):
        model, processor = load_checkpoint(options.checkpoint)
    unreadable: list[int] = []

    def skip(index: int, error: UserError) -> None:
        unreadable.append(index)
        print(f"metaalign: {error}; left out", file=sys.stderr)

    if is_detector(model):
        if options.top_k or options.all_probabilities:
            raise UserError(f"--top-k and --all-probabilities are for classifiers; {options.checkpoint} is a detector")
        threshold = 0.5 if options.threshold is None else options.threshold
        batch_size = options.batch_size or 8
        with display():
            predict_detection(model, processor, files, threshold, batch_size, options.output, options.draw, skip)
    else:
        for name in ("draw", "threshold"):
            if getattr(options, name) is not None:
                raise UserError(f"--{name} is for detectors; {options.checkpoint} is a classifier")
        _classify(model, processor, files, options, skip)
    if not unreadable:
        return 0
    if len(unreadable) == len(files):
        print(f"metaalign: none of the {len(files)} images could be read", file=sys.stderr)
        return 1
    print(f"metaalign: {len(unreadable)} of {len(files)} images could not be read", file=sys.stderr)
    return 0


def _parser() -> Parser:
    parser = Parser("predict", "Classify images, or find objects in them, with an adapted or native checkpoint.")
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = EPILOG
    parser.add_argument("images", nargs="+", type=Path, help="image files or folders of images")
    parser.add_argument("--output", type=Path, help="write the answers to this new file instead of printing them")
    parser.add_argument("--batch-size", type=at_least_one, help="images in a batch; 64, or 8 for detectors")
    parser.add_argument("--top-k", type=at_least_one, metavar="N", help="classifiers: the N most probable classes")
    parser.add_argument("--all-probabilities", action="store_true", help="classifiers: the probability of every class")
    parser.add_argument("--draw", type=Path, help="detectors: new folder for pictures with boxes")
    parser.add_argument("--threshold", type=share, help="detectors: least score of an object; 0.5")
    return parser


def _classify(
    model: Any, processor: Any, files: ImageSet, options: argparse.Namespace, skip: Callable[[int, UserError], None]
) -> None:
    import torch

    from ..data import evaluation_batches
    from ..evaluation import predict_probabilities
    from ..progress import display, stage

    names = _distinct([model.config.id2label[index] for index in range(model.config.num_labels)])
    indices: list[int] = []
    found: list[Tensor] = []
    with display(), stage("classifying", len(files)) as shown:
        for batch in evaluation_batches(files, processor, options.batch_size or 64, skip=skip):
            indices += batch.pop("index")
            found.append(predict_probabilities(model, [batch]))
            shown.advance(len(found[-1]))
    if not found:
        return
    probabilities = torch.cat(found)
    count = options.top_k or 1
    if options.all_probabilities and options.output is None:
        count = len(names)
    best = probabilities.topk(min(count, len(names)), dim=1)
    rows = []
    for index, classes, shares, whole in zip(
        indices, best.indices.tolist(), best.values.tolist(), probabilities.tolist(), strict=True
    ):
        row: dict[str, Any] = {"file": printable(files.paths[index])}
        for rank, (number, value) in enumerate(zip(classes, shares, strict=True), 1):
            end = "" if rank == 1 else f"_{rank}"
            row |= {f"label{end}": names[number], f"probability{end}": round(value, 6)}
        if options.all_probabilities and options.output is not None:
            row |= {f"p_{name}": round(value, 6) for name, value in zip(names, whole, strict=True)}
        rows.append(row)
    if options.output is None:
        for row in rows:
            print("\t".join(f"{value:.3f}" if isinstance(value, float) else value for value in row.values()))
        return
    write_table(options.output, rows, list(rows[0]))
    print(f"{len(rows)} images classified: {options.output}")


def _distinct(names: list[str]) -> list[str]:
    """Class names, those that occur twice (ImageNet has two cranes) with their index."""
    return [f"{name} ({index})" if names.count(name) > 1 else name for index, name in enumerate(names)]
