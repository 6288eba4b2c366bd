"""Images in the column of a data set, decoded as files are."""

from __future__ import annotations

from dataclasses import dataclass
from io import BytesIO
from typing import Any

from PIL import Image
from torch import Tensor

from ..errors import UserError
from .images import rgb_tensor

__all__ = ["DatasetLoader", "dataset_loader", "opened_image"]


@dataclass(frozen=True)
class DatasetLoader:
    """Serves the image column of a `datasets.Dataset`.

    Attributes:
        dataset: The data set; see `dataset_loader`.
        column: Its column of images, or of files that are decoded here.
        name: What to call it in errors.
    """

    dataset: Any
    column: str
    name: str

    def __call__(self, index: int) -> Tensor:
        """The image with this index `(3, H, W)`, uint8."""
        try:
            image = self.dataset[index][self.column]
            if isinstance(image, dict) and image.keys() == {"bytes", "path"}:
                with opened_image(image) as file:
                    return rgb_tensor(file)
            if isinstance(image, Image.Image):
                return rgb_tensor(image)
        except Exception as error:  # damaged files make Pillow raise nearly anything
            raise UserError(f"{self.name}: row {index}, column {self.column}: unreadable image ({error})") from error
        raise UserError(
            f"{self.name}: column {self.column} holds {type(image).__name__}, not images; name another image_column"
        )


def dataset_loader(data: Any, column: str, name: str) -> DatasetLoader:
    """A loader of the image column alone, so that nothing downstream can reach a label.

    The files are decoded here rather than by `datasets`, which is faster and gives the same pixels. Where the user has
    given the data set a transform or the column a mode, they say what an image is, and `datasets` decodes it.

    Args:
        data: A `datasets.Dataset`.
        column: Its column of images.
        name: What to call it in errors.
    """
    import datasets

    images, feature = data.select_columns([column]), data.features[column]
    if isinstance(feature, datasets.Image) and feature.mode is None and data.format["type"] is None:
        images = images.cast_column(column, datasets.Image(decode=False))
    return DatasetLoader(images, column, name)


def opened_image(value: dict[str, Any]) -> Image.Image:
    """An image as `datasets` stores it, opened and, where it lies here, not yet decoded.

    Args:
        value: `bytes` of the file or its `path`.
    """
    if value["bytes"] is not None:
        return Image.open(BytesIO(value["bytes"]))
    if value["path"] is not None and "://" not in value["path"]:
        return Image.open(value["path"])
    import datasets

    return datasets.Image().decode_example(value)
