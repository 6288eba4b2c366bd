"""The contact sheet of a check: some images of each class, the source's beside the target's."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
from PIL import Image

from ..data import DetectionSet, Domain
from ..data.blocks import random_order
from ..data.images import read_images
from ..reports.boxes import draw_boxes
from ..reports.contact_sheet import SheetRow, draw_contact_sheet
from ..reports.sheets import resized, tile_size

__all__ = ["contact_sheet"]

_ROWS, _TILES = 12, 5
_TILE, _LARGE_TILE = 96, 190


def contact_sheet(sources: list[Domain[Any]], target: Domain[Any]) -> Image.Image:
    """Training images of both domains. The target's labels, where it has any, sort the picture and do nothing else.

    Args:
        sources: The sources; of several, a row shows images of all of them in turn.
        target: The target.
    """
    classes = list(dict.fromkeys(name for domain in [*sources, target] for name in domain.labels or ()))
    shown: list[str | None] = [*classes[:: max(1, -(-len(classes) // _ROWS))]] or [None]
    objects = any(isinstance(domain.train, DetectionSet) for domain in [*sources, target])
    tile = _LARGE_TILE if objects else _TILE
    count = 3 if objects else _TILES
    rows = []
    for number, name in enumerate(shown):
        found = [[(domain, index) for index in _of_class(domain, name, number)] for domain in sources]
        turns = [place for places in itertools.zip_longest(*found) for place in places if place is not None]
        left = [_tile(domain, index, tile) for domain, index in turns[: count + 3]]
        right = [_tile(target, index, tile) for index in _of_class(target, name, number)[: count + 3]]
        titles = (_title(name, sources), _title(name, [target]))
        rows.append(
            SheetRow(titles, ([i for i in left if i is not None][:count], [i for i in right if i is not None][:count]))
        )
    heads = ("source: " + " + ".join(domain.name for domain in sources), f"target: {target.name}")
    return draw_contact_sheet(heads, rows, tile)


def _of_class(domain: Domain[Any], name: str | None, number: int) -> list[int]:
    """Some training images of a class, or of a domain without labels any."""
    labels, train = domain.labels, domain.train
    if labels is None or name is None:
        order = random_order(train, 0)
        return order[number * 2 * _TILES : (number + 1) * 2 * _TILES].tolist()
    if name not in labels:
        return []
    wanted = labels.index(name)
    if isinstance(train, DetectionSet):
        found = [i for i, objects in enumerate(train.objects or ()) if bool((objects.labels == wanted).any())]
    else:
        found = np.flatnonzero(np.asarray(train.labels) == wanted).tolist()
    return [found[i] for i in np.random.default_rng(number).permutation(len(found))[: 2 * _TILES]]


def _title(name: str | None, domains: list[Domain[Any]]) -> str:
    if name is None or all(domain.labels is None for domain in domains):
        return "no labels: any images"
    count = 0
    for domain in domains:
        if domain.labels is not None and name in domain.labels:
            wanted, train = domain.labels.index(name), domain.train
            if isinstance(train, DetectionSet):
                count += sum(int((objects.labels == wanted).sum()) for objects in train.objects or ())
            else:
                count += int((np.asarray(train.labels) == wanted).sum())
    return f"{name} ({count:,})"


def _tile(domain: Domain[Any], index: int, side: int) -> Image.Image | None:
    """An image as a tile, with its boxes; None if it cannot be read."""
    kept, read = read_images(domain.train, [index], lambda *_: None)
    if not kept:
        return None
    size = tile_size(read[0], side, side)
    picture = resized(read[0], size)
    if isinstance(domain.train, DetectionSet) and domain.train.objects is not None:
        objects, scale = domain.train.objects[index], size[1] / read[0].shape[2]
        boxes = [tuple(scale * x for x in box) for box in objects.boxes.tolist()]
        names = [((domain.labels or ())[label], "") for label in objects.labels.tolist()]
        draw_boxes(picture, boxes, names, "no objects")
    return picture
