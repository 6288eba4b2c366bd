"""Hooks of mkdocs: benchmarks/README.md is a page of the site, as it is linked from others."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mkdocs.structure.files import File

ROOT = Path(__file__).parents[1]


def on_files(files: Any, config: Any) -> Any:
    """Add the page."""
    text = (ROOT / "benchmarks" / "README.md").read_text()
    files.append(File.generated(config, "benchmarks.md", content=text))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Links to the file lead to the page."""
    return markdown.replace("../benchmarks/README.md", "benchmarks.md")


def on_post_build(config: Any) -> None:
    """Write llms.txt: every page as Markdown beside its HTML, and a line on each."""
    lines = [f"# {config.site_name}", "", f"> {config.site_description}", ""]
    for page, title in _pages(config.nav):
        source = ROOT / "benchmarks" / "README.md" if page == "benchmarks.md" else Path(config.docs_dir, page)
        text = on_page_markdown(source.read_text())
        Path(config.site_dir, page).write_text(text)
        first = next(part for part in text.split("\n\n")[1:] if part[0].isalnum() or part[0] in "*`:")
        sentence = " ".join(first.split()).split(". ")[0].rstrip(".:")
        lines.append(f"- [{title}]({page}): {sentence}.")
    Path(config.site_dir, "llms.txt").write_text("\n".join(lines) + "\n")


def _pages(nav: list[dict[str, Any]]) -> list[tuple[str, str]]:
    """File and title of every page, in the order of the navigation."""
    found: list[tuple[str, str]] = []
    for entry in nav:
        for title, inside in entry.items():
            found += [(inside, title)] if isinstance(inside, str) else _pages(inside)
    return found
