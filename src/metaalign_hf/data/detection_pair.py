"""A source with labelled objects and a target without, whose class names agree."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from ..configuration import DomainConfig
from ..errors import UserError
from .annotations import RawDetectionDomain
from .detection_readers import read_detection_domain
from .domain_pair import hold_out, refuse_same_domain
from .images import ImageSet
from .label_agreement import differing_classes, some
from .names import named_apart
from .objects import DetectionSet
from .pair_domains import PairDomains

__all__ = ["DetectionPair", "load_detection_pair", "load_detection_view", "renumbered"]


@dataclass(frozen=True)
class DetectionPair:
    """A domain pair for detectors. Nothing that training or selection reads leads to a target object.

    Attributes:
        source_name: Name of the source.
        target_name: Name of the target.
        labels: Class names in the order of the class indices.
        source_train: Source images with objects to train on.
        source_test: Source images with objects to evaluate on.
        target_train: Target images to adapt to, without objects.
        target_test_images: Target test images, without objects.
        target_evaluation: Target test images with objects, for evaluation only; None where the target has none.
        notes: Plain statements about what was done to the data.
        domains: The domains that the pair was loaded from; None for a pair made by hand.
    """

    source_name: str
    target_name: str
    labels: list[str]
    source_train: DetectionSet
    source_test: DetectionSet
    target_train: DetectionSet
    target_test_images: DetectionSet
    target_evaluation: DetectionSet | None
    notes: list[str] = field(default_factory=list)
    domains: PairDomains | None = None


def load_detection_pair(
    source: DomainConfig | str,
    target: DomainConfig | str,
    label_policy: Literal["strict", "shared"] = "strict",
) -> DetectionPair:
    """Load a source with objects and a target, and make their class names agree.

    Classes are matched by name, never by index. The target's objects, if any, go into the evaluation view and nowhere
    else; no target image is chosen, dropped or cropped by them.

    Args:
        source: The source, or its short form.
        target: The target, or its short form.
        label_policy: `strict`: both have the same class names. `shared`: only objects of the classes of both count; no
            image is dropped.

    Returns:
        The pair.

    Raises:
        UserError: If a domain cannot be read, the source has no objects, or the class names do not agree.
    """
    refuse_same_domain([source], target)
    given = [DomainConfig.parse(d) if isinstance(d, str) else d for d in (source, target)]
    source, target = named_apart(given)
    from_source, from_target = _read(source), _read(target)
    if from_source.labels is None:
        raise UserError(f"source {from_source.name} has no boxes: a detector needs a source with objects")
    source_train, source_test = _split(from_source, source)
    target_train, target_test = _split(from_target, target)
    labels, notes = _agree(from_source, from_target, label_policy)
    evaluation = None
    if from_target.labels is not None:
        evaluation = target_test.relabelled(from_target.labels, labels)
        if not any(len(entry) for entry in evaluation.objects or ()):
            raise UserError(f"target {from_target.name}: no test image has an object of the classes {some(labels)}")
    train = source_train.relabelled(from_source.labels, labels)
    if not any(len(entry) for entry in train.objects or ()):
        raise UserError(f"source {from_source.name}: no training image has an object of the classes {some(labels)}")
    return DetectionPair(
        source_name=from_source.name,
        target_name=from_target.name,
        labels=labels,
        source_train=train,
        source_test=source_test.relabelled(from_source.labels, labels),
        target_train=target_train.without_objects(),
        target_test_images=target_test.without_objects(),
        target_evaluation=evaluation,
        notes=[*from_source.notes, *from_target.notes, *notes],
        domains=PairDomains((given[0],), given[1]),
    )


def load_detection_view(
    config: DomainConfig | str, labels: Sequence[str], split: Literal["test", "train", "all"] = "test"
) -> DetectionSet:
    """Images with objects of a domain, numbered as the classes of a model.

    Args:
        config: The domain, or its short form.
        labels: Class names of the model.
        split: Which images.

    Returns:
        The images; objects of classes that the model does not know are left out.

    Raises:
        UserError: If the domain cannot be read, has no objects, or none of a class that the model knows.
    """
    raw = _read(config)
    if raw.labels is None:
        raise UserError(f"domain {raw.name} has no boxes: nothing to evaluate against")
    if not set(raw.labels) & set(labels):
        raise UserError(
            f"domain {raw.name} has none of the model's classes: it has {some(raw.labels)}; the model knows "
            f"{some(list(labels))}"
        )
    train, test = _split(raw, config)
    parts = {"test": [test], "train": [train], "all": [train, test]}[split]
    views = [part.relabelled(raw.labels, labels) for part in parts]
    return views[0] if len(views) == 1 else _join(*views)


def renumbered(pair: DetectionPair, labels: Sequence[str]) -> DetectionPair:
    """The pair with its classes, which must be these, numbered in this order."""
    if pair.labels == list(labels):
        return pair
    views = {name: getattr(pair, name) for name in ("source_train", "source_test", "target_evaluation")}
    changed = {name: view and view.relabelled(pair.labels, labels) for name, view in views.items()}
    return replace(pair, labels=list(labels), **changed)


def _read(config: DomainConfig | str) -> RawDetectionDomain:
    return read_detection_domain(DomainConfig.parse(config) if isinstance(config, str) else config)


def _split(raw: RawDetectionDomain, config: DomainConfig | str) -> tuple[DetectionSet, DetectionSet]:
    if raw.test is not None:
        return raw.train, raw.test
    settings = DomainConfig() if isinstance(config, str) else config
    train, test = hold_out(len(raw.train), raw.name, settings)
    return raw.train.subset(train), raw.train.subset(test)


def _agree(source: RawDetectionDomain, target: RawDetectionDomain, policy: str) -> tuple[list[str], list[str]]:
    """Class names of the pair, and notes."""
    assert source.labels is not None
    if target.labels is None:
        return list(source.labels), [f"Target {target.name} has no boxes: its precision cannot be measured."]
    only_source = [name for name in source.labels if name not in target.labels]
    only_target = [name for name in target.labels if name not in source.labels]
    shared = [name for name in source.labels if name in target.labels]
    if not only_source and not only_target:
        return shared, []
    if policy == "shared" and shared:
        notes = [f"Source objects of classes that the target lacks were dropped: {some(only_source)}."]
        ignored = [f"Target objects of classes that the source lacks are not evaluated: {some(only_target)}."]
        return shared, (notes if only_source else []) + (ignored if only_target else [])
    raise differing_classes((source.name, source.labels), (target.name, target.labels), enough=1)


def _join(first: DetectionSet, second: DetectionSet) -> DetectionSet:
    size = len(first)

    def load(index: int):  # type: ignore[no-untyped-def]
        return first[index] if index < size else second[index - size]

    images = ImageSet(first.name, size + len(second), load, None, first.images.paths + second.images.paths)
    return DetectionSet(images, (first.objects or ()) + (second.objects or ()))
