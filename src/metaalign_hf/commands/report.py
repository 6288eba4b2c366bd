"""`metaalign report`."""

from __future__ import annotations

from pathlib import Path

from ..disk import writing
from ..errors import UserError
from ..run_folder import REPORT_FOLDER
from .options import Parser

__all__ = ["report"]


def report(arguments: list[str]) -> None:
    """Write a report on one run, or on several.

    Args:
        arguments: The words after `metaalign report`.

    Raises:
        UserError: If an argument is wrong, a run cannot be read, or the report cannot be written.
    """
    parser = Parser(
        "report", "One HTML file on a run, finished or not; several runs are compared.", on_checkpoint=False
    )
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="folder of a run")
    parser.add_argument(
        "--output",
        type=Path,
        help=f"folder for report.html, report.md and the pictures; by default RUN/{REPORT_FOLDER}",
    )
    options = parser.read(arguments)
    if options.output is None and len(options.runs) > 1:
        raise UserError("report: several runs need --output FOLDER, where the report goes")
    folder = options.output or options.runs[0] / REPORT_FOLDER

    from ..progress import display, stage
    from ..reports.page import open_run, write_report

    runs = [open_run(place, name) for place, name in zip(options.runs, _names(options.runs), strict=True)]
    with writing(folder), display(), stage(f"drawing {folder}"):
        html, markdown, *pictures = write_report(runs, folder)
    print(f"Report: {html}\nThe same as Markdown: {markdown}, with {len(pictures)} pictures")
    if any(not run.outputs for run in runs):
        print("Of a run of an older release there are the curves alone: it kept nothing that the model said of images")


def _names(folders: list[Path]) -> list[str]:
    """What to call the runs: the ends of their paths in which they differ."""
    parts = [folder.resolve().parts for folder in folders]
    for count in range(1, max(map(len, parts)) + 1):
        names = ["/".join(path[-count:]) for path in parts]
        if len(set(names)) == len(names):
            return names
    raise UserError("report: a run is named twice")
