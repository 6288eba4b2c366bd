"""`metaalign skills`."""

from __future__ import annotations

from pathlib import Path

from ..disk import write_whole, writing
from .options import Parser, refuse_existing

__all__ = ["SKILL", "skills"]

SKILL = Path(__file__).parents[1] / "skills" / "SKILL.md"


def skills(arguments: list[str]) -> None:
    """Say where the skill file for coding assistants is, or write it where one looks for it.

    Args:
        arguments: The words after `metaalign skills`.

    Raises:
        UserError: If the file exists there.
    """
    parser = Parser("skills", "Where the skill file for coding assistants is.", on_checkpoint=False)
    parser.add_argument(
        "--write", type=Path, metavar="FOLDER", help="copy it to FOLDER/metaalign/SKILL.md, such as of .claude/skills"
    )
    folder = parser.read(arguments).write
    if folder is None:
        print(SKILL)
        return
    copy = folder / "metaalign" / SKILL.name
    refuse_existing(copy)
    with writing(copy):
        write_whole(copy, SKILL.read_text())
    print(f"Written: {copy}")
