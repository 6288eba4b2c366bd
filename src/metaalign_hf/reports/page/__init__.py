"""The report on one run or several: one HTML file, Markdown and pictures."""

from .shown import ShownRun, open_run
from .writing import HTML_FILE, MARKDOWN_FILE, check_folder, write_report

__all__ = ["HTML_FILE", "MARKDOWN_FILE", "ShownRun", "check_folder", "open_run", "write_report"]
