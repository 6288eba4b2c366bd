"""A source with annotations and a target without, whose class names agree; images with labels or with objects."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Generic, Literal

import numpy as np

from ..configuration import DomainConfig
from ..errors import UserError
from .domains import Domain, RawDomain, S
from .images import ImageSet
from .kept_classes import refuse_chosen_classes
from .label_agreement import UNKNOWN, differing_classes, open_names, some
from .names import named_apart
from .pair_domains import PairDomains
from .readers import domain_of_rows, read_domain

__all__ = [
    "LABELS",
    "AnnotationKind",
    "DomainPair",
    "load_domain",
    "load_domain_pair",
    "load_domains",
    "load_labelled_view",
    "load_pair",
    "load_target",
    "load_view",
    "make_pair",
]

Policy = Literal["strict", "shared", "source", "open"]
Split = Literal["test", "train", "all"]
Given = DomainConfig | str

_COUNTED = (
    f"Target images of classes that the source lacks ({{}}) count as {UNKNOWN}, and stay in training without labels."
)


@dataclass(frozen=True)
class DomainPair(Generic[S]):
    """A domain pair. Nothing that training or selection reads leads to a target label or object.

    Attributes:
        source_name: Name of the source.
        target_name: Name of the target.
        labels: Class names in the order of the logits.
        source_train: Annotated source images to train on.
        source_test: Annotated source images to evaluate on.
        target_train: Target images to adapt to, without annotations.
        target_test_images: Target test images, without annotations.
        target_evaluation: Target test images with annotations, for evaluation only; None where the target has none.
        target_labeled: Annotated target images that were given for training; None where there are none.
        notes: Plain statements about what was done to the data.
        domains: The domains that the pair was loaded from; None for a pair made by hand.
    """

    source_name: str
    target_name: str
    labels: list[str]
    source_train: S
    source_test: S
    target_train: S
    target_test_images: S
    target_evaluation: S | None
    target_labeled: S | None = None
    notes: list[str] = field(default_factory=list)
    domains: PairDomains | None = None

    @property
    def has_source(self) -> bool:
        """Whether there are source images; without, both source views are empty."""
        return len(self.source_train) > 0

    def in_order(self, labels: Sequence[str]) -> DomainPair[S]:
        """The same pair with its classes numbered as in `labels`.

        Args:
            labels: The same class names in any order.
        """
        if list(labels) == self.labels:
            return self
        names = ("source_train", "source_test", "target_evaluation", "target_labeled")
        views = {name: getattr(self, name) for name in names}
        changed = {name: view and view.relabelled(self.labels, labels) for name, view in views.items()}
        return replace(self, labels=list(labels), **changed)


@dataclass(frozen=True)
class AnnotationKind(Generic[S]):
    """What differs between images with labels and images with objects: how they are read, and the words for them.

    Attributes:
        read: Reads a domain.
        of_rows: Reads all rows of a `datasets.Dataset`; its arguments are those of `domain_of_rows`.
        images: The class of a set of such images.
        enough: As many common classes make a pair.
        name: What annotations are called.
        needed: What a source must have.
        figure: What cannot be measured without them.
        dropped: What `label_policy: shared` drops of the source.
        ignored: What it leaves out of the target's evaluation; a format of the classes' names.
        one: An annotation of a test or training image.
        leaves_out: Whether a labelled view may have classes that the model does not know, which are left out.
        opens: Whether classes that the source lacks may count as one, `unknown`.
    """

    read: Callable[[DomainConfig], RawDomain[S]]
    of_rows: Callable[[Any, DomainConfig, str], RawDomain[S]]
    images: type[S]
    enough: int
    name: str
    needed: str
    figure: str
    dropped: str
    ignored: str
    one: str
    leaves_out: bool
    opens: bool = False


LABELS = AnnotationKind(
    read=read_domain,
    of_rows=domain_of_rows,
    images=ImageSet,
    enough=2,
    name="labels",
    needed="give class folders, labels in the list, or label_column",
    figure="accuracy",
    dropped="Source classes",
    ignored="Target images of classes that the source lacks ({}) stay in training and are left out of the evaluation.",
    one="one",
    leaves_out=False,
    opens=True,
)


def load_domain(config: Given) -> Domain[ImageSet]:
    """Read a domain of labelled images and split it.

    Without test images of its own, a share of the images is held out: a random choice that depends on the number of
    images and `split_seed` alone, never on labels.

    Args:
        config: The domain, or its short form.

    Returns:
        The domain.

    Raises:
        UserError: If the domain cannot be read, or is too small to be split.
    """
    return _load(LABELS, _parsed(config))


def load_domain_pair(
    source: Given | Sequence[Given],
    target: Given,
    label_policy: Policy = "strict",
    target_labeled: Given | None = None,
) -> DomainPair[ImageSet]:
    """Load one or several labelled sources and a target, and make their class names agree.

    Labels are matched by name, never by index. The target's labels, if any, go into the evaluation view and nowhere
    else. The images of several sources are joined in the order given.

    Args:
        source: The source, or its short form, or a list of several.
        target: The target, or its short form.
        label_policy: `strict`: all have the same class names. `shared`: source images of other classes are dropped,
            and so are those of the target's evaluation view; the target's training images are not filtered, because
            that would take their labels. `source`: all classes of the source are kept, also those that the target
            lacks; its images of other classes are left out of the evaluation. `open`: the same, but those images are of
            one more class, `unknown`, which is the last one.
        target_labeled: A domain whose images, all of them, are labelled target images for training. Its classes may be
            some of the pair's only.

    Returns:
        The pair.

    Raises:
        UserError: If a domain cannot be read, a source has no labels, or the class names do not agree.
    """
    return load_pair(LABELS, source, target, label_policy, target_labeled)


def load_target(
    target: Given, labels: Sequence[str], model: str, label_policy: Policy = "strict"
) -> DomainPair[ImageSet]:
    """Load a target alone, for a model that is adapted without its source.

    Args:
        target: The target, or its short form.
        labels: Class names of the model.
        model: What the model is called, which takes the source's place in names.
        label_policy: `strict`: a target with labels has the model's classes. `shared`: its images of other classes are
            left out of the evaluation; `source` does the same. `open`: the model has the class `unknown`, and such
            images are of it.

    Returns:
        A pair whose source views are empty.

    Raises:
        UserError: If the target cannot be read, or its class names are not the model's.
    """
    config = _parsed(target)
    refuse_chosen_classes(config)
    domain = _load(LABELS, config)
    if label_policy == "open" and UNKNOWN not in labels:
        raise UserError(
            f"data.label_policy is open: {model} has no class {UNKNOWN}; set it to strict, shared or source, or adapt "
            "a model that was trained under open"
        )
    if label_policy == "open" and domain.labels is not None:
        domain = _opened(domain, labels)
    known = Domain(model, list(labels), domain.train.subset([]), domain.test.subset([]))
    agreed, notes = _agree(
        LABELS, replace(known, name=f"model {model}"), domain, "strict" if label_policy == "strict" else "shared"
    )
    evaluation = None
    if domain.labels is not None:
        evaluation = domain.test.relabelled(domain.labels, labels)
        if evaluation.annotations == 0:
            raise UserError(f"target {domain.name}: no test image has one of the classes {some(agreed)}")
        notes = notes[1:] if len(agreed) < len(labels) else notes
    return DomainPair(
        source_name=model,
        target_name=domain.name,
        labels=list(labels),
        source_train=known.train.without_annotations(),
        source_test=known.test.without_annotations(),
        target_train=domain.train.without_annotations(),
        target_test_images=domain.test.without_annotations(),
        target_evaluation=evaluation,
        notes=[*domain.notes, *notes],
        domains=PairDomains((), config),
    )


def load_labelled_view(config: Given, labels: Sequence[str], split: Split = "test", *, opens: bool = False) -> ImageSet:
    """Labelled images of a domain, numbered as the classes of a model.

    Args:
        config: The domain, or its short form.
        labels: Class names of the model.
        split: Which images.
        opens: Whether images of classes that the model does not know are kept, with the number `len(labels)`.

    Returns:
        The images.

    Raises:
        UserError: If the domain cannot be read, has no labels, or has a class that the model does not know and is not
            to be kept.
    """
    return load_view(LABELS, config, labels, split, opens=opens)


def load_pair(
    kind: AnnotationKind[S],
    source: Given | Sequence[Given],
    target: Given,
    policy: Policy = "strict",
    target_labeled: Given | None = None,
) -> DomainPair[S]:
    """As `load_domain_pair`, for any kind of annotations."""
    domains, sources, from_target = load_domains(kind, source, target, target_labeled)
    return make_pair(kind, domains, sources, from_target, policy)


def load_domains(
    kind: AnnotationKind[S],
    source: Given | Sequence[Given],
    target: Given,
    target_labeled: Given | None = None,
) -> tuple[PairDomains, list[Domain[S]], Domain[S]]:
    """The sources and the target of a pair, each as it is; whether they fit is not asked.

    Args:
        kind: What annotations are.
        source: As `load_domain_pair` takes it.
        target: The target, or its short form.
        target_labeled: Labelled target images; not read here.

    Raises:
        UserError: If a domain cannot be read, or the target is the source.
    """
    given = [_parsed(domain) for domain in ([source] if isinstance(source, DomainConfig | str) else source)]
    if not given:
        raise UserError("data.source: the list of sources is empty")
    few = None if target_labeled is None else _parsed(target_labeled)
    domains = PairDomains(tuple(given), _parsed(target), few)
    if kind is LABELS:
        refuse_chosen_classes(domains.target)
    if any(domain.is_same_place(domains.target) for domain in given):
        place = domains.target.short_form()
        raise UserError(f"data.target is the source ({place}): name another domain to adapt to")
    *sources, from_target = (_load(kind, config) for config in named_apart([*given, domains.target]))
    return domains, sources, from_target


def make_pair(
    kind: AnnotationKind[S], domains: PairDomains, sources: Sequence[Domain[S]], from_target: Domain[S], policy: Policy
) -> DomainPair[S]:
    """The pair of these sources and this target.

    Args:
        kind: What annotations are.
        domains: Where they were loaded from.
        sources: The sources.
        from_target: The target.
        policy: As `load_domain_pair` takes it.

    Raises:
        UserError: If a source has no labels, or the class names do not agree.
    """
    few = domains.target_labeled
    if policy == "open" and not kind.opens:
        raise UserError("data.label_policy: open is for classifiers; take strict, shared or source")
    for domain in sources:
        if domain.labels is None:
            raise UserError(f"source {domain.name} has no {kind.name}: {kind.needed}")
        if policy == "open" and UNKNOWN in domain.labels:
            raise UserError(
                f"data.label_policy: open adds a class {UNKNOWN}, and source {domain.name} has a class of that name; "
                "rename it"
            )
    labels, notes = _agree_all(kind, sources, from_target, policy)
    learned = labels
    if policy == "open":
        labels = [*labels, UNKNOWN]
        if from_target.labels is not None:
            from_target = _opened(from_target, labels)
    evaluation = None
    if from_target.labels is not None:
        evaluation = from_target.test.relabelled(from_target.labels, labels)
        if evaluation.annotations == 0:
            raise UserError(f"target {from_target.name}: no test image has {kind.one} of the classes {some(labels)}")
    train = [domain.train.relabelled(domain.labels or (), labels) for domain in sources]
    test = [domain.test.relabelled(domain.labels or (), labels) for domain in sources]
    for domain, images in zip(sources, train, strict=True):
        if images.annotations == 0:
            raise UserError(f"source {domain.name}: no training image has {kind.one} of the classes {some(labels)}")
        if empty := images.absent(learned):
            notes.append(
                f"Source {domain.name} has no training image of {some(empty)}: there is nothing to learn of them."
            )
    if all(images.annotations == 0 for images in test):
        names = " + ".join(domain.name for domain in sources)
        raise UserError(f"source {names}: no test image has {kind.one} of the classes {some(labels)}")
    return DomainPair(
        source_name=" + ".join(domain.name for domain in sources),
        target_name=from_target.name,
        labels=labels,
        source_train=train[0].join(*train[1:]) if len(train) > 1 else train[0],
        source_test=test[0].join(*test[1:]) if len(test) > 1 else test[0],
        target_train=from_target.train.without_annotations(),
        target_test_images=from_target.test.without_annotations(),
        target_evaluation=evaluation,
        target_labeled=None if few is None else load_view(kind, few, labels, "all"),
        notes=[*(note for domain in [*sources, from_target] for note in domain.notes), *notes],
        domains=domains,
    )


def load_view(kind: AnnotationKind[S], config: Given, labels: Sequence[str], split: Split, *, opens: bool = False) -> S:
    """As `load_labelled_view`, for any kind of annotations."""
    config = _parsed(config)
    raw = kind.read(config)
    if raw.labels is None:
        raise UserError(f"domain {raw.name} has no {kind.name}: nothing to evaluate against")
    if opens and UNKNOWN not in labels:
        labels = [*labels, UNKNOWN]
    if kind.opens:
        raw = replace(raw, labels=open_names(raw.labels, labels))
    assert raw.labels is not None
    unknown = [name for name in raw.labels if name not in labels]
    if unknown and not kind.leaves_out:
        raise UserError(
            f"domain {raw.name} has classes that the model does not know: {some(unknown)}; it knows {some(labels)}"
        )
    if len(unknown) == len(raw.labels):
        raise UserError(
            f"domain {raw.name} has none of the model's classes: it has {some(raw.labels)}; the model knows "
            f"{some(labels)}"
        )
    if split == "all":
        views = [raw.train, *([raw.test] if raw.test is not None else [])]
    else:
        domain = _split(raw, config)
        views = [domain.train if split == "train" else domain.test]
    first, *rest = (view.relabelled(raw.labels, labels) for view in views)
    return first.join(*rest, apart=False)


def _parsed(domain: Given) -> DomainConfig:
    return DomainConfig.parse(domain) if isinstance(domain, str) else domain


def _opened(domain: Domain[S], labels: Sequence[str]) -> Domain[S]:
    """The domain, whose classes that are not among the labels are `unknown`."""
    names = open_names(domain.labels or (), labels)
    views = {name: getattr(domain, name).relabelled(names, labels) for name in ("train", "test")}
    return replace(domain, labels=list(labels), **views)


def _load(kind: AnnotationKind[S], config: DomainConfig) -> Domain[S]:
    return _split(kind.read(config), config)


def _split(raw: RawDomain[S], config: DomainConfig) -> Domain[S]:
    if raw.test is not None:
        return Domain(raw.name, raw.labels, raw.train, raw.test, raw.notes)
    if config.streaming:
        key = "test_split" if config.kind == "dataset" else "test_path"
        raise UserError(
            f"domain {raw.name}: streaming needs test images of its own, since some that are held out would lie in all "
            f"of its blocks, which every evaluation would read; set {key}"
        )
    train, test = raw.held_out or _hold_out(len(raw.train), raw.name, config)
    return Domain(raw.name, raw.labels, raw.train.subset(train), raw.train.subset(test), raw.notes)


def _hold_out(size: int, name: str, config: DomainConfig) -> tuple[list[int], list[int]]:
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


def _agree_all(
    kind: AnnotationKind[S], sources: Sequence[Domain[S]], target: Domain[S], policy: str
) -> tuple[list[str], list[str]]:
    """Class names of all domains, in the order of the first source, and notes."""
    labels, notes = _agree(kind, sources[0], target, policy)
    for other in sources[1:]:
        # Under shared the common classes are kept; else the other source must have the first one's.
        shared, _ = _agree(kind, sources[0], other, "shared" if policy == "shared" else "strict")
        dropped = [name for name in labels if name not in shared]
        labels = [name for name in labels if name in shared]
        if dropped:
            notes.append(f"Classes that source {other.name} lacks were dropped: {some(dropped)}.")
    if len(labels) < kind.enough:
        few = "fewer than two classes are" if kind.enough == 2 else "no class is"
        raise UserError(f"class names differ: {few} common to all sources and the target")
    return labels, notes


def _agree(kind: AnnotationKind[S], source: Domain[S], target: Domain[S], policy: str) -> tuple[list[str], list[str]]:
    """Class names of the pair, and notes."""
    assert source.labels is not None
    if target.labels is None:
        note = f"Target {target.name} has no {kind.name}: its {kind.figure} cannot be measured."
        return list(source.labels), [note]
    only_source = [name for name in source.labels if name not in target.labels]
    only_target = [name for name in target.labels if name not in source.labels]
    if not only_source and not only_target:
        return list(source.labels), []
    shared = [name for name in source.labels if name in target.labels]
    if policy == "shared" and len(shared) >= kind.enough:
        notes = [f"{kind.dropped} that the target lacks were dropped: {some(only_source)}."] if only_source else []
        return shared, [*notes, *([kind.ignored.format(some(only_target))] if only_target else [])]
    if policy in ("source", "open") and shared:
        notes = [f"Classes that the target lacks are learned as well: {some(only_source)}."] if only_source else []
        ignored = kind.ignored if policy == "source" else _COUNTED
        return list(source.labels), [*notes, *([ignored.format(some(only_target))] if only_target else [])]
    raise differing_classes(
        (source.name, source.labels), (target.name, target.labels), enough=kind.enough, opens=kind.opens
    )
