"""Features and logits of a model over batches, gathered from all processes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
import torch.distributed as dist
from torch import Tensor, nn

__all__ = ["Collected", "collect_outputs", "gather_rows", "in_order"]


@torch.no_grad()
def collect_outputs(model: nn.Module, batches: Iterable[Sequence[Tensor]]) -> list[tuple[Tensor, Tensor]]:
    """Features `(N, D)` and logits `(N, K)` of every view of the images.

    The model is put in eval mode and left in the mode it was in.

    Args:
        model: Called with `pixel_values`; its output has `features` and `logits`.
        batches: Each batch is one or several views `(B, 3, H, W)` of the same images, on any device.

    Returns:
        One pair for each view, on the model's device.
    """
    device = next(model.parameters()).device
    was_training = model.training
    model.eval()
    views: list[tuple[list[Tensor], list[Tensor]]] = []
    for batch in batches:
        for index, pixel_values in enumerate(batch):
            if index == len(views):
                views.append(([], []))
            output = model(pixel_values=pixel_values.to(device))
            views[index][0].append(output.features.float())
            views[index][1].append(output.logits.float())
    model.train(was_training)
    return [(torch.cat(features), torch.cat(logits)) for features, logits in views]


class Collected:
    """Classes and confidences of all images of an evaluation, and features of some, batch by batch.

    Args:
        chosen: Numbers of the images whose features are kept.
    """

    def __init__(self, chosen: Sequence[int]) -> None:
        self.chosen, self.count = list(chosen), 0
        self._place = {number: place for place, number in enumerate(self.chosen)}
        self._found: list[tuple[Tensor, Tensor]] = []
        self._features: list[Tensor] = []
        self._order: list[int] = []

    def add(self, features: Tensor, logits: Tensor) -> None:
        """Take the next images: features `(B, D)` and logits `(B, K)`."""
        confidence, label = logits.detach().float().softmax(1).max(1)
        self._found.append((label.cpu(), confidence.cpu()))
        rows = [row for row in range(len(logits)) if self.count + row in self._place]
        self._order += [self._place[self.count + row] for row in rows]
        self._features.append(features.detach()[rows].float().cpu())
        self.count += len(logits)

    def predictions(self) -> tuple[Tensor, Tensor]:
        """Class and its probability of each image, `(N,)` both."""
        labels, confidences = zip(*self._found, strict=True)
        return torch.cat(labels), torch.cat(confidences)

    def features(self) -> Tensor:
        """Features of the chosen images, in their order."""
        return torch.cat(self._features)[torch.tensor(self._order, dtype=torch.long).argsort()]


def gather_rows(rows: Tensor, world_size: int) -> Tensor:
    """The rows of all processes in their common order, where process r holds every `world_size`-th row from row r on.

    Args:
        rows: `(N, ...)`, equally many on each process.
        world_size: Number of processes.

    Returns:
        `(N world_size, ...)`, on every process.
    """
    if world_size == 1:
        return rows
    found = [torch.empty_like(rows) for _ in range(world_size)]
    dist.all_gather(found, rows.contiguous())
    return torch.stack(found, 1).flatten(0, 1)


def in_order(own: Tensor, count: int, world_size: int) -> Tensor:
    """The rows of all images in their order, where each process has those of every `world_size`-th; a collective call.

    Args:
        own: This process's rows `(n, ...)`, on the CPU.
        count: Number of images.
        world_size: Number of processes.
    """
    shares = [own] * world_size
    if world_size > 1:
        dist.all_gather_object(shares, own)
    rows = own.new_empty(count, *own.shape[1:])
    for number, share in enumerate(shares):
        rows[number::world_size] = share
    return rows
