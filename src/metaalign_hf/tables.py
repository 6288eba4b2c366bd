"""Tables of predictions, in the format that a file's name says."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from .disk import writing
from .errors import UserError

__all__ = ["TABLE_SUFFIXES", "check_suffix", "write_table", "write_text"]

TABLE_SUFFIXES = (".csv", ".json", ".jsonl", ".parquet")


def check_suffix(path: Path) -> None:
    """Refuse a file name whose ending says no format.

    Raises:
        UserError: If it is not one of `TABLE_SUFFIXES`.
    """
    if path.suffix.lower() not in TABLE_SUFFIXES:
        raise UserError(f"--output {path}: the ending says the format; use {', '.join(TABLE_SUFFIXES)}")


def write_table(path: Path, rows: Sequence[dict[str, Any]], columns: Sequence[str]) -> None:
    """Write a table: the whole file or none.

    Args:
        path: The file; its ending is one of `TABLE_SUFFIXES`. `.json` is a list of objects, `.jsonl` has one a line.
        rows: The rows, each with all columns.
        columns: Names of the columns.

    Raises:
        UserError: If the file cannot be written.
    """
    import datasets

    suffix = path.suffix.lower()
    table = datasets.Dataset.from_dict({name: [row[name] for row in rows] for name in columns})
    shown = datasets.are_progress_bars_disabled()
    datasets.disable_progress_bars()
    try:
        with _whole(path) as made:
            if suffix == ".csv":
                table.to_csv(made, index=False)
            elif suffix == ".parquet":
                table.to_parquet(made)
            elif suffix == ".jsonl":
                table.to_json(made, lines=True, orient="records", force_ascii=False)
            else:
                table.to_json(made, lines=False, orient="records", indent=2, force_ascii=False)
    finally:
        if not shown:
            datasets.enable_progress_bars()


def write_text(path: Path, text: str) -> None:
    """Write a text file: the whole file or none.

    Raises:
        UserError: If it cannot be written.
    """
    with _whole(path) as made:
        made.write_text(text, encoding="utf-8")


@contextmanager
def _whole(path: Path) -> Iterator[Path]:
    """A file to write, which then takes the name `path`."""
    with writing(path), tempfile.TemporaryDirectory(dir=path.absolute().parent, prefix=".metaalign-") as scratch:
        made = Path(scratch) / f"made{path.suffix.lower()}"
        yield made
        made.replace(path)
