"""The tables of benchmarks/README.md and docs/choosing.md, written from the pinned runs by the scripts that own them.

    python benchmarks/readme.py           # write every table anew
    python benchmarks/readme.py --check   # exit 1 where a table differs from its runs

A script in `PAGES` has `tables()`, which gives its tables by name; each stands in the page between
`<!-- table: NAME -->` and `<!-- end -->`.
"""

from __future__ import annotations

import re
import sys
from importlib import import_module
from io import StringIO
from pathlib import Path

from rich.console import Console
from rich.table import Table

import runs

SCRIPTS = (
    *("accuracy", "target_losses", "peers", "from_scratch", "fine_tuned"),
    *("step", "what_trains", "model_selection", "batch_norm", "detection", "detection_profile", "cached_maps"),
    *("detection_leaders", "shares", "label_sets"),
    *("data", "data_scale"),
)
README = Path(__file__).with_name("README.md")
PAGES = {README: SCRIPTS, README.parents[1] / "docs" / "choosing.md": ("choosing",)}


def markdown(table: Table) -> str:
    """A table as Markdown, without its title."""
    written = StringIO()
    Console(file=written, width=10_000).print(table)
    rows = [line.strip() for line in written.getvalue().splitlines() if line.lstrip().startswith("|")]
    cells = [[cell.strip() for cell in row[1:-1].split("|")] for row in rows]
    return "\n".join("|" + "|".join(map(_padded, row)) + "|" for row in cells)


def _padded(cell: str) -> str:
    return "---" if cell and set(cell) == {"-"} else f" {cell} ".replace("  ", " ")


def with_tables(text: str, tables: dict[str, Table]) -> str:
    """The text with these tables between their markers."""
    for name, table in tables.items():
        between = re.compile(rf"(<!-- table: {re.escape(name)} -->\n).*?(<!-- end -->)", re.DOTALL)
        if not between.search(text):
            raise SystemExit(f"there are no markers for the table {name!r}")
        text = between.sub(lambda found, table=table: f"{found[1]}{markdown(table)}\n{found[2]}", text)
    return text


def publish(tables: dict[str, Table]) -> None:
    """Print the tables and write them into the README."""
    for table in tables.values():
        Console(width=260).print(table)
    README.write_text(with_tables(README.read_text(), tables))


def main() -> None:
    check = sys.argv[1:] == ["--check"]
    runs.only_pinned = True
    for page, scripts in PAGES.items():
        before = after = page.read_text()
        for script in scripts:
            after = with_tables(after, import_module(script).tables())
        if not check:
            page.write_text(after)
        elif before != after:
            raise SystemExit(f"{page.name} does not show what is pinned in results/: run python benchmarks/readme.py")


if __name__ == "__main__":
    main()
