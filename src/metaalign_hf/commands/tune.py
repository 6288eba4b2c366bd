"""`metaalign tune`."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import yaml

from ..configuration import parse_config
from ..errors import UserError
from ..interruption import RunInterrupted
from .options import Parser, at_least_one, split_off_settings, table_console

__all__ = ["tune"]


def tune(arguments: list[str]) -> int:
    """Search for settings without target labels.

    Args:
        arguments: The words after `metaalign tune`.

    Returns:
        0, or 1 where no setting keeps what source only has learnt.

    Raises:
        UserError: If an argument is wrong, or a run cannot be started or finished.
    """
    parser = Parser(
        "tune",
        "Search for the learning rate, the weight of the alignment and the inner step (or what --try names) by the "
        "validator that selects checkpoints, which needs no target labels. The same command goes on with a search that "
        "was stopped.",
        on_checkpoint=False,
    )
    parser.add_argument("config", help="YAML file, as metaalign train takes it; --section.key VALUE overrides it")
    parser.add_argument("folder", type=Path, help="where the runs, the table and best.yaml go; new, or this search")
    parser.add_argument(
        "--try",
        dest="tried",
        action="append",
        default=[],
        metavar="KEY=VALUE,VALUE",
        help="search over this entry instead, such as optimizer.lr=0.001,0.003; may be repeated",
    )
    parser.add_argument("--trials", type=at_least_one, metavar="N", help="at most so many settings, at random")
    own, overrides = split_off_settings(arguments)
    options = parser.read(own)
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UserError("tune: its runs take one process; start it without accelerate launch")
    given = ["--config", options.config, *overrides]
    config = parse_config(given)
    space = dict(_values(text) for text in options.tried)

    from ..training.search_space import Setting, default_space, settings
    from ..training.tuning import Search

    def with_setting(setting: Setting) -> Any:
        words = [word for key, value in setting.items() for word in (f"--{key}", _text(value))]
        return parse_config([*given, *words])

    chosen = settings(space or default_space(config), options.trials, config.training.seed)
    search = Search(options.folder, config, chosen, with_setting, table_console())
    try:
        found = search.run()
    except RunInterrupted:
        print("metaalign: that run was one of a search, with which the same command goes on", file=sys.stderr)
        raise
    return 0 if found is not None else 1


def _values(text: str) -> tuple[str, list[Any]]:
    """`optimizer.lr=0.001,0.003` -> `("optimizer.lr", [0.001, 0.003])`."""
    key, equals, values = text.partition("=")
    if not equals or not values.strip() or "." not in key:
        raise UserError(f"tune: --try {text}: write --try KEY=VALUE,VALUE, such as optimizer.lr=0.001,0.003")
    try:
        found = yaml.safe_load(values if values.strip().startswith("[") else f"[{values}]")
    except yaml.YAMLError as error:
        raise UserError(f"tune: --try {text}: the values are not a YAML list: {str(error).splitlines()[0]}") from error
    return key, [_number(value) for value in found]


def _number(value: Any) -> Any:
    """YAML reads 1e-3, without a point, as text."""
    try:
        return float(value) if isinstance(value, str) else value
    except ValueError:
        return value


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)
