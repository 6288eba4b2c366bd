"""A labelled source and an unlabelled target, whose class names agree."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np

from ..configuration import DomainConfig
from ..errors import UserError
from .images import ImageSet
from .label_agreement import differing_classes, some
from .names import named_apart
from .pair_domains import PairDomains
from .readers import RawDomain, read_domain

__all__ = [
    "Domain",
    "DomainPair",
    "hold_out",
    "load_domain",
    "load_domain_pair",
    "load_labelled_view",
    "refuse_same_domain",
]


@dataclass(frozen=True)
class Domain:
    """A domain with its split.

    Attributes:
        name: Display name.
        labels: Class names in the order of the label indices; None without labels.
        train: Training images.
        test: Test images.
        notes: Data that is not used, or used differently from what one might expect.
    """

    name: str
    labels: list[str] | None
    train: ImageSet
    test: ImageSet
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class DomainPair:
    """A domain pair. Nothing that training or selection reads leads to a target label.

    Attributes:
        source_name: Name of the source.
        target_name: Name of the target.
        labels: Class names in the order of the logits.
        source_train: Labelled source images to train on.
        source_test: Labelled source images to evaluate on.
        target_train: Target images to adapt to, without labels.
        target_test_images: Target test images, without labels.
        target_evaluation: Target test images with labels, for evaluation only; None where the target has no labels.
        target_labeled: Labelled target images that were given for training; None where there are none.
        notes: Plain statements about what was done to the data.
        domains: The domains that the pair was loaded from; None for a pair made by hand.
    """

    source_name: str
    target_name: str
    labels: list[str]
    source_train: ImageSet
    source_test: ImageSet
    target_train: ImageSet
    target_test_images: ImageSet
    target_evaluation: ImageSet | None
    target_labeled: ImageSet | None = None
    notes: list[str] = field(default_factory=list)
    domains: PairDomains | None = None

    def in_order(self, labels: list[str]) -> DomainPair:
        """The same pair with its classes numbered as in `labels`.

        Args:
            labels: The same class names in any order.
        """
        if labels == self.labels:
            return self

        def renumber(images: ImageSet) -> ImageSet:
            return _relabel(images, self.labels, labels)

        return replace(
            self,
            labels=list(labels),
            source_train=renumber(self.source_train),
            source_test=renumber(self.source_test),
            target_evaluation=None if self.target_evaluation is None else renumber(self.target_evaluation),
            target_labeled=None if self.target_labeled is None else renumber(self.target_labeled),
        )


def load_domain(config: DomainConfig | str) -> Domain:
    """Read a domain and split it.

    Without test images of its own, a share of the images is held out: a random choice that depends on the number of
    images and `split_seed` alone, never on labels.

    Args:
        config: The domain, or its short form.

    Returns:
        The domain.

    Raises:
        UserError: If the domain cannot be read, or is too small to be split.
    """
    config = DomainConfig.parse(config) if isinstance(config, str) else config
    return _split(read_domain(config), config)


def load_domain_pair(
    source: DomainConfig | str | Sequence[DomainConfig | str],
    target: DomainConfig | str,
    label_policy: Literal["strict", "shared"] = "strict",
    target_labeled: DomainConfig | str | None = None,
) -> DomainPair:
    """Load one or several labelled sources and a target, and make their class names agree.

    Labels are matched by name, never by index. The target's labels, if any, go into the evaluation view and nowhere
    else. The images of several sources are joined in the order given.

    Args:
        source: The source, or its short form, or a list of several.
        target: The target, or its short form.
        label_policy: `strict`: all have the same class names. `shared`: source images of other classes are dropped,
            and so are those of the target's evaluation view; the target's training images are not filtered, because
            that would take their labels.
        target_labeled: A domain whose images, all of them, are labelled target images for training. Its classes may be
            some of the pair's only.

    Returns:
        The pair.

    Raises:
        UserError: If a domain cannot be read, a source has no labels, or the class names do not agree.
    """
    given = [source] if isinstance(source, DomainConfig | str) else list(source)
    if not given:
        raise UserError("data.source: the list of sources is empty")
    refuse_same_domain(given, target)
    parsed = [_parsed(domain) for domain in given]
    few = None if target_labeled is None else _parsed(target_labeled)
    domains = PairDomains(tuple(parsed), _parsed(target), few)
    *named, target = named_apart([*parsed, domains.target])
    sources, from_target = [load_domain(config) for config in named], load_domain(target)
    for domain in sources:
        if domain.labels is None:
            raise UserError(
                f"source {domain.name} has no labels: give class folders, labels in the list, or label_column"
            )
    labels, notes = _agree_all(sources, from_target, label_policy)
    evaluation = None
    if from_target.labels is not None:
        evaluation = _relabel(from_target.test, from_target.labels, labels)
        if len(evaluation) == 0:
            raise UserError(f"target {from_target.name}: no test image has one of the classes {some(labels)}")
    train = [_relabel(domain.train, domain.labels or (), labels) for domain in sources]
    test = [_relabel(domain.test, domain.labels or (), labels) for domain in sources]
    return DomainPair(
        source_name=" + ".join(domain.name for domain in sources),
        target_name=from_target.name,
        labels=labels,
        source_train=train[0].join(*train[1:]) if len(train) > 1 else train[0],
        source_test=test[0].join(*test[1:]) if len(test) > 1 else test[0],
        target_train=from_target.train.without_labels(),
        target_test_images=from_target.test.without_labels(),
        target_evaluation=evaluation,
        target_labeled=None if few is None else load_labelled_view(few, labels, "all"),
        notes=[*(note for domain in [*sources, from_target] for note in domain.notes), *notes],
        domains=domains,
    )


def refuse_same_domain(sources: Sequence[DomainConfig | str], target: DomainConfig | str) -> None:
    """Refuse a target whose images are a source's: there would be nothing to adapt to.

    Raises:
        UserError: If the target is among the sources.
    """
    to = _parsed(target)
    if any(_parsed(source).is_same_place(to) for source in sources):
        raise UserError(f"data.target is the source ({to.short_form()}): name another domain to adapt to")


def _parsed(domain: DomainConfig | str) -> DomainConfig:
    return DomainConfig.parse(domain) if isinstance(domain, str) else domain


def load_labelled_view(
    config: DomainConfig | str, labels: Sequence[str], split: Literal["test", "train", "all"] = "test"
) -> ImageSet:
    """Labelled images of a domain, numbered as the classes of a model.

    Args:
        config: The domain, or its short form.
        labels: Class names of the model.
        split: Which images.

    Returns:
        The images.

    Raises:
        UserError: If the domain cannot be read, has no labels, or has a class that the model does not know.
    """
    config = DomainConfig.parse(config) if isinstance(config, str) else config
    raw = read_domain(config)
    if raw.labels is None:
        raise UserError(f"domain {raw.name} has no labels: nothing to evaluate against")
    unknown = [name for name in raw.labels if name not in labels]
    if unknown:
        raise UserError(
            f"domain {raw.name} has classes that the model does not know: {some(unknown)}; it knows {some(labels)}"
        )
    if split == "all":
        views = [raw.train, *([raw.test] if raw.test is not None else [])]
    else:
        domain = _split(raw, config)
        views = [domain.train if split == "train" else domain.test]
    first, *rest = (_relabel(view, raw.labels, labels) for view in views)
    return replace(first.join(*rest), parts=())


def _split(raw: RawDomain, config: DomainConfig) -> Domain:
    if raw.test is not None:
        return Domain(raw.name, raw.labels, raw.train, raw.test, raw.notes)
    train, test = raw.held_out or hold_out(len(raw.train), raw.name, config)
    return Domain(raw.name, raw.labels, raw.train.subset(train), raw.train.subset(test), raw.notes)


def hold_out(size: int, name: str, config: DomainConfig) -> tuple[list[int], list[int]]:
    """Indices to train and to test on: a random choice that depends on the number of images and `split_seed` alone.

    Raises:
        UserError: If there are too few images.
    """
    count = max(1, round(size * config.test_fraction))
    if count >= size:
        raise UserError(
            f"domain {name}: {size} images are too few to hold {count} out as test images; give a test_path"
        )
    order = np.random.default_rng(config.split_seed).permutation(size)
    return sorted(order[count:].tolist()), sorted(order[:count].tolist())


def _agree_all(sources: Sequence[Domain], target: Domain, policy: str) -> tuple[list[str], list[str]]:
    """Class names of all domains, in the order of the first source, and notes."""
    labels, notes = _agree(sources[0], target, policy)
    for other in sources[1:]:
        # Under strict the other source must have the first one's classes; under shared the common ones are kept.
        shared, _ = _agree(sources[0], other, policy)
        dropped = [name for name in labels if name not in shared]
        labels = [name for name in labels if name in shared]
        if dropped:
            notes.append(f"Classes that source {other.name} lacks were dropped: {some(dropped)}.")
    if len(labels) < 2:
        raise UserError("class names differ: fewer than two classes are common to all sources and the target")
    return labels, notes


def _agree(source: Domain, target: Domain, policy: str) -> tuple[list[str], list[str]]:
    """Class names of the pair, and notes."""
    assert source.labels is not None
    if target.labels is None:
        return list(source.labels), [f"Target {target.name} has no labels: its accuracy cannot be measured."]
    only_source = [name for name in source.labels if name not in target.labels]
    only_target = [name for name in target.labels if name not in source.labels]
    if not only_source and not only_target:
        return list(source.labels), []
    shared = [name for name in source.labels if name in target.labels]
    if policy == "shared" and len(shared) >= 2:
        notes = [f"Source classes that the target lacks were dropped: {some(only_source)}."] if only_source else []
        if only_target:
            notes.append(
                f"Target images of classes that the source lacks ({some(only_target)}) stay in training and "
                "are left out of the evaluation."
            )
        return shared, notes
    raise differing_classes((source.name, source.labels), (target.name, target.labels), enough=2)


def _relabel(images: ImageSet, names: Sequence[str], labels: Sequence[str]) -> ImageSet:
    """The images whose class is among `labels`, numbered by it."""
    assert images.labels is not None
    index = {number: labels.index(name) for number, name in enumerate(names) if name in labels}
    kept = [i for i, number in enumerate(images.labels) if number in index]
    return images.subset(kept, [index[images.labels[i]] for i in kept])
