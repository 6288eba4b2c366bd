"""`metaalign compare`."""

from __future__ import annotations

from pathlib import Path

from ..configuration import parse_config
from ..disk import writing
from ..errors import UserError
from ..run_folder import CONFIG_FILE
from .options import Parser, at_least_one, split_off, table_console

__all__ = ["compare"]

_SECTIONS = ("--data.", "--model.", "--coordination.", "--optimizer.", "--training.")
_OWN = ("--training.output_dir", "--training.seed", "--training.resume")


def compare(arguments: list[str]) -> None:
    """Run methods over seeds, and compare them.

    Args:
        arguments: The words after `metaalign compare`.

    Raises:
        UserError: If an argument or a configuration is wrong, or a run cannot be finished.
    """
    parser = Parser(
        "compare",
        "Run methods over several seeds, each run in a folder of its own, and compare them. The same command goes on "
        "where it was stopped; finished runs are not repeated.",
        on_checkpoint=False,
    )
    parser.add_argument("config", type=Path, help="configuration that all runs share")
    parser.add_argument(
        "--methods",
        required=True,
        help="methods with commas between them, the first one being what the others are compared with: a step "
        "(source_only, joint, remembered, fresh, extragradient, heun, pga), an alignment objective, a YAML file with "
        "settings, or several with +, such as joint+dann,remembered+dann",
    )
    parser.add_argument("--seeds", type=at_least_one, default=5, help="how many seeds, from 0 on (5)")
    by_default = "by default runs/compare-CONFIG, or runs/compare-RUN with a run's own configuration"
    parser.add_argument("--output", type=Path, help=f"folder of the runs; {by_default}")
    parser.epilog = "--SECTION.KEY VALUE overrides the configuration for all runs, as for metaalign train."
    rest, shared = split_off(arguments, _SECTIONS)
    options = parser.read(rest)
    if own := next((word for word in shared if word.partition("=")[0] in _OWN), None):
        raise UserError(f"compare: {own} is set for each run; use --output and --seeds")
    base = ["--config", str(options.config), *shared]
    parse_config(base)
    # Every run's folder holds a file of that name.
    named = options.config.resolve().parent.name if options.config.name == CONFIG_FILE else options.config.stem
    folder = options.output or Path("runs") / f"compare-{named}"

    from rich.table import Table

    from ..alignment import alignment_names
    from ..alignment.detection import level_names
    from ..comparison import read_methods, run_grid, write_results
    from ..comparison.results import choices_table, means_table, verdict

    methods = read_methods(options.methods, [*alignment_names(), *level_names()])

    def say(line: str) -> None:
        print(f"metaalign compare: {line}", flush=True)

    grid = run_grid(base, methods, range(options.seeds), folder, say)
    with writing(folder):
        files = write_results(grid, folder)
    for found in (means_table(grid), choices_table(grid)):
        if found is None:
            continue
        shown = Table()
        for number, name in enumerate(found.columns):
            shown.add_column(name, justify="right" if number else "left")
        for row in found.rows:
            shown.add_row(*row)
        table_console().print(shown)
    print(*verdict(grid), "", *(f"Written: {path}" for path in files), sep="\n")
    print(f"Curves of all runs: metaalign report {folder}/*/seed-* --output {folder}/report")
