"""`metaalign export`."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from ..disk import writing
from ..errors import UserError
from ..run_folder import CARD_FILE
from .options import Parser, at_least_one, refuse_existing

__all__ = ["export"]


def export(arguments: list[str]) -> None:
    """Write the plain transformers model of an adapted checkpoint.

    Args:
        arguments: The words after `metaalign export`.

    Raises:
        UserError: If an argument or the checkpoint is wrong, or the folder cannot be written.
    """
    parser = Parser("export", "Write the plain transformers model of an adapted checkpoint.")
    parser.add_argument("folder", type=Path, help="new folder for the native model")
    parser.add_argument("--onnx", action="store_true", help="also write model.onnx, checked against torch")
    parser.add_argument(
        "--adapter",
        action="store_true",
        help="write low-rank adapters and heads alone, for metaalign and peft, and not the whole model",
    )
    parser.add_argument(
        "--image-size",
        type=at_least_one,
        nargs=2,
        metavar=("HEIGHT", "WIDTH"),
        help="size of the images that model.onnx takes; by default what the image processor hands on",
    )
    options = parser.read(arguments)
    if options.image_size is not None and not options.onnx:
        raise UserError("--image-size is for --onnx; the native model keeps the size of its image processor")
    if options.adapter and options.onnx:
        raise UserError("--adapter is a part of a model, which ONNX has no form for; leave out one of both")
    refuse_existing(options.folder)
    from ..progress import display, stage

    # Made first, so that an unwritable disk is reported before the model is loaded. All files appear together, or none.
    with (
        writing(options.folder),
        tempfile.TemporaryDirectory(dir=options.folder.absolute().parent, prefix=".metaalign-export-") as scratch,
    ):
        made = Path(scratch) / "model"
        made.mkdir()
        with display(), stage(f"exporting {options.checkpoint}"):
            lines = _export(options.checkpoint, made, options)
        if options.folder.exists():
            options.folder.rmdir()  # an empty one
        made.rename(options.folder)
    print("\n".join(lines))


def _export(checkpoint: str, folder: Path, options: Any) -> list[str]:
    """Write the files; returns what to say of them."""
    from ..hub import fetch, load_checkpoint
    from ..models import save_native
    from ..models.image_processor import handed_size, makes_only, savable_processor
    from ..progress import no_model_progress_bars

    model, processor = load_checkpoint(checkpoint)
    if options.adapter:
        from ..models.adapter_files import export_adapter
        from ..reports import model_card, read_record

        base = export_adapter(model, folder, "--adapter")
        processor.save_pretrained(folder)
        card = model_card(read_record(fetch(checkpoint)), adapter_of=base)
        (folder / CARD_FILE).write_text(card, encoding="utf-8")
        return [f"Adapters and heads for {base}, which metaalign and peft read: {options.folder}"]
    is_native = not hasattr(model, "export_native")
    if is_native and not options.onnx:
        raise UserError(f"checkpoint {checkpoint} is a native {type(model).__name__} already")
    native = model if is_native else model.export_native(processor)
    saved = savable_processor(processor)
    lines = [f"{type(native).__name__} with its image processor: {options.folder}"]
    if options.onnx:
        from ..models.onnx_export import export_onnx
        from ..tasks import task_of_model

        size = tuple(options.image_size) if options.image_size else handed_size(saved or processor)
        if size is None:
            raise UserError("export: the image processor does not say a size; name one with --image-size")
        written = export_onnx(native, size, folder / "model.onnx", task_of_model(native).outputs)
        place = options.folder / "model.onnx"
        lines.append(f"ONNX: {place}, outputs within {written.difference:.1e} of torch's (relative)")
        if written.batch_size is not None:
            lines.append("It takes one image at a time: the exporter could not keep the batch size of this model open")
        if not makes_only(processor, size):
            lines.append(
                f"It takes images of {size[0]}x{size[1]} pixels, height x width, which is not what the image processor "
                "makes of every image: resize them yourself"
            )
    with no_model_progress_bars():
        save_native(native, folder)
    if saved is not None:
        saved.save_pretrained(folder)
    return lines
