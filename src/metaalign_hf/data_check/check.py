"""What is to be known of a domain pair before a long run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from PIL import Image

from ..configuration import Config
from ..data import Domain
from ..data.bad_images import name_of
from ..data.domain_pair import load_domains, make_pair
from ..data.label_agreement import UNKNOWN
from ..errors import UserError
from ..progress import stage
from ..tasks.building import build_task, described_task
from ..training.cost import Cost, duration, measure_cost
from .copies import Copies, find_copies
from .facts import DomainFacts, describe_domain, proportions_apart
from .reading import SeenImages, all_images, read_all
from .sheet import contact_sheet
from .shift import Shift, measure_shift

__all__ = ["Check", "CopyFacts", "check_data"]

LEAK = 0.01
"""Share of the target's images with a copy in the source from which on a run is pointless: a point of accuracy."""

_DIFFERENT = 0.2
_RARE = 5


@dataclass(frozen=True)
class CopyFacts:
    """Copies that were found.

    Attributes:
        within: By title of the domain, images that have a copy in the same domain.
        split: By title of the domain, test images that have a copy among its training images.
        across: Target images that have a copy among the source's.
        across_share: The same as a share of the target's images that were read.
        labeled_in_test: Labelled target images that have a copy among the target's test images.
        groups: Some of the groups of copies, each a list of `title: image`.
    """

    within: dict[str, int]
    split: dict[str, int]
    across: int
    across_share: float
    labeled_in_test: int
    groups: list[list[str]]


@dataclass
class Check:
    """What a check found.

    Attributes:
        domains: The sources, the target, and labelled target images.
        agreement: How the class names agree, in a sentence.
        copies: Copies within and across domains.
        sheet: Images of both domains side by side.
        shift: How far the domains are apart; None where it could not be measured.
        cost: What a run will cost; None where it could not be measured.
        problems: Why a run would stop, or its figures would mean nothing.
        remarks: What is worth a thought.
    """

    domains: list[DomainFacts]
    agreement: str
    copies: CopyFacts
    sheet: Image.Image
    shift: Shift | None = None
    cost: Cost | None = None
    problems: list[str] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)


def check_data(config: Config, most: int | None = 5000, with_model: bool = True) -> Check:
    """Look at a domain pair as a run would use it.

    Target labels, where there are any, are counted, and judge the linear classifier of `Shift`; nothing that a run does
    depends on what is found here.

    Args:
        config: The configuration of the run.
        most: As many images of a domain are read at most; None reads all.
        with_model: Whether to build the model, for the shift and the cost.

    Raises:
        UserError: If a domain cannot be read.
    """
    kind = described_task(config).load().annotations
    if kind is None:
        raise UserError("data check: this task does not read its domains from a configuration")
    data = config.data
    if data.source is None:
        raise UserError("data check: compares two domains; name a data.source as well")
    with stage("reading what is in the domains"):
        places, sources, target = load_domains(kind, data.source, data.target, data.target_labeled)
        domains = [("source", domain) for domain in sources] + [("target", target)]
        if data.target_labeled is not None:
            few = kind.read(data.target_labeled)
            rest = few.train.subset([]) if few.test is None else few.test
            domains.append(("target_labeled", Domain(few.name, few.labels, few.train, rest, few.notes)))
    pair, problems = None, []
    try:
        pair = make_pair(kind, places, sources, target, data.label_policy)
        agreement = _agreement(sources, target, pair.labels)
    except UserError as error:
        agreement = f"The domains do not fit: {error}."
        problems.append(str(error))
    seen = [read_all(all_images(domain, role), most) for role, domain in domains]
    facts = [describe_domain(domain, part) for (_, domain), part in zip(domains, seen, strict=True)]
    with stage("looking for copies"):
        copies = _copies(find_copies(seen), seen, facts)
    with stage("contact sheet"):
        sheet = contact_sheet(sources, target)
    check = Check(facts, agreement, copies, sheet, problems=problems)
    check.problems += [*_unusable(facts, data.on_bad_image), *_leaks(copies)]
    check.remarks += _remarks(facts, copies)
    if with_model and pair is not None:
        _with_model(config, pair, check)
    return check


def _with_model(config: Config, pair: Any, check: Check) -> None:
    """Add shift and cost, or the reason why a run would not start."""
    try:
        with stage("building the model"):
            task = build_task(config, pair)
        check.shift = measure_shift(task, pair)
        if task.heads_alone:
            check.remarks.append(_features_once(task, check.shift.images_per_second))
        else:
            check.cost = measure_cost(config, task, check.shift.images_per_second)
    except UserError as error:
        check.problems.append(f"a run would stop: {error}")


def _features_once(task: Any, images_per_second: float) -> str:
    """What a run costs whose frozen backbone sees each view once."""
    views = [getattr(task.pair, name) for name in ("source_train", "source_test", "target_train", "target_test_images")]
    rows = sum(len(view) * (1 + view.load.count) for view in views)
    return (
        f"The features of the frozen backbone are computed once, for about {rows:,} images and views, which takes "
        f"{duration(rows / images_per_second)}; the steps on them are not measured here, and take little beside that."
    )


def _agreement(sources: Sequence[Domain[Any]], target: Domain[Any], labels: Sequence[str]) -> str:
    if UNKNOWN in labels and all(UNKNOWN not in (domain.labels or ()) for domain in sources):
        return f"The {len(labels) - 1} classes of the source are used, and {UNKNOWN} for others of the target."
    if target.labels is None:
        return f"The target has no labels; the source's {len(labels)} classes are taken for its own."
    if all(set(domain.labels or ()) == set(labels) for domain in [*sources, target]):
        return f"All domains have the same {len(labels)} classes."
    return f"{len(labels)} classes are used, of {len(sources[0].labels or ())} and {len(target.labels)}."


def _copies(copies: Copies, seen: Sequence[SeenImages], facts: Sequence[DomainFacts]) -> CopyFacts:
    every, test, train = [], [], []
    for number, part in enumerate(seen):
        flags = part.domain.is_test
        every.append([(number, index) for index in part.indices])
        test.append([place for place in every[-1] if flags[place[1]]])
        train.append([place for place in every[-1] if not flags[place[1]]])
    roles = [part.domain.role for part in seen]
    target = roles.index("target")
    source = [place for number, role in enumerate(roles) if role == "source" for place in every[number]]
    across = copies.between(every[target], source)
    few = [place for number, role in enumerate(roles) if role == "target_labeled" for place in every[number]]
    titles = [fact.title for fact in facts]
    return CopyFacts(
        {title: len(copies.between(own, own)) for title, own in zip(titles, every, strict=True)},
        {title: len(copies.between(a, b)) for title, a, b in zip(titles, test, train, strict=True)},
        len(across),
        len(across) / max(len(every[target]), 1),
        len(copies.between(few, test[target])),
        [
            [f"{titles[number]}: {name_of(seen[number].domain.images, index)}" for number, index in group]
            for group in sorted(copies.groups, key=lambda group: -len({number for number, _ in group}))[:200]
        ],
    )


def _unusable(facts: Sequence[DomainFacts], on_bad_image: str) -> list[str]:
    """What a run would stop at, or could not learn."""
    found = []
    for fact in facts:
        if fact.unreadable and fact.read == 0:
            found.append(f"{fact.title}: none of {len(fact.unreadable)} images can be read: {fact.unreadable[0][1]}")
        elif fact.unreadable and on_bad_image == "error":
            found.append(
                f"{fact.title}: {_some(len(fact.unreadable), 'image')} cannot be read, at which a run would stop: "
                f"{fact.unreadable[0][1]}; remove them, or set data.on_bad_image: skip"
            )
        empty = [name for name, count in (fact.classes or {}).items() if count.train == 0]
        if empty and fact.role == "source":
            found.append(f"{fact.title}: {_named(empty)} without training {fact.counted}; a model cannot learn them")
    return found


def _leaks(copies: CopyFacts) -> list[str]:
    found = []
    if copies.across_share >= LEAK:
        found.append(
            f"{_some(copies.across, 'target image')} ({100 * copies.across_share:.1f} %) with a copy in the source, "
            "whose label a run learns: the target's figures would be too good; remove them from one of the two"
        )
    if copies.labeled_in_test:
        found.append(
            f"{_some(copies.labeled_in_test, 'labelled target image')} among the target's test images: its figures "
            "would be too good; keep them apart"
        )
    return found


def _remarks(facts: Sequence[DomainFacts], copies: CopyFacts) -> list[str]:
    found = [note for fact in facts for note in fact.notes]
    if 0 < copies.across_share < LEAK:
        found.append(f"{_some(copies.across, 'target image')} with a copy in the source.")
    for fact in facts:
        if count := copies.split[fact.title]:
            found.append(f"{fact.title}: {_some(count, 'test image')} with a copy among its training images.")
        if fact.unreadable:
            found.append(f"{fact.title}: {_some(len(fact.unreadable), 'image')} cannot be read.")
        rare = [name for name, count in (fact.classes or {}).items() if 0 < count.train < _RARE]
        if rare and fact.role == "source":
            found.append(f"{fact.title}: {_named(rare)} with fewer than {_RARE} training {fact.counted}.")
        untested = [name for name, count in (fact.classes or {}).items() if count.test == 0]
        if untested and fact.role != "target_labeled":
            found.append(f"{fact.title}: {_named(untested)} without test {fact.counted}.")
    target = next(fact for fact in facts if fact.role == "target")
    for fact in facts:
        if fact.role == "source" and fact.classes and target.classes:
            apart = proportions_apart(fact.classes, target.classes)
            if apart > _DIFFERENT:
                found.append(
                    f"{fact.title}: its classes have other proportions than the target's ({100 * apart:.0f} % of the "
                    "images would have to change class); alignment of whole domains suffers from that."
                )
    return found


def _some(count: int, noun: str) -> str:
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def _named(names: Sequence[str], most: int = 5) -> str:
    shown = ", ".join(repr(name) for name in names[:most])
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return f"{'class' if len(names) == 1 else 'classes'} {shown}{more}"
