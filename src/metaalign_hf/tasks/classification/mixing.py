"""Rows of both domains in one batch, with the labels and domain labels that say which is which."""

from __future__ import annotations

import torch

from ...models import IGNORED_LABEL
from ..base import Batch

__all__ = ["mix", "together", "with_target_labels"]


def mix(source: Batch, target: Batch) -> Batch:
    """Source and target in one batch: the target's rows carry label -100 and domain label 1."""
    unknown = source["labels"].new_full((len(target["pixel_values"]),), IGNORED_LABEL)
    return together(source, {**target, "labels": unknown}, 1)


def with_target_labels(source: Batch, few: Batch) -> Batch:
    """Source rows and labelled target rows, which carry domain label -100: the task loss alone uses them."""
    return together(source, few, IGNORED_LABEL)


def together(source: Batch, target: Batch, domain: int) -> Batch:
    """Source rows, and after them target rows with their labels as they are and this domain label."""
    labels, count = source["labels"], len(target["labels"])
    joined = {key: torch.cat([source[key], target[key]]) for key in ("pixel_values", "labels")}
    known = source.get("domain_labels", torch.zeros_like(labels))
    joined["domain_labels"] = torch.cat([known, labels.new_full((count,), domain)])
    if "source_index" in source:
        joined["source_index"] = torch.cat([source["source_index"], labels.new_full((count,), -1)])
    return joined
