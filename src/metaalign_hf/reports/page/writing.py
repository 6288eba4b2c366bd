"""A report as one HTML file that needs nothing else, as Markdown, and as pictures."""

from __future__ import annotations

import base64
import re
import shutil
from collections.abc import Sequence
from datetime import date
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined

from ...errors import UserError
from .sections import Picture, Section, Table, report_sections
from .shown import ShownRun
from .style import Drawn

__all__ = ["HTML_FILE", "MARKDOWN_FILE", "check_folder", "markdown_table", "write_report"]

HTML_FILE, MARKDOWN_FILE = "report.html", "report.md"
_MARK = '<meta name="generator" content="metaalign report">'


def check_folder(folder: Path) -> None:
    """Refuse a folder that holds something else than an earlier report.

    Raises:
        UserError: If it does.
    """
    if folder.exists() and not folder.is_dir():
        raise UserError(f"--output {folder}: it is a file; name a folder")
    if not folder.is_dir() or not any(folder.iterdir()):
        return
    earlier = folder / HTML_FILE
    if not earlier.is_file() or _MARK not in earlier.read_text(encoding="utf-8", errors="replace"):
        raise UserError(f"--output {folder}: it is not empty and holds no report; choose another folder")


def write_report(runs: Sequence[ShownRun], folder: Path) -> list[Path]:
    """Write the report on some runs.

    Args:
        runs: The runs; one has a report of its own, several are compared first.
        folder: Where it goes; an earlier report in it is replaced.

    Returns:
        The HTML file, the Markdown file, and the pictures.

    Raises:
        UserError: If the folder holds something else.
    """
    check_folder(folder)
    folder.mkdir(parents=True, exist_ok=True)
    sections = report_sections(runs)
    pictures = {shown.name: _save(shown, folder) for section in sections for shown in section.shown}
    title = runs[0].title if len({run.title for run in runs}) == 1 else f"{len(runs)} runs"
    title = title if len(runs) == 1 or title.endswith("runs") else f"{title}, {len(runs)} runs"
    told = runs[0].method if len(runs) == 1 else ", ".join(run.name for run in runs)
    template = files(__package__).joinpath("template.html").read_text(encoding="utf-8")
    page = Environment(undefined=StrictUndefined, autoescape=True, trim_blocks=True, lstrip_blocks=True)
    values = {
        "title": title,
        "told": told,
        "made": f"metaalign-hf {version('metaalign-hf')}, {date.today().isoformat()}",
        "contents": [(_anchor(s.title), s.title) for s in sections if s.level == 2],
        "sections": [_of_page(section, pictures) for section in sections],
    }
    html, markdown = folder / HTML_FILE, folder / MARKDOWN_FILE
    html.write_text(page.from_string(template).render(values), encoding="utf-8")
    markdown.write_text(_markdown(title, told, sections, pictures), encoding="utf-8")
    return [html, markdown, *pictures.values()]


def _save(shown: Drawn | Picture, folder: Path) -> Path:
    path = folder / f"{re.sub(r'[^A-Za-z0-9._-]+', '_', shown.name)}.png"
    if isinstance(shown, Picture):
        shutil.copyfile(shown.path, path)
    else:
        shown.figure.savefig(path, dpi=130, metadata={"Software": None})
    return path


def _of_page(section: Section, pictures: dict[str, Path]) -> dict[str, Any]:
    """A section as the template takes it."""
    shown = [
        {
            "name": shown.name,
            "data": base64.b64encode(pictures[shown.name].read_bytes()).decode(),
            "caption": shown.caption,
            "width": None if isinstance(shown, Picture) else shown.width,
        }
        for shown in section.shown
    ]
    return {
        "title": section.title,
        "anchor": _anchor(section.title),
        "level": section.level,
        "words": section.words,
        "table": section.table,
        "shown": shown,
    }


def _markdown(title: str, told: str, sections: Sequence[Section], pictures: dict[str, Path]) -> str:
    lines = [f"# {title}", "", told, ""]
    for section in sections:
        lines += [f"{'#' * section.level} {section.title}", ""]
        for paragraph in section.words:
            lines += [paragraph, ""]
        if section.table is not None:
            lines += [*markdown_table(section.table), ""]
        for shown in section.shown:
            lines += [f"![{shown.caption}]({pictures[shown.name].name})", "", shown.caption, ""]
    return "\n".join(lines).rstrip() + "\n"


def markdown_table(table: Table) -> list[str]:
    """The lines of a table in Markdown."""

    def row(cells: Sequence[str]) -> str:
        escaped = (cell.replace("|", "\\|") for cell in cells)
        return f"| {' | '.join(escaped)} |"

    marks = [*["---"] * table.words, *["---:"] * (len(table.columns) - table.words)]
    return [row(table.columns), row(marks), *map(row, table.rows)]


def _anchor(title: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-")
