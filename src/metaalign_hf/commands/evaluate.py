"""`metaalign evaluate`."""

from __future__ import annotations

import json
from pathlib import Path

from ..tables import write_text
from ..tasks import known_tasks
from .options import (
    TAKES,
    Parser,
    at_least_one,
    default_batch_sizes,
    refuse_existing,
    refuse_options_of_others,
    split_off,
    table_console,
)

__all__ = ["evaluate"]


def evaluate(arguments: list[str]) -> None:
    """Print accuracy, or average precision, on a labelled domain.

    Args:
        arguments: The words after `metaalign evaluate`.

    Raises:
        UserError: If an argument, the checkpoint or the domain is wrong.
    """
    parser = Parser("evaluate", "Accuracy of a classifier, or average precision of a detector, on a labelled domain.")
    parser.add_argument(
        "--data", required=True, help="the domain: mnist, imagefolder:FOLDER, list:FILE, coco:FILE.json, ..."
    )
    parser.add_argument("--split", choices=("test", "train", "all"), default="test", help="part of the domain")
    parser.add_argument("--batch-size", type=at_least_one, help=f"images in a batch; {default_batch_sizes()}")
    special = [(kind, option) for kind in known_tasks() for option in kind.options if option.evaluates]
    for kind, option in special:
        parser.add_argument(option.flag, help=f"{kind.noun}s: {option.help}", **TAKES[option.takes])
    parser.add_argument("--output", type=Path, help="also write the figures to this JSON file")
    parser.epilog = (
        "--data.KEY VALUE refines the domain, such as --data.test_fraction 0.5; see metaalign train --help all."
    )
    arguments, refined = split_off(arguments, "--data.")
    options = parser.read(arguments)
    from ..configuration import parse_domain

    domain = parse_domain(options.data, refined)
    if options.output is not None:
        refuse_existing(options.output)

    from ..hub import load_checkpoint
    from ..progress import display, stage
    from ..tasks import task_of_model

    with display(), stage(f"loading {options.checkpoint}"):
        model, processor = load_checkpoint(options.checkpoint)
    kind = task_of_model(model)
    refuse_options_of_others(kind, options)
    own = {option.name: value for _, option in special if (value := getattr(options, option.name)) is not None}
    with display():
        size = options.batch_size or kind.batch_size
        found = kind.load().measure(model, processor, domain, options.split, size, **own)
    part = "test; --split all takes those to train on too" if options.split == "test" else options.split
    print(f"{options.checkpoint} on {found.n} images ({part}) of {options.data}:", *found.lines, sep="\n")
    if found.table is not None:
        table_console().print(found.table)
    if options.output is not None:
        write_text(options.output, json.dumps(found.figures, indent=2) + "\n")
        print(f"Figures: {options.output}")
