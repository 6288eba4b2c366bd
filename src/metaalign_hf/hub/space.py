"""A gradio Space that serves a pushed checkpoint: the page of `metaalign app`, made by three small files."""

from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version

import yaml

from .errors import retry
from .repository import TAG, Repository

__all__ = ["push_space", "space_files"]

_APP = '''\
"""Drop images, and see what {checkpoint} says of them."""

from metaalign_hf.app import build_app

demo = build_app("{checkpoint}")

if __name__ == "__main__":
    demo.launch()
'''

_README = """\
---
{metadata}---

# {title}

Drop images, and see what [{repo_id}](https://huggingface.co/{repo_id}) says of them.
Made with `metaalign push --space`.
"""


def space_files(checkpoint: str, license: str | None = None) -> dict[str, bytes]:
    """The files of a Space.

    Args:
        checkpoint: Hub id of the checkpoint, `organisation/name` or `organisation/name@revision`.
        license: Licence of the Space.
    """
    repo_id = checkpoint.partition("@")[0]
    title = repo_id.rpartition("/")[2]
    metadata = {
        "title": title,
        "emoji": "🎯",
        "colorFrom": "blue",
        "colorTo": "yellow",
        "sdk": "gradio",
        **_versions(),
        "app_file": "app.py",
        "pinned": False,
        "models": [repo_id],
        "tags": [TAG],
        **({} if license is None else {"license": license}),
    }
    said = yaml.safe_dump(metadata, sort_keys=False, allow_unicode=True)
    texts = {
        "README.md": _README.format(metadata=said, title=title, repo_id=repo_id),
        "app.py": _APP.format(checkpoint=checkpoint),
        "requirements.txt": f"metaalign-hf[app]{_release()}\n",
    }
    return {name: text.encode() for name, text in texts.items()}


def push_space(
    checkpoint: str,
    name: str | None = None,
    *,
    license: str | None = None,
    private: bool | None = None,
    token: str | None = None,
    overwrite: bool = False,
    attempts: int = 5,
    retry_seconds: float = 2.0,
    report: Callable[[str], None] = print,
) -> str:
    """Make a gradio Space that serves a checkpoint of the Hub, or renew it.

    Args:
        checkpoint: Its id, `organisation/name`, `name` in your own namespace, or `id@revision`.
        name: The Space: `organisation/name`, or `name` beside the checkpoint. By default it is called like that.
        license: Licence of the Space.
        private: Whether a new Space is private; None takes the Hub's default.
        token: Access token, which is written nowhere.
        overwrite: Replace the files of a Space that is not of metaalign-hf.
        attempts: How often to try when the Hub does not answer or fails.
        retry_seconds: Seconds to wait before the second try; doubled for each further try.
        report: Called with a line for every failed try.

    Returns:
        The address of the Space.

    Raises:
        HubError: If the Hub refuses, or fails every time.
        UserError: If a name is none of a repository.
    """
    repo_id, _, revision = checkpoint.partition("@")
    model = Repository(repo_id, None, None, False, False, token)

    def once() -> str:
        served = model.full_id()
        owner, _, last = served.rpartition("/")
        called = name or last
        target = Repository(
            called if "/" in called else f"{owner}/{called}", private, None, False, overwrite, token, kind="space"
        )
        target.prepare()
        target.commit(space_files(f"{served}@{revision}" if revision else served, license), f"Serve {served}")
        return f"{target.api.endpoint}/spaces/{target.repo_id}"

    return retry(once, attempts, retry_seconds, report)


def _versions() -> dict[str, str]:
    """Python as metaalign-hf needs it, which is newer than what a Space has by default, and gradio as it is here."""
    try:
        return {"sdk_version": version("gradio"), "python_version": "3.11"}
    except PackageNotFoundError:
        return {"python_version": "3.11"}


def _release() -> str:
    """This release for `requirements.txt`; a commit after one cannot be installed by its version."""
    here = version("metaalign-hf")
    return "" if "dev" in here else f"=={here}"
