"""`metaalign predict`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from ..errors import UserError
from ..paths import require_readable
from ..tables import check_suffix
from ..tasks import known_tasks, task_of_model
from .options import TAKES, Parser, at_least_one, default_batch_sizes, refuse_existing, refuse_options_of_others

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
    require_readable([Path(image) for image in options.images if "://" not in image])
    if options.output is not None:
        check_suffix(options.output)
    special = [option for kind in known_tasks() for option in kind.options]
    written = [options.output, *(getattr(options, o.name) for o in special if o.takes == "folder")]
    written = [path for path in written if path is not None]
    for path in written:
        refuse_existing(path)

    from ..data import image_files
    from ..data.remote_path import place_of
    from ..hub import load_checkpoint
    from ..progress import display, stage

    files = image_files([place_of(image, "IMAGES") for image in options.images])
    with display(), stage(f"loading {options.checkpoint}"):
        model, processor = load_checkpoint(options.checkpoint)
    kind = task_of_model(model)
    refuse_options_of_others(kind, options)
    options.batch_size = options.batch_size or kind.batch_size
    unreadable: list[int] = []

    def skip(index: int, error: UserError) -> None:
        unreadable.append(index)
        print(f"metaalign: {error}; left out", file=sys.stderr)

    answers = []
    with display(), stage(kind.doing, len(files)) as shown:
        for answer in kind.load().answers(model, processor, files, options, skip):
            answers.append(answer)
            shown.advance()
            if not written:
                for line in answer.lines:
                    print(line)
    if answers:
        for line in kind.load().finish(answers, options):
            print(line)
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
    parser.add_argument("images", nargs="+", help="image files or folders of images, here or at an address")
    parser.add_argument("--output", type=Path, help="write the answers to this new file instead of printing them")
    parser.add_argument("--batch-size", type=at_least_one, help=f"images in a batch; {default_batch_sizes()}")
    for kind in known_tasks():
        for option in kind.options:
            parser.add_argument(option.flag, help=f"{kind.noun}s: {option.help}", **TAKES[option.takes])
    return parser
