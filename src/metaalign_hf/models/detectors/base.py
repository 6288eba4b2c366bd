"""The interface of a detector family, and the hooks that read its inner features."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel

from ...alignment.detection import DetectorWidths, Level

__all__ = ["DetectorAdapter", "DetectorFeatures", "Probabilities", "captured", "flattened", "resized_mask"]


@dataclass
class DetectorFeatures:
    """What a detector computed for images `(B, 3, H, W)`, without denoising and extra group queries.

    Attributes:
        maps: Backbone maps with their masks, from fine to coarse.
        encoder: Encoder tokens with their masks, one entry per feature level.
        queries: Decoder queries of the last layer `(B, Q, D)`.
        logits: Class scores of the queries `(B, Q, K)`; with `softmax` scores the last class is "no object".
        pred_boxes: Boxes `(B, Q, 4)`, cx, cy, w, h in 0..1.
    """

    maps: list[Level]
    encoder: list[Level]
    queries: Tensor
    logits: Tensor
    pred_boxes: Tensor

    def rows(self, kept: Tensor) -> DetectorFeatures:
        """Those of the images that a boolean mask `(B,)` keeps."""
        return DetectorFeatures(
            maps=[level.rows(kept) for level in self.maps],
            encoder=[level.rows(kept) for level in self.encoder],
            queries=self.queries[kept],
            logits=self.logits[kept],
            pred_boxes=self.pred_boxes[kept],
        )


@dataclass(frozen=True)
class Probabilities:
    """Class probabilities of a detector's logits.

    Attributes:
        scores: `softmax` with a last class "no object", or `sigmoid`.
    """

    scores: Literal["softmax", "sigmoid"]

    @property
    def one_class(self) -> bool:
        """Whether each query predicts one class; otherwise it may predict several."""
        return self.scores == "softmax"

    def __call__(self, logits: Tensor) -> Tensor:
        """Probabilities `(B, Q, number of classes)`, "no object" left out."""
        return logits.softmax(-1)[..., :-1] if self.one_class else logits.sigmoid()


class DetectorAdapter:
    """One family of detectors; a stateless object.

    Attributes:
        model_types: Model types of transformers that it serves.
        scores: How logits become class probabilities: `softmax` with a last class "no object", or `sigmoid`.
        image_processor: Class of transformers that makes its pixel values, where a checkpoint names none.
        uses_mask: Whether the detector reads `pixel_mask`, so that its boxes are relative to the image in the canvas;
            else they are relative to the whole canvas, padding included.
        maps_name: Name of the module in the detector that gives the maps.
        layers_first: Whether its loss gets what all decoder layers say as `(L, B, ...)`, or as `(B, L, ...)`.
    """

    model_types: ClassVar[tuple[str, ...]]
    image_processor: ClassVar[str]
    scores: ClassVar[Literal["softmax", "sigmoid"]] = "sigmoid"
    uses_mask: ClassVar[bool] = False
    layers_first: ClassVar[bool] = True
    maps_name: ClassVar[str] = "model.backbone"

    def backbone_name(self, detector: PreTrainedModel) -> str:
        """Name of the module in the detector whose parameters have the backbone's learning rate."""
        return "model.backbone"

    def frozen_name(self, detector: PreTrainedModel) -> str:
        """Name of the module that `freeze` freezes: it makes maps of images, and nothing else enters it.

        Raises:
            UserError: If the family has none.
        """
        return f"{self.backbone_name(detector)}.model"

    def maps_train(self, detector: PreTrainedModel) -> bool:
        """Whether anything trains on the way to the maps."""
        return any(parameter.requires_grad for parameter in detector.get_submodule(self.maps_name).parameters())

    def prepare(self, detector: PreTrainedModel) -> None:
        """Make every parameter of the backbone trainable.

        The constructors of Detr, Conditional DETR and Deformable DETR freeze all tensors of a ResNet of transformers
        (they mean the first stages only, but look for names that never occur); the others freeze the first stages.
        Alignment of a frozen backbone would silently do nothing.
        """
        detector.get_submodule(self.backbone_name(detector)).requires_grad_(True)

    def widths(self, detector: PreTrainedModel) -> DetectorWidths:
        """Channels of what `features` gives."""
        raise NotImplementedError

    def features(self, detector: PreTrainedModel, pixel_values: Tensor, pixel_mask: Tensor | None) -> DetectorFeatures:
        """One forward pass without labels."""
        raise NotImplementedError

    def maps(self, detector: PreTrainedModel, pixel_values: Tensor, pixel_mask: Tensor | None) -> list[Level]:
        """The backbone's maps, of a forward pass that may stop where no running statistics are left to move."""
        return self.features(detector, pixel_values, pixel_mask).maps

    def predict(self, detector: PreTrainedModel, pixel_values: Tensor, pixel_mask: Tensor | None, **labels: Any) -> Any:
        """The detector's own forward pass, with the arguments that it knows."""
        mask = {"pixel_mask": pixel_mask} if pixel_mask is not None else {}
        return detector(pixel_values=pixel_values, **mask, **labels, return_dict=True)

    @property
    def probabilities(self) -> Probabilities:
        """How its logits become class probabilities."""
        return Probabilities(self.scores)


@contextmanager
def captured(root: nn.Module, names: tuple[str, ...]) -> Iterator[dict[str, tuple[dict[str, Any], Any]]]:
    """Keyword arguments and output of the last call of some submodules, by name."""
    seen: dict[str, tuple[dict[str, Any], Any]] = {}

    def keep(name: str) -> Any:
        def hook(module: nn.Module, args: Any, kwargs: dict[str, Any], output: Any) -> None:
            # A copy of a list: the encoder of DEIMv2 writes its own maps over those that it was given.
            seen[name] = (kwargs, list(output) if isinstance(output, list) else output)

        return hook

    handles = [root.get_submodule(name).register_forward_hook(keep(name), with_kwargs=True) for name in names]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def resized_mask(pixel_mask: Tensor | None, size: tuple[int, ...]) -> Tensor | None:
    """The mask `(B, H, W)` at another size, boolean, as the detectors of transformers resize it."""
    if pixel_mask is None:
        return None
    return F.interpolate(pixel_mask[None].float(), size=size[-2:])[0].bool()


def flattened(maps: list[Tensor], pixel_mask: Tensor | None) -> list[Level]:
    """Maps `(B, C, H, W)` as tokens `(B, HW, C)`."""
    levels = []
    for values in maps:
        mask = resized_mask(pixel_mask, values.shape)
        levels.append(Level(values.flatten(2).transpose(1, 2), None if mask is None else mask.flatten(1)))
    return levels
