"""The page itself, made with gradio."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ..data.images import IMAGE_SUFFIXES
from ..errors import UserError
from .page import answers_page, answers_table
from .served import Asked, Served, ask, is_image, open_served

__all__ = ["THRESHOLD", "build_app", "launch", "require_gradio"]

THRESHOLD = 0.5
"""Least score of an object before somebody moves the slider."""

_KEPT_SECONDS = 600
"""How long gradio keeps the files that somebody has dropped."""


def require_gradio() -> None:
    """Refuse to go on without the extra `app`.

    Raises:
        UserError: If gradio is not installed.
    """
    if find_spec("gradio") is None:
        raise UserError("app: it needs gradio; pip install 'metaalign-hf[app]'")


def build_app(checkpoint: str | Served, against: str | None = None) -> Any:
    """A gradio app on which one drops images, or chooses a folder, and sees what a model says of them.

    A run's folder with a source-only baseline (`training.baseline`) is shown beside it.

    Args:
        checkpoint: A run's folder, a saved model or the Hub id of a checkpoint; or what `open_served` made of it.
        against: Another checkpoint, to stand on the left of it.

    Returns:
        A `gradio.Blocks`, whose `launch` serves it. Its endpoint `/predict` answers programs.

    Raises:
        UserError: If gradio is not installed, or a checkpoint cannot be loaded.
    """
    require_gradio()
    # Before the import: it reports to its makers otherwise.
    os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
    import gradio as gr

    served = open_served(checkpoint, against) if isinstance(checkpoint, str) else checkpoint

    def predict(files: list[str] | None, threshold: float = THRESHOLD, progress: Any = gr.Progress()) -> Any:  # noqa: B008
        notes: list[str] = []
        asked: list[Asked] = []
        if files:
            try:
                asked = ask(served, [Path(path) for path in files], threshold, notes.append, _told(progress))
            except UserError as error:
                raise gr.Error(str(error)) from error
        columns, rows = answers_table(served, asked)
        table = gr.Dataframe(headers=columns, value=rows, visible=bool(rows))
        return answers_page(served, asked, notes), table

    with gr.Blocks(title=served.title, analytics_enabled=False, delete_cache=(_KEPT_SECONDS, _KEPT_SECONDS)) as app:
        gr.Markdown(f"# {_plain(served.title)}\n\n{_plain(_introduction(served))}")
        with gr.Row():
            files = gr.File(label="Images", file_count="multiple", file_types=list(IMAGE_SUFFIXES), height=180, scale=3)
            with gr.Column(scale=1, min_width=220):
                folder = gr.UploadButton("Choose a folder", file_count="directory")
                threshold = gr.Slider(
                    0.05, 0.95, THRESHOLD, step=0.05, label="Least score", visible=served.has_threshold
                )
        answers = gr.HTML(elem_id="answers")
        table = gr.Dataframe(label="As a table", interactive=False, visible=False, buttons=["copy"])
        folder.upload(_images_of, folder, files, api_visibility="private")
        given: dict[str, Any] = {"fn": predict, "inputs": [files, threshold], "outputs": [answers, table]}
        files.change(**given, api_name="predict", concurrency_id="models")
        threshold.release(**given, api_visibility="private", concurrency_id="models")
    return app


def launch(app: Any, host: str, port: int | None) -> str:
    """Serve an app from a thread, without a public link.

    Args:
        app: As `build_app` made it.
        host: The address to listen on.
        port: The port; None takes the first free one from 7860 on.

    Returns:
        The address of the page.

    Raises:
        UserError: If the address cannot be had.
    """
    try:
        _, address, _ = app.launch(
            server_name=host,
            server_port=port,
            share=False,
            ssr_mode=False,
            quiet=True,
            footer_links=[],
            prevent_thread_lock=True,
        )
    except OSError as error:
        where = host if port is None else f"{host}:{port}"
        raise UserError(f"app: {where} cannot be listened on; choose another --port, or another --host") from error
    return str(address)


def _introduction(served: Served) -> str:
    """What the app says of its models."""
    if len(served.sides) > 1:
        about = f"Left: {served.sides[0].name}. Right: {served.sides[1].name}."
    else:
        about = f"One {served.kind.noun}: {served.sides[0].name}."
    return f"{about} {served.words}".strip()


def _plain(text: str) -> str:
    """The text as Markdown shows it letter by letter."""
    return re.sub(r"([\\`*_{}\[\]<>#|$~])", r"\\\1", text)


def _told(progress: Any) -> Callable[[int, int], None]:
    def advance(done: int, of: int) -> None:
        progress((done, of), unit="images")

    return advance


def _images_of(files: list[str]) -> list[str]:
    """The images of a folder; hidden files and everything else is left out."""
    return sorted(name for name in files if is_image(Path(name)))
