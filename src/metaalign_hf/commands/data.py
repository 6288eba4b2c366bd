"""`metaalign data check`."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from ..configuration import parse_config
from ..disk import refuse_unwritable, writing
from ..errors import UserError, did_you_mean
from ..tables import write_text
from .options import Parser, at_least_one, split_off_settings, table_console

__all__ = ["data"]

JSON_FILE, SHEET_FILE = "data_check.json", "contact_sheet.png"

EPILOG = """\
Options of metaalign train say what to check: metaalign data check --config FILE --data.target imagefolder:FOLDER.
It writes data_check.json and contact_sheet.png to the folder, in place of those of an earlier check.

The exit code is 1 where a long run would be pointless: class names that do not agree, a class without training images,
images that cannot be read (with data.on_bad_image: error any, with skip all of a domain), one in a hundred target
images with a copy in the source, labelled target images among the target's test images, or a model or step that does
not work. It is 2 for wrong arguments and for a domain that is not there, and otherwise 0.
"""


def data(arguments: list[str]) -> int:
    """Look at a domain pair before a long run.

    Args:
        arguments: The words after `metaalign data`.

    Returns:
        The exit code: 1 where a run would be pointless, else 0.

    Raises:
        UserError: If an argument is wrong, or a domain cannot be read.
    """
    if not arguments or arguments[0] in ("-h", "--help"):
        print("usage: metaalign data check [CONFIG] [--section.key VALUE ...]; see metaalign data check --help")
        return 0 if arguments else 2
    command, *rest = arguments
    if command != "check":
        hint = did_you_mean(command, ["check"], "use metaalign data check")
        raise UserError(f"data: unknown command {command!r}; {hint}")
    own, described = split_off_settings(rest, "--config")
    options = _parser().read(own)
    if options.config is not None:
        described = ["--config", str(options.config), *described]
    if not described:
        raise UserError("data check: name a configuration file, or --data.source and --data.target")
    config = parse_config(described)
    folder = options.output or Path(f"{config.training.output_dir.rstrip('/')}-data-check")
    _refuse_others(folder)

    from ..data_check import check_data
    from ..data_check.words import as_json, class_table, in_words
    from ..progress import display

    with display():
        check = check_data(config, options.images, not options.no_model)
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        check.sheet.save(folder / SHEET_FILE)
    write_text(folder / JSON_FILE, json.dumps(as_json(check), indent=2) + "\n")
    for line in in_words(check):
        print(line)
    if (table := class_table(check)) is not None:
        print("Training + test:")
        table_console().print(table)
    for title, found in (("Remark", check.remarks), ("Problem", check.problems)):
        for line in found:
            print(f"{title}: {line}")
    print(f"Contact sheet: {folder / SHEET_FILE}\nFigures and lists: {folder / JSON_FILE}")
    count = len(check.problems)
    print("Nothing speaks against a run." if not count else f"{count} problem{'s' if count > 1 else ''}: see above.")
    return 1 if count else 0


def _parser() -> Parser:
    parser = Parser("data check", "Look at a domain pair before a long run.", on_checkpoint=False)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = EPILOG
    parser.add_argument("config", nargs="?", type=Path, help="configuration file of the run")
    parser.add_argument("--output", type=Path, help="folder to write to; by default training.output_dir-data-check")
    parser.add_argument(
        "--images", type=_count, default=5000, metavar="N|all", help="images of a domain to read (default: 5000)"
    )
    parser.add_argument("--no-model", action="store_true", help="leave out shift and cost, which need the model")
    return parser


def _count(text: str) -> int | None:
    return None if text == "all" else at_least_one(text)


def _refuse_others(folder: Path) -> None:
    """Refuse a folder with something else in it than an earlier check.

    Raises:
        UserError: If there is something else, or it cannot be written to.
    """
    refuse_unwritable(folder, "--output")
    if folder.exists() and any(folder.iterdir()) and not (folder / JSON_FILE).is_file():
        raise UserError(f"--output: {folder} holds something else than an earlier check; name a new folder")
