"""When the libraries' progress bars and reports are in the way."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars
from transformers.utils.logging import (
    disable_progress_bar,
    enable_progress_bar,
    get_verbosity,
    is_progress_bar_enabled,
    set_verbosity,
    set_verbosity_error,
)

__all__ = ["no_hub_progress_bars", "no_model_progress_bars", "quiet_loading"]


@contextmanager
def no_model_progress_bars() -> Iterator[None]:
    """Reading or writing the one file of a model needs no bar of its own."""
    shown, hidden_uploads = is_progress_bar_enabled(), are_progress_bars_disabled()
    disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            enable_progress_bar()  # which shows the bars of huggingface_hub as well
        if hidden_uploads:
            disable_progress_bars()


@contextmanager
def quiet_loading() -> Iterator[None]:
    """Transformers' table of tensors is in the way where the caller tells in one line what a checkpoint lacks."""
    verbosity = get_verbosity()
    set_verbosity_error()
    try:
        with no_model_progress_bars():
            yield
    finally:
        set_verbosity(verbosity)


@contextmanager
def no_hub_progress_bars() -> Iterator[None]:
    """An upload in the background must not draw over the training's own bar."""
    hidden = are_progress_bars_disabled()
    disable_progress_bars()
    try:
        yield
    finally:
        if not hidden:
            enable_progress_bars()
