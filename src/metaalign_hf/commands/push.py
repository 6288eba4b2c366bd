"""`metaalign push`."""

from __future__ import annotations

import sys

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
        help="push low-rank adapters and classifier alone, as peft reads them, instead",
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
    parser.add_argument("--overwrite", action="store_true", help="replace a model that is not of metaalign-hf")
    parser.add_argument("--token", help="access token; by default HF_TOKEN or that of hf auth login")
    values = vars(parser.read(arguments))

    from ..hub import push as push_checkpoint

    def report(line: str) -> None:
        print(f"metaalign: {line}", file=sys.stderr)

    print(f"Pushed: {push_checkpoint(values.pop('checkpoint'), values.pop('repo_id'), report=report, **values)}")
