"""`metaalign push`."""

from __future__ import annotations

import sys

from ..errors import UserError
from .options import Parser

__all__ = ["push"]


def push(arguments: list[str]) -> None:
    """Push a checkpoint to the Hub.

    Args:
        arguments: The words after `metaalign push`.

    Raises:
        UserError: If an argument or the checkpoint is wrong, or the Hub refuses.
    """
    parser = Parser("push", "Push a checkpoint to the Hub, with a model card, in one commit.")
    parser.add_argument("repo_id", help="organisation/name, or name in your own namespace; made when missing")
    parser.add_argument("--native", action="store_true", help="push the plain transformers model instead")
    parser.add_argument(
        "--adapter",
        action="store_true",
        help="push low-rank adapters and heads alone, for metaalign and peft, instead",
    )
    parser.add_argument("--private", action="store_true", default=None, help="make a new repository private")
    parser.add_argument("--revision", help="branch to push to, made when missing")
    parser.add_argument("--create-pr", action="store_true", help="open a pull request on an existing repository")
    parser.add_argument("--commit-message", help="message of the commit")
    parser.add_argument("--license", help="licence for the model card, such as apache-2.0")
    parser.add_argument(
        "--images",
        action="store_true",
        help="also publish the picture of target images, in the card; only if those images may be published",
    )
    parser.add_argument(
        "--benchmark-task",
        metavar="TASK",
        help="also write the target's score, in percent, to .eval_results/, for this task of the target's data set, "
        "which is registered on the Hub as a benchmark",
    )
    parser.add_argument(
        "--space",
        nargs="?",
        const="",
        metavar="NAME",
        help="also make a gradio Space that serves it, as metaalign app does; by default called like the repository",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace a model that is not of metaalign-hf")
    parser.add_argument("--token", help="access token; by default HF_TOKEN or that of hf auth login")
    values = vars(parser.read(arguments))
    space = values.pop("space")
    if space is not None and values["create_pr"]:
        raise UserError("push: a Space serves what is pushed, not a pull request; leave out --space or --create-pr")
    if space is not None and values["adapter"]:
        raise UserError("push: a Space serves a whole model; leave out --space or --adapter")

    from ..hub import push as push_checkpoint
    from ..hub import push_space

    def report(line: str) -> None:
        print(f"metaalign: {line}", file=sys.stderr)

    repo_id, revision = values.pop("repo_id"), values["revision"]
    print(f"Pushed: {push_checkpoint(values.pop('checkpoint'), repo_id, report=report, **values)}")
    if space is not None:
        served = repo_id if revision is None else f"{repo_id}@{revision}"
        kept = {name: values[name] for name in ("license", "private", "token", "overwrite")}
        print(f"Space: {push_space(served, space or None, report=report, **kept)}")
        if values["private"]:
            print("It reads a private checkpoint: give it an access token, as the secret HF_TOKEN in its settings")
