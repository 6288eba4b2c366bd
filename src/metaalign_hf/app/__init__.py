"""A page in the browser on which one drops images and sees what a model says of them, or two models side by side."""

from .interface import build_app, launch, require_gradio
from .served import Served, open_served

__all__ = ["Served", "build_app", "launch", "open_served", "require_gradio"]
