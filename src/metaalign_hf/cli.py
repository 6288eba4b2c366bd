"""`metaalign train | evaluate | predict | export | push`."""

from __future__ import annotations

import argparse
import csv
import json
import math
import os
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from .errors import UserError

__all__ = ["main", "run"]

USAGE = """usage: metaalign COMMAND ...

  train     --config FILE [--section.key VALUE ...]           adapt a model (metaalign train --help lists every key)
  evaluate  CHECKPOINT --data DOMAIN [--split test|train|all]  accuracy, or average precision, on a labelled domain
  predict   CHECKPOINT IMAGE_OR_FOLDER ... [--output FILE]    classify images, or find objects (--draw FOLDER)
  export    CHECKPOINT FOLDER [--onnx]                        the plain transformers model, for use without metaalign-hf
  push      CHECKPOINT ORGANISATION/NAME [--native]           to the Hub, with a model card

CHECKPOINT is a folder, a Hub id (org/name) or an id at a branch, tag or commit (org/name@revision).
DOMAIN is mnist, uci_digits, mnist_m, solar_mono, solar_poly, imagefolder:FOLDER, list:FILE or dataset:ORG/NAME, and for
detectors scenes_plain, scenes_photo, coco:FILE.json, voc:FOLDER or dataset:ORG/NAME; --data.KEY VALUE refines it.
Several processes: accelerate launch -m metaalign_hf.cli train --config FILE ...
"""


def main(arguments: list[str] | None = None) -> None:
    """Run a command and exit: 0 when it worked, 2 with one line on stderr when the input was bad."""
    sys.exit(run(sys.argv[1:] if arguments is None else arguments))


def run(arguments: list[str]) -> int:
    """Run a command.

    Args:
        arguments: The words after `metaalign`.

    Returns:
        The exit code: 0, or 2 for bad input, or 130 when interrupted.
    """
    if not arguments or arguments[0] in ("-h", "--help"):
        print(USAGE)
        return 0 if arguments else 2
    command, *rest = arguments
    # Imported on use: `metaalign --help` and argument errors need not wait for torch.
    commands: dict[str, Callable[[list[str]], None]] = {
        "train": _train,
        "evaluate": _evaluate,
        "predict": _predict,
        "export": _export,
        "push": _push,
    }
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    try:
        if command not in commands:
            raise UserError(f"unknown command {command!r}; use one of {', '.join(commands)}")
        commands[command](rest)
    except UserError as error:
        print(f"metaalign: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("metaalign: stopped; a run with checkpoints goes on with --training.resume true", file=sys.stderr)
        return 130
    return 0


def _train(arguments: list[str]) -> None:
    from .training import adapt, build_parser, parse_config

    if {"-h", "--help"} & set(arguments):
        build_parser().print_help()
        return
    adapt(parse_config(arguments))


def _evaluate(arguments: list[str]) -> None:
    from .data import evaluation_batches, load_labelled_view
    from .detection_commands import evaluate_detection, is_detector
    from .evaluation import evaluate_classifier
    from .hub import load_checkpoint
    from .training import parse_domain

    parser = _parser("evaluate", "Accuracy of a classifier, or average precision of a detector, on a labelled domain.")
    parser.add_argument(
        "--data", required=True, help="the domain: mnist, imagefolder:FOLDER, list:FILE, coco:FILE.json, ..."
    )
    parser.add_argument("--split", choices=("test", "train", "all"), default="test", help="part of the domain")
    parser.add_argument("--batch-size", type=int, help="images in a batch; 64, or 8 for detectors")
    parser.add_argument("--output", type=Path, help="also write the figures to this JSON file")
    arguments, refined = _split_off(arguments, "--data.")
    options = parser.parse_args(arguments)
    if options.output is not None:
        _refuse_existing(options.output)
    domain = parse_domain(options.data, refined)
    model, processor = load_checkpoint(options.checkpoint)
    if is_detector(model):
        figures = evaluate_detection(model, processor, domain, options.split, options.batch_size or 8)
        print(f"{options.checkpoint} on {figures['n']} images ({options.split}) of {options.data}")
        _write_figures(options.output, figures)
        return
    labels = [model.config.id2label[index] for index in range(model.config.num_labels)]
    view = load_labelled_view(domain, labels, options.split)
    found = evaluate_classifier(model, evaluation_batches(view, processor, options.batch_size or 64), len(labels))
    print(f"{options.checkpoint} on {found.n} images ({options.split}) of {options.data}:")
    precision = "unknown" if math.isnan(found.average_precision) else f"{100 * found.average_precision:.2f} %"
    print(
        f"accuracy {100 * found.accuracy:.2f} %, balanced accuracy {100 * found.balanced_accuracy:.2f} %, "
        f"average precision {f'of {labels[1]} ' if len(labels) == 2 else ''}{precision}"
    )
    per_class = {k: None if math.isnan(v) else v for k, v in zip(labels, found.per_class, strict=True)}
    figures = {
        "accuracy": found.accuracy,
        "balanced_accuracy": found.balanced_accuracy,
        "average_precision": None if math.isnan(found.average_precision) else found.average_precision,
        "per_class": per_class,
        "n": found.n,
    }
    _write_figures(options.output, figures)


def _write_figures(path: Path | None, figures: dict[str, Any]) -> None:
    if path is not None:
        path.write_text(json.dumps(figures, indent=2) + "\n")
        print(f"Figures: {path}")


def _predict(arguments: list[str]) -> None:
    from .data import evaluation_batches, image_files
    from .detection_commands import is_detector, predict_detection
    from .evaluation import predict_probabilities
    from .hub import load_checkpoint

    parser = _parser("predict", "Classify images, or find objects in them, with an adapted or native checkpoint.")
    parser.add_argument("images", nargs="+", type=Path, help="image files or folders of images")
    parser.add_argument(
        "--output", type=Path, help="write the answers to this CSV file, or of detectors COCO json file"
    )
    parser.add_argument("--batch-size", type=int, help="images in a batch; 64, or 8 for detectors")
    parser.add_argument("--draw", type=Path, help="detectors: new folder for pictures with boxes")
    parser.add_argument("--threshold", type=float, default=0.5, help="detectors: least score of an object")
    options = parser.parse_args(arguments)
    for path in (options.output, options.draw):
        if path is not None:
            _refuse_existing(path)
    files = image_files(options.images)
    model, processor = load_checkpoint(options.checkpoint)
    if is_detector(model):
        batch_size = options.batch_size or 8
        predict_detection(model, processor, files, options.threshold, batch_size, options.output, options.draw)
        return
    if options.draw is not None:
        raise UserError(f"--draw is for detectors; {options.checkpoint} is a classifier")
    probabilities = predict_probabilities(model, evaluation_batches(files, processor, options.batch_size or 64))
    best = probabilities.max(1)
    names = [model.config.id2label[index] for index in best.indices.tolist()]
    rows = list(zip(map(str, files.paths), names, best.values.tolist(), strict=True))
    if options.output is None:
        for path, name, share in rows:
            print(f"{path}\t{name}\t{share:.3f}")
        return
    with options.output.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["file", "label", "probability"])
        writer.writerows((path, name, f"{share:.6f}") for path, name, share in rows)
    print(f"{len(rows)} images classified: {options.output}")


def _export(arguments: list[str]) -> None:
    from .hub import load_checkpoint, native_form
    from .models.image_processor import makes_only, savable_processor
    from .progress import no_model_progress_bars

    parser = _parser("export", "Write the plain transformers model of an adapted checkpoint.")
    parser.add_argument("folder", type=Path, help="new folder for the native model")
    parser.add_argument("--onnx", action="store_true", help="also write model.onnx, checked against torch")
    parser.add_argument(
        "--image-size",
        type=int,
        nargs=2,
        metavar=("HEIGHT", "WIDTH"),
        help="size of the images that model.onnx takes; by default what the image processor hands on",
    )
    options = parser.parse_args(arguments)
    _refuse_existing(options.folder)
    model, processor = load_checkpoint(options.checkpoint)
    is_native = not hasattr(model, "export_native")
    if is_native and not options.onnx:
        raise UserError(f"checkpoint {options.checkpoint} is a native {type(model).__name__} already")
    native = model if is_native else native_form(model, processor)
    saved = savable_processor(processor)
    # What may be refused comes first: then a refused command leaves no folder behind.
    with tempfile.TemporaryDirectory() as scratch:
        written = None
        if options.onnx:
            from .models.onnx_export import export_onnx

            size = tuple(options.image_size) if options.image_size else _input_size(saved or processor)
            written = export_onnx(native, size, Path(scratch) / "model.onnx")
        with no_model_progress_bars():
            native.save_pretrained(scratch)
        if saved is not None:
            saved.save_pretrained(scratch)
        options.folder.mkdir(parents=True, exist_ok=True)
        for file in Path(scratch).iterdir():
            shutil.move(file, options.folder / file.name)
    print(f"{type(native).__name__} with its image processor: {options.folder}")
    if written is not None:
        print(f"ONNX: {options.folder / 'model.onnx'}, outputs within {written.difference:.1e} of torch's (relative)")
        if written.batch_size is not None:
            print("It takes one image at a time: the exporter could not keep the batch size of this model open")
        if not makes_only(processor, size):
            print(
                f"It takes images of {size[0]}x{size[1]} pixels, height x width, which is not what the image processor "
                "makes of every image: resize them yourself"
            )


def _push(arguments: list[str]) -> None:
    from .hub import push

    parser = _parser("push", "Push a checkpoint to the Hub, with a model card, in one commit.")
    parser.add_argument("repo_id", help="organisation/name, or name in your own namespace; made when missing")
    parser.add_argument("--native", action="store_true", help="push the plain transformers model instead")
    parser.add_argument("--private", action="store_true", default=None, help="make a new repository private")
    parser.add_argument("--revision", help="branch to push to, made when missing")
    parser.add_argument("--create-pr", action="store_true", help="open a pull request on an existing repository")
    parser.add_argument("--commit-message", help="message of the commit")
    parser.add_argument("--license", help="licence for the model card, such as apache-2.0")
    parser.add_argument("--overwrite", action="store_true", help="replace a model that is not of metaalign-hf")
    parser.add_argument("--token", help="access token; by default HF_TOKEN or that of hf auth login")
    values = vars(parser.parse_args(arguments))

    def report(line: str) -> None:
        print(f"metaalign: {line}", file=sys.stderr)

    print(f"Pushed: {push(values.pop('checkpoint'), values.pop('repo_id'), report=report, **values)}")


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UserError(f"{self.prog}: {message}; see {self.prog} --help")


def _parser(command: str, description: str) -> argparse.ArgumentParser:
    parser = _Parser(prog=f"metaalign {command}", description=description)
    parser.add_argument("checkpoint", help="folder, Hub id or id@revision of a checkpoint")
    return parser


def _split_off(arguments: list[str], prefix: str) -> tuple[list[str], list[str]]:
    """Separate the options that start with `prefix`, each with its value, from the rest."""
    kept, split = [], []
    rest = list(arguments)
    while rest:
        word = rest.pop(0)
        if word.startswith(prefix):
            split += [word] if "=" in word or not rest else [word, rest.pop(0)]
        else:
            kept.append(word)
    return kept, split


def _refuse_existing(path: Path) -> None:
    if path.exists() and (path.is_file() or any(path.iterdir())):
        raise UserError(f"{path} exists; choose another name, or remove it first")
    path.absolute().parent.mkdir(parents=True, exist_ok=True)


def _input_size(processor: Any) -> tuple[int, int]:
    """Height and width of the images that an image processor hands on; a square where it keeps the images' shape."""
    if not hasattr(processor, "size"):  # timm's, which says it its own way
        return tuple(processor.data_config["input_size"][1:])
    size = processor.crop_size if getattr(processor, "do_center_crop", False) else processor.size
    side = size.get("shortest_edge")
    return int(size.get("height") or side), int(size.get("width") or side)


if __name__ == "__main__":
    main()
