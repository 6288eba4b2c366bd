"""The image processor of a classifier: resize to a square, crop a square, normalise; and the same in timm's words.

transformers serves a timm backbone by timm's own transform, which it makes of `pretrained_cfg` in `config.json`, and
everything else by `preprocessor_config.json`. So the one processor that a model is trained with has both forms.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from PIL import Image
from transformers import BitImageProcessor, PreTrainedConfig, TimmWrapperConfig, TimmWrapperImageProcessor

from ..errors import UserError

__all__ = [
    "backbone_image_size",
    "build_image_processor",
    "default_resize_size",
    "handed_size",
    "makes_only",
    "savable_processor",
    "timm_data_config",
]

_DEFAULT_SIZE = 224


def default_resize_size(image_size: int) -> int:
    """The square to crop from where none is given: `image_size` / 0.875, with a margin of whole pixels on each side."""
    return image_size + 2 * round(image_size / 14)


def backbone_image_size(config: PreTrainedConfig) -> int:
    """Side of the square images that a backbone was made for, by its configuration; 224 where it does not say."""
    found: Any = None
    if isinstance(config, TimmWrapperConfig):
        described = getattr(config, "pretrained_cfg", None) or {}
        found = (config.model_args or {}).get("img_size") or described.get("input_size")
    else:
        for part in (config, getattr(config, "vision_config", None)):
            found = found or getattr(part, "image_size", None)
    sides = [found] if isinstance(found, int) else list(found or [_DEFAULT_SIZE])
    return int(sides[-1])


def build_image_processor(
    image_size: int, resize_size: int, image_mean: Sequence[float], image_std: Sequence[float]
) -> BitImageProcessor:
    """The image processor of a model: resize to a square, centre crop, rescale to 0..1, normalise.

    Args:
        image_size: Side of the crop, in pixels.
        resize_size: Side of the square before the crop, in pixels.
        image_mean: Mean per channel, in 0..1.
        image_std: Standard deviation per channel, in 0..1.

    Returns:
        The processor; it takes images of any size.

    Raises:
        UserError: If the crop does not fit, or libraries do not agree where its centre is.
    """
    sizes = f"data.image_size is {image_size} and data.resize_size {resize_size}"
    if not 1 <= image_size <= resize_size:
        raise UserError(f"{sizes}: the crop must fit into the square")
    if (resize_size - image_size) % 4 == 3:
        # Half a pixel is left over: torchvision, and timm with it, rounds to even, transformers down.
        raise UserError(
            f"{sizes}: timm and transformers would crop one pixel apart; use resize_size {resize_size - 1} or "
            f"{resize_size + 1}"
        )
    return BitImageProcessor(
        do_resize=True,
        size={"height": resize_size, "width": resize_size},
        resample=2,  # bilinear
        do_center_crop=True,
        crop_size={"height": image_size, "width": image_size},
        do_rescale=True,
        do_normalize=True,
        image_mean=list(image_mean),
        image_std=list(image_std),
        do_convert_rgb=True,
    )


def timm_data_config(processor: Any) -> dict[str, Any]:
    """What an image processor does, as the entries of a timm `pretrained_cfg`.

    Args:
        processor: An image processor of transformers that resizes, may crop the centre, and normalises.

    Returns:
        `input_size`, `crop_pct`, `crop_mode`, `interpolation`, `mean` and `std`.

    Raises:
        UserError: If timm has no words for it.
    """
    size = _sides(processor.size)
    crop = _sides(processor.crop_size) if getattr(processor, "do_center_crop", False) else size
    keeps_shape = not processor.size.get("height")
    if not processor.do_resize or not processor.do_rescale or len({size[0] * crop[1], size[1] * crop[0]}) > 1:
        raise UserError("export: timm cannot do what this image processor does; it resizes, crops and normalises only")
    if keeps_shape and not getattr(processor, "do_center_crop", False):
        raise UserError("export: timm cannot keep the shape of images; the image processor must crop them")
    normalises = bool(processor.do_normalize)
    return {
        "input_size": [3, *crop],
        "crop_pct": _crop_pct(crop[0], size[0]),
        "crop_mode": "center" if keeps_shape else "squash",
        "interpolation": Image.Resampling(int(processor.resample)).name.lower(),
        "mean": list(processor.image_mean) if normalises else [0.0] * 3,
        "std": list(processor.image_std) if normalises else [1.0] * 3,
    }


def savable_processor(processor: Any) -> Any | None:
    """The image processor in the form that `preprocessor_config.json` has.

    Args:
        processor: Any image processor; that of a timm model is written to no file by transformers.

    Returns:
        The processor, of a timm model as a `BitImageProcessor`; None where that cannot do the same.
    """
    if not isinstance(processor, TimmWrapperImageProcessor):
        return processor
    told = processor.data_config
    crop = [int(side) for side in told["input_size"][1:]]
    size = [math.floor(side / told["crop_pct"]) for side in crop]
    keeps_shape = told["crop_mode"] == "center"
    if told["crop_mode"] not in ("center", "squash") or (keeps_shape and size[0] != size[1]):
        return None
    return BitImageProcessor(
        size={"shortest_edge": size[0]} if keeps_shape else {"height": size[0], "width": size[1]},
        resample=Image.Resampling[told["interpolation"].upper()].value,
        crop_size={"height": crop[0], "width": crop[1]},
        image_mean=list(told["mean"]),
        image_std=list(told["std"]),
    )


def handed_size(processor: Any) -> tuple[int, int] | None:
    """Height and width of the images that an image processor hands on, a square where it keeps their shape.

    None where it does not say.
    """
    if isinstance(processor, TimmWrapperImageProcessor):
        return tuple(processor.data_config["input_size"][1:])
    told = getattr(processor, "crop_size" if getattr(processor, "do_center_crop", False) else "size", None)
    return _sides(told) if told is not None and (told.get("width") or told.get("shortest_edge")) else None


def makes_only(processor: Any, size: tuple[int, int]) -> bool:
    """Whether an image processor makes nothing but images of this height and width, of wide and tall ones alike."""
    shapes = [(64, 96), (96, 64)]
    made = [processor(images=Image.new("RGB", shape), return_tensors="pt")["pixel_values"] for shape in shapes]
    return all(tuple(values.shape[-2:]) == size for values in made)


def _sides(size: Any) -> tuple[int, int]:
    edge = size.get("shortest_edge")
    return int(size.get("height") or edge), int(size.get("width") or edge)


def _crop_pct(image_size: int, resize_size: int) -> float:
    """The share of which timm makes `resize_size` again: it rounds `image_size / crop_pct` down."""
    share = image_size / resize_size
    while math.floor(image_size / share) < resize_size:
        share = math.nextafter(share, 0.0)
    return share
