"""`metaalign app`."""

from __future__ import annotations

import argparse

from .options import Parser

__all__ = ["app"]


def app(arguments: list[str]) -> None:
    """Serve a page on which one drops images and sees what a model says of them.

    Args:
        arguments: The words after `metaalign app`.

    Raises:
        UserError: If an argument or a checkpoint is wrong, gradio is missing, or the port is taken.
    """
    parser = Parser("app", "A page in the browser: drop images, and see what the adapted model says of them.")
    parser.add_argument(
        "--against",
        metavar="CHECKPOINT",
        help="another checkpoint to show on the left; by default the source-only baseline of a run's folder",
    )
    parser.add_argument("--port", type=_port, help="port; by default the first free one from 7860 on")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on; by default 127.0.0.1, this machine")
    options = parser.read(arguments)

    from ..app import build_app, launch, open_served, require_gradio
    from ..progress import display, stage

    require_gradio()
    with display(), stage(f"loading {options.checkpoint}"):
        served = open_served(options.checkpoint, options.against)
        page = build_app(served)
    address = launch(page, options.host, options.port)
    print(f"App: {address} (Ctrl-C ends it)", flush=True)
    if len(served.sides) == 1:
        print("One model; --against CHECKPOINT shows another beside it, as does a run with training.baseline")
    page.block_thread()


def _port(text: str) -> int:
    """An argparse type: a port to listen on."""
    if not (text.isdecimal() and 1 <= int(text) <= 65535):
        raise argparse.ArgumentTypeError(f"{text} was given: it must be a whole number, 1 to 65535")
    return int(text)
