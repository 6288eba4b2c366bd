"""What the models of an app say of images, as HTML and as a table."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from importlib.resources import files
from typing import Any

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup
from PIL import Image

from .served import Asked, Served, disagree

__all__ = ["MOST_SHOWN", "answers_page", "answers_table"]

MOST_SHOWN = 60
"""How many images the page shows; the table has all of them."""

_MOST_OBJECTS = 8
_SIDE = 480


def answers_page(served: Served, asked: Sequence[Asked], notes: Sequence[str]) -> str:
    """The images with what each model says of them.

    Args:
        served: The models.
        asked: The images.
        notes: Lines that stand above them.

    Returns:
        A fragment of HTML, in which the pictures lie.
    """
    told = list(notes)
    if len(served.sides) > 1 and asked:
        count = sum(disagree(image.answers) for image in asked)
        first = "; these come first" if 0 < count < len(asked) else ""
        whole = f"The two models disagree on {count} of {len(asked)} images{first}."
        told.append(whole if len(asked) > 1 else f"The two models {'dis' if count else ''}agree.")
    if len(asked) > MOST_SHOWN:
        told.append(f"The first {MOST_SHOWN} are shown; the table has all {len(asked)}.")
    template, style = (
        files(__package__).joinpath(f"page.{end}").read_text(encoding="utf-8") for end in ("html", "css")
    )
    page = Environment(undefined=StrictUndefined, autoescape=True, trim_blocks=True, lstrip_blocks=True)
    shown = [_of_page(served, image) for image in asked[:MOST_SHOWN]]
    return page.from_string(template).render(style=Markup(style), notes=told, images=shown)


def answers_table(served: Served, asked: Sequence[Asked]) -> tuple[list[str], list[list[Any]]]:
    """The rows that `metaalign predict --output` writes, with the name of the model where there are two.

    Returns:
        The names of the columns, and the rows.
    """
    rows = []
    for image in asked:
        for side, answer in zip(served.sides, image.answers, strict=True):
            named = {"model": side.name} if len(served.sides) > 1 else {}
            rows += [{"file": "", **named, **row} | {"file": image.name} for row in answer.rows]
    columns = list(dict.fromkeys(column for row in rows for column in row)) or ["file"]
    return columns, [[row.get(column) for column in columns] for row in rows]


def _of_page(served: Served, image: Asked) -> dict[str, Any]:
    """An image as the template takes it."""
    task = served.kind.load()
    drawn = any(option.name == "draw" for option in served.kind.options)
    sides = []
    for side, answer in zip(served.sides, image.answers, strict=True):
        names = task.confidences(answer)
        lines = [] if names else [line.removeprefix(image.name) for line in answer.lines]
        lines += [f"and {len(names) - _MOST_OBJECTS} more"] if len(names) > _MOST_OBJECTS else []
        picture = _address(image.draw(answer)) if drawn else ""
        sides.append({"name": side.name, "names": names[:_MOST_OBJECTS], "lines": lines, "picture": picture})
    return {
        "name": image.name,
        "differs": len(sides) > 1 and disagree(image.answers),
        "drawn": drawn,
        "picture": "" if drawn else _address(image.draw(image.answers[0])),
        "sides": sides,
    }


def _address(picture: Image.Image) -> str:
    """A picture as an address that holds it."""
    picture.thumbnail((2 * _SIDE, 2 * _SIDE))
    kind = "png" if max(picture.size) < _SIDE else "jpeg"
    content = io.BytesIO()
    picture.save(content, kind, quality=90)
    return f"data:image/{kind};base64,{base64.b64encode(content.getvalue()).decode()}"
