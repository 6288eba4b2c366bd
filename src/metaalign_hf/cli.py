"""`metaalign train | tune | evaluate | predict | export | push | runs | data | report | compare | app | skills`.

Nothing here imports torch: help, the version and usage errors are answered at once.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from importlib import import_module

from .errors import UserError, did_you_mean, one_line

__all__ = ["main", "run"]

USAGE = """usage: metaalign COMMAND ...

  train     --config FILE [--section.key VALUE ...]           adapt a model (metaalign train --help)
  tune      FILE FOLDER [--try KEY=VALUE,VALUE] [--trials N]  search for settings without target labels
  evaluate  CHECKPOINT --data DOMAIN [--split SPLIT]          accuracy, or average precision, on a labelled domain
  predict   CHECKPOINT IMAGE_OR_FOLDER ... [--output FILE]    classify images, or find objects (--draw FOLDER)
  export    CHECKPOINT FOLDER [--onnx]                        the plain transformers model, for use without metaalign-hf
  push      CHECKPOINT ORGANISATION/NAME [--native]           to the Hub, with a model card (--space: an app)
  runs      FOLDER                                            a table of the runs in a folder
  data      check [CONFIG] [--section.key VALUE ...]          look at a domain pair before a long run
  report    RUN [RUN ...] [--output FOLDER]                   one HTML file on a run, or on several beside each other
  compare   CONFIG --methods A,B,... [--seeds 5]              methods over seeds: means, paired differences, a figure
  app       CHECKPOINT [--against CHECKPOINT] [--port N]      a page to drop images on, source-only against adapted
  skills    [--write FOLDER]                                  a skill file for coding assistants

metaalign COMMAND --help explains a command, metaalign --version says which release this is.

CHECKPOINT is a folder, a Hub id (org/name) or an id at a branch, tag or commit (org/name@revision).
DOMAIN is mnist, uci_digits, mnist_m, solar_mono, solar_poly, imagefolder:FOLDER, list:FILE, dataset:ORG/NAME, or
parquet, arrow or webdataset:FILES, and for detectors scenes_plain, scenes_photo, coco:FILE.json, voc:FOLDER,
yolo:DATA.yaml or those of datasets; --data.KEY VALUE refines it.
Several processes: accelerate launch -m metaalign_hf train --config FILE ...
"""
COMMANDS = (
    "train",
    "tune",
    "evaluate",
    "predict",
    "export",
    "push",
    "runs",
    "data",
    "report",
    "compare",
    "app",
    "skills",
)


def main(arguments: list[str] | None = None) -> None:
    """Run a command and exit: 0 when it worked, 2 with one line on stderr when the input was bad."""
    for stream in (sys.stdout, sys.stderr):
        # Characters that the terminal's encoding lacks are printed as escapes.
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    try:
        code = run(sys.argv[1:] if arguments is None else arguments)
        sys.stdout.flush()
    except BrokenPipeError:  # the reader, such as head, has closed the pipe
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 1
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        print(f"metaalign: the output cannot be written: {error.strerror or error}", file=sys.stderr)
        code = 2
    sys.exit(code)


def run(arguments: list[str]) -> int:
    """Run a command.

    Args:
        arguments: The words after `metaalign`.

    Returns:
        The exit code: 0, or 1 where `predict` could read no image or `tune` chose nothing, or 2 for bad input, or 130
        when interrupted. A run that was stopped and saved has 130, 143 or 129 after SIGINT, SIGTERM or SIGHUP, and 124
        at `training.max_time`.
    """
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(USAGE)
        return 0 if arguments else 2
    if arguments[0] in ("-V", "--version"):
        from importlib.metadata import version

        print(f"metaalign-hf {version('metaalign-hf')}")
        return 0
    command, *rest = arguments
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    try:
        return _command(command)(rest) or 0
    except UserError as error:
        print(f"metaalign: {one_line(error)}", file=sys.stderr)
        return 2
    except SystemExit as end:  # argparse has printed the help, or a run was stopped and has said so
        return int(end.code or 0)
    except BrokenPipeError:
        raise
    except OSError as error:
        if error.errno is None:
            raise
        # Errors of the machine: a full or read-only disk, a limit on open files.
        where = f"{error.filename}: " if error.filename else ""
        print(f"metaalign: {where}{error.strerror or error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("metaalign: stopped", file=sys.stderr)
        return 130


def _command(name: str) -> Callable[[list[str]], int | None]:
    if name not in COMMANDS:
        # The function of Python is called adapt, which is nearer to data than to train.
        otherwise = f"use one of {', '.join(COMMANDS)}"
        hint = "did you mean train?" if name == "adapt" else did_you_mean(name, COMMANDS, otherwise)
        raise UserError(f"unknown command {name!r}; {hint}")
    found: Callable[[list[str]], int | None] = getattr(import_module(f".commands.{name}", __package__), name)
    return found


if __name__ == "__main__":
    main()
