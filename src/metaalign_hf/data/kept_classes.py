"""The images of some classes of a domain: what a source has that a target is known not to have is left out."""

from __future__ import annotations

from dataclasses import replace

from ..configuration import DomainConfig
from ..errors import UserError
from .annotations import ClassNames
from .domains import RawDomain
from .images import ImageSet
from .label_agreement import some

__all__ = ["refuse_chosen_classes", "with_chosen_classes"]


def with_chosen_classes(config: DomainConfig, raw: RawDomain[ImageSet]) -> RawDomain[ImageSet]:
    """The domain with the images of the classes that its configuration names, which are numbered in that order.

    Args:
        config: The domain's configuration.
        raw: The domain as it was read.

    Raises:
        UserError: If it has no labels, or lacks a class.
    """
    if config.classes is None:
        return raw
    if raw.labels is None:
        raise UserError(f"domain {raw.name} has no labels, by which classes would choose its images; drop classes")
    names = ClassNames(config, raw.labels).names
    kept = {i: n for n, i in enumerate(_rows(raw.train, raw.labels, names))}
    held_out = raw.held_out
    if held_out is not None:
        train, test = ([kept[i] for i in rows if i in kept] for rows in held_out)
        held_out = train, test
    left_out = [name for name in raw.labels if name not in names]
    told = [f"{raw.name}: images of {some(left_out)} are left out, by classes."] if left_out else []
    return replace(
        raw,
        labels=names,
        train=raw.train.relabelled(raw.labels, names),
        test=None if raw.test is None else raw.test.relabelled(raw.labels, names),
        held_out=held_out,
        notes=[*raw.notes, *told],
    )


def _rows(images: ImageSet, labels: list[str], names: list[str]) -> list[int]:
    assert images.labels is not None
    return [i for i, number in enumerate(images.labels) if labels[number] in names]


def refuse_chosen_classes(target: DomainConfig) -> None:
    """Refuse a classifier's target whose images would be chosen by their labels.

    Raises:
        UserError: If it names classes.
    """
    if target.classes is not None:
        raise UserError(
            "data.target.classes: to choose images of the target by their class would use its labels; drop it, and "
            "name the classes that the target has in data.source.classes"
        )
