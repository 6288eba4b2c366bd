"""Batches of both domains for a detector."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from ..base import Batch

__all__ = ["mix_detection", "together"]


def mix_detection(source: Batch, target: Batch) -> Batch:
    """Source and target in one batch, on the smallest canvas that holds both; images without labels have None."""
    return together(source, target, 1)


def together(source: Batch, target: Batch, domain: int) -> Batch:
    """As `mix_detection`, with the domain label that the target's images have."""
    parts = (source["pixel_values"], target["pixel_values"])
    device = parts[0].device
    known = source.get("domain_labels", torch.zeros(len(parts[0]), dtype=torch.long, device=device))
    mixed: Batch = {
        **(_on_one_canvas(source, target) if parts[0].ndim > 2 else {"pixel_values": torch.cat(parts)}),
        "labels": [*source["labels"], *target.get("labels", [None] * len(parts[1]))],
        "domain_labels": torch.cat([known, torch.full((len(parts[1]),), domain, device=device)]),
    }
    return mixed


def _on_one_canvas(source: Batch, target: Batch) -> Batch:
    """The pixel values of both on the smallest canvas that holds them, and a mask where something is padded."""
    parts = (source["pixel_values"], target["pixel_values"])
    height, width = (max(part.shape[axis] for part in parts) for axis in (2, 3))
    values = [F.pad(part, (0, width - part.shape[3], 0, height - part.shape[2])) for part in parts]
    masks = []
    for batch, part in zip((source, target), parts, strict=True):
        mask = batch.get("pixel_mask")
        mask = torch.ones_like(part[:, 0], dtype=torch.long) if mask is None else mask
        masks.append(F.pad(mask, (0, width - part.shape[3], 0, height - part.shape[2])))
    mask = torch.cat(masks)
    padded = {} if bool(mask.bool().all()) else {"pixel_mask": mask}
    return {"pixel_values": torch.cat(values), **padded}
