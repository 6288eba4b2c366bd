"""Thresholds of a mean teacher that finds as many objects in the target as the source has."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ..coordination import frozen_running_statistics
from ..tasks.base import Batch

__all__ = ["CountThresholds", "normalised_by_batch"]

_IMAGES = 256
_LEAST = 0.01


class CountThresholds:
    """For each class the score that as many of the teacher's boxes reach as the source has objects.

    With n_k the objects of class k per source image seen so far, and the boxes of the teacher on the last N = 256
    target images, duplicates left out::

        T_k = the score of the (n_k N)-th surest box of class k

    It supposes that an object of a class is about as frequent in both domains. All processes see the same boxes. Scores
    below 0.01 never count.

    Source: Chen et al., "Label Matching Semi-Supervised Object Detection" (LabelMatch), CVPR 2022, with the source in
    the place of the labelled part, and recent images in the place of the whole data set.

    Args:
        num_labels: Number K of classes.
    """

    def __init__(self, num_labels: int) -> None:
        self.objects, self.images = [0] * num_labels, 0
        self.seen: deque[tuple[Tensor, Tensor]] = deque(maxlen=_IMAGES)

    def count(self, source: Sequence[Batch]) -> None:
        """Take note of the objects of source images.

        Args:
            source: Micro-batches whose `labels` hold `class_labels` for each image.
        """
        found = torch.zeros(len(self.objects) + 1, dtype=torch.long)
        for batch in source:
            for entry in batch["labels"]:
                found[:-1] += entry["class_labels"].cpu().bincount(minlength=len(self.objects))
                found[-1] += 1
        for part in _of_all_processes(found):
            self.objects = [a + b for a, b in zip(self.objects, part[:-1].tolist(), strict=True)]
            self.images += int(part[-1])

    def see(self, found: Sequence[tuple[Tensor, Tensor]]) -> None:
        """Take note of what the teacher finds in target images.

        Args:
            found: For each image scores `(n,)` and classes `(n,)` of its boxes.
        """
        own = [(scores[scores >= _LEAST].cpu(), classes[scores >= _LEAST].cpu()) for scores, classes in found]
        for part in _of_all_processes(own):
            self.seen.extend(part)

    def values(self) -> Tensor:
        """The thresholds `(K,)`; 2, which no score reaches, where a class has no objects or no boxes."""
        scores, classes = (torch.cat(part) for part in zip(*self.seen, strict=True))
        thresholds = torch.full((len(self.objects),), 2.0)
        for label, objects in enumerate(self.objects):
            own = scores[classes == label].sort(descending=True).values
            count = min(round(objects / self.images * len(self.seen)), len(own))
            if count > 0:
                thresholds[label] = own[count - 1]
        return thresholds

    def state_dict(self) -> dict[str, Any]:
        """What was seen, as JSON values."""
        seen = [[scores.tolist(), classes.tolist()] for scores, classes in self.seen]
        return {"objects": self.objects, "images": self.images, "seen": seen}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what `state_dict` gave."""
        self.objects, self.images = list(state["objects"]), state["images"]
        self.seen = deque(
            (
                (torch.tensor(scores, dtype=torch.float), torch.tensor(classes, dtype=torch.long))
                for scores, classes in state["seen"]
            ),
            maxlen=_IMAGES,
        )


@contextmanager
def normalised_by_batch(teacher: nn.Module, student: nn.Module) -> Iterator[None]:
    """Batch normalisations of the teacher that are live in the student use the statistics of what they see inside.

    So its labels are those of a model with statistics of the target, from the first step on. None of its own move.

    Args:
        teacher: The average of the weights, in evaluation mode.
        student: The model that is trained, perhaps wrapped by DistributedDataParallel.
    """
    live = {name.removeprefix("module.") for name, layer in student.named_modules() if layer.training}
    layers = [
        layer
        for name, layer in teacher.named_modules()
        if isinstance(layer, nn.modules.batchnorm._BatchNorm) and name in live
    ]
    with ExitStack() as stack:
        for layer in layers:
            layer.train()
            stack.callback(layer.eval)
        stack.enter_context(frozen_running_statistics(teacher))
        yield


def _of_all_processes(own: Any) -> list[Any]:
    if not (dist.is_available() and dist.is_initialized()):
        return [own]
    every: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(every, own)
    return every
