"""The plain transformers model as an ONNX file, checked against torch."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from ..errors import UserError

__all__ = ["TOLERANCE", "export_onnx"]

TOLERANCE = 1e-3
"""Largest difference of an output, relative to the largest output of torch, that `export_onnx` accepts."""


class _Outputs(nn.Module):
    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model = model
        detects = type(model).__name__.endswith("ObjectDetection")
        self.names = ["logits", "pred_boxes"] if detects else ["logits"]

    def forward(self, pixel_values: Tensor) -> tuple[Tensor, ...]:
        """The outputs that `names` lists."""
        output = self.model(pixel_values=pixel_values)
        return tuple(output[name] for name in self.names)


def export_onnx(model: PreTrainedModel, image_size: tuple[int, int], path: Path) -> float:
    """Write a native model as ONNX, run it with ONNX Runtime, and compare its outputs with torch's.

    The file takes `pixel_values` `(B, 3, H, W)`, any B, normalised as the image processor does, and gives `logits`
    `(B, K)`; of a detector `logits` `(B, Q, K)` and `pred_boxes` `(B, Q, 4)` for whole images without padding.

    Args:
        model: A plain image classifier or object detector of transformers; it is left in evaluation mode.
        image_size: Height H and width W, in pixels.
        path: File to write.

    Returns:
        The largest difference of an output on random images of batch sizes 1 and 3, relative to its largest value.

    Raises:
        UserError: If the packages are missing, the model cannot be exported, or its outputs differ by more than
            `TOLERANCE`.
    """
    missing = [name for name in ("onnx", "onnxscript", "onnxruntime") if find_spec(name) is None]
    if missing:
        raise UserError(f'export: ONNX needs {", ".join(missing)}: pip install "metaalign-hf[onnx]"')
    wrapped = _Outputs(model.float().cpu()).eval()
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(3, 3, *image_size, generator=generator)
    try:
        with torch.no_grad(), _quiet():
            torch.onnx.export(
                wrapped,
                (images[:2],),
                path,
                dynamo=True,
                input_names=["pixel_values"],
                output_names=wrapped.names,
                dynamic_shapes={"pixel_values": {0: torch.export.Dim("batch")}},
                external_data=False,
                verbose=False,
            )
    except Exception as error:
        path.unlink(missing_ok=True)
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UserError(f"export: {type(model).__name__} cannot be written as ONNX: {reason}") from error
    difference = max(_difference(wrapped, images[:count], path) for count in (1, 3))
    if not difference <= TOLERANCE:
        path.unlink()
        raise UserError(
            f"export: the ONNX form of {type(model).__name__} gives other outputs than torch (relative difference "
            f"{difference:.1e}); it was not kept"
        )
    return difference


@torch.no_grad()
def _difference(model: _Outputs, images: Tensor, path: Path) -> float:
    import onnxruntime

    session: Any = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    found = session.run(model.names, {"pixel_values": images.numpy()})
    pairs = zip(map(torch.from_numpy, found), model(images), strict=True)
    return max(float((value - expected).abs().max() / expected.abs().max()) for value, expected in pairs)


@contextlib.contextmanager
def _quiet() -> Any:
    """The exporter reports its own progress and opset conversions: nothing that the user can act upon."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir")]
    levels = [log.level for log in loggers]
    for log in loggers:
        log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        for log, level in zip(loggers, levels, strict=True):
            log.setLevel(level)
