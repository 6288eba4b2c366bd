"""`metaalign train`."""

from __future__ import annotations

import argparse

from ..configuration import build_parser, parse_config
from ..configuration.short_help import short_help
from ..errors import UserError

__all__ = ["train"]


def train(arguments: list[str]) -> None:
    """Adapt a model, or explain the configuration.

    Args:
        arguments: The words after `metaalign train`.

    Raises:
        UserError: If an argument is wrong, or the run cannot be started or finished.
    """
    if {"-h", "--help"} & set(arguments):
        topics = [word for word in arguments if word not in ("-h", "--help")]
        if topics == ["all"]:
            print(_full_help())
        else:
            print(short_help())
        return
    if not arguments:
        raise UserError(
            "train: name --config FILE, or --data.source (or --model.checkpoint) and --data.target; see metaalign "
            "train --help"
        )
    config = parse_config(arguments)

    from ..training import adapt

    adapt(config)


def _full_help() -> str:
    """Every entry, without the parser's own options, which the command line does not take."""
    parser = build_parser()
    parser.usage = "metaalign train [--config FILE] [--section.key VALUE ...]"
    for action in parser._actions:
        if action.metavar == "CONFIG" or action.dest.endswith(".help"):
            action.help = argparse.SUPPRESS
        # jsonargparse's way to append to a list, for which a whole list stands here.
        action.option_strings = [option for option in action.option_strings if not option.endswith("+")]
    return str(parser.format_help())
