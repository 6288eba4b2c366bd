"""The plain transformers model as an ONNX file, checked against torch."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from ..disk import disk_reason
from ..errors import UserError, one_line

__all__ = ["TOLERANCE", "OnnxFile", "export_onnx"]

TOLERANCE = 1e-3
"""Largest difference of an output, relative to the largest output of torch, that `export_onnx` accepts."""


class _Outputs(nn.Module):
    def __init__(self, model: PreTrainedModel, names: Sequence[str]) -> None:
        super().__init__()
        self.model, self.names = model, names

    def forward(self, pixel_values: Tensor) -> tuple[Tensor, ...]:
        """The outputs that `names` lists."""
        output = self.model(pixel_values=pixel_values)
        return tuple(output[name] for name in self.names)


@dataclass(frozen=True)
class OnnxFile:
    """What was written.

    Attributes:
        difference: The largest difference of an output from torch's, relative to torch's largest value of it.
        batch_size: Images that the file takes at a time; None for any number.
    """

    difference: float
    batch_size: int | None


def export_onnx(
    model: PreTrainedModel, image_size: tuple[int, int], path: Path, outputs: Sequence[str] = ("logits",)
) -> OnnxFile:
    """Write a native model as ONNX, run it with ONNX Runtime, and compare its outputs with torch's.

    The file takes `pixel_values` `(B, 3, H, W)`, normalised as the image processor does, and gives `logits` `(B, K)`;
    of a detector `logits` `(B, Q, K)` and `pred_boxes` `(B, Q, 4)` for whole images without padding. B is any, or 1
    where the exporter of torch cannot keep it open, as for D-FINE.

    Args:
        model: A plain image classifier or object detector of transformers; it is left in evaluation mode.
        image_size: Height H and width W, in pixels.
        path: File to write.
        outputs: Names of the outputs; of a detector `logits` and `pred_boxes`.

    Returns:
        The largest difference on random images, of batch sizes 1 and 3 where B is any, and the batch size.

    Raises:
        UserError: If the packages are missing, the model cannot be exported or run, or its outputs differ by more than
            `TOLERANCE`.
    """
    missing = [name for name in ("onnx", "onnxscript", "onnxruntime") if find_spec(name) is None]
    if missing:
        raise UserError(f'export: ONNX needs {", ".join(missing)}: pip install "metaalign-hf[onnx]"')
    wrapped = _Outputs(model.float().cpu(), outputs).eval()
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(3, 3, *image_size, generator=generator)
    name = type(model).__name__
    try:
        _write(wrapped, images[:2], path, {0: torch.export.Dim("batch")})
        is_open = isinstance(_session(path).get_inputs()[0].shape[0], str)
        if not is_open:
            _write(wrapped, images[:1], path, {})
        difference = max(_difference(wrapped, images[:count], path) for count in ((1, 3) if is_open else (1,)))
    except Exception as error:
        path.unlink(missing_ok=True)
        cause = _cause(error)
        if (reason := disk_reason(cause)) is not None:
            raise UserError(f"export: {path} cannot be written: {reason}") from error
        raise UserError(f"export: {name} cannot be written and run as ONNX: {one_line(cause, first=True)}") from error
    if not difference <= TOLERANCE:
        path.unlink()
        raise UserError(
            f"export: the ONNX form of {name} gives other outputs than torch (relative difference {difference:.1e}); "
            "it was not kept"
        )
    return OnnxFile(difference, None if is_open else 1)


def _write(model: _Outputs, images: Tensor, path: Path, dynamic: dict[int, Any]) -> None:
    with torch.no_grad(), _quiet(), _without_shape_checks():
        torch.onnx.export(
            model,
            (images,),
            path,
            dynamo=True,
            input_names=["pixel_values"],
            output_names=list(model.names),
            dynamic_shapes={"pixel_values": dynamic},
            external_data=False,
            verbose=False,
        )


def _session(path: Path) -> Any:
    import onnxruntime

    return onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])


@torch.no_grad()
def _difference(model: _Outputs, images: Tensor, path: Path) -> float:
    found = _session(path).run(list(model.names), {"pixel_values": images.numpy()})
    pairs = zip(map(torch.from_numpy, found), model(images), strict=True)
    return max(float((value - expected).abs().max() / expected.abs().max()) for value, expected in pairs)


def _cause(error: Exception) -> Exception:
    """The exporter's actual error, without its general advice."""
    while isinstance(error.__cause__, Exception):
        error = error.__cause__
    return error


@contextlib.contextmanager
def _without_shape_checks() -> Iterator[None]:
    """Assertions of transformers on shapes have no ONNX form; without them the outputs are the same."""
    name = "TRANSFORMERS_DISABLE_TORCH_CHECK"
    before = os.environ.get(name)
    os.environ[name] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The exporter reports its progress and opset conversions, which the user does not need."""
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
