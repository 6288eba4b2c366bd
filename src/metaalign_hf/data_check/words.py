"""A check in words and as JSON values."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

from rich.table import Table

from ..training.cost import duration
from .check import Check
from .facts import DomainFacts

__all__ = ["as_json", "class_table", "in_words"]

_CLASSES = 30


def in_words(check: Check) -> Iterator[str]:
    """The lines of the summary, without the table of classes and without problems and remarks."""
    for fact in check.domains:
        yield _domain(fact)
    yield check.agreement
    yield _copies(check)
    if check.shift is not None:
        yield from _shift(check)
    if check.cost is not None:
        yield from _cost(check)


def class_table(check: Check) -> Table | None:
    """Training and test images or objects of each class by domain; None without annotations, or with too many."""
    known = [fact for fact in check.domains if fact.classes is not None]
    names = list(dict.fromkeys(name for fact in known for name in fact.classes or {}))
    if not names or len(names) > _CLASSES:
        return None
    table = Table()
    table.add_column(f"{known[0].counted} of class", overflow="fold")
    for fact in known:
        table.add_column(fact.title, justify="right", overflow="fold")
    for name in names:
        counts = [(fact.classes or {}).get(name) for fact in known]
        table.add_row(name, *("-" if count is None else f"{count.train} + {count.test}" for count in counts))
    return table


def as_json(check: Check) -> dict[str, Any]:
    """All that was found, as JSON values."""
    names = [field.name for field in dataclasses.fields(check) if field.name != "sheet"]
    found = {name: getattr(check, name) for name in names}
    return {name: _plain(value) for name, value in found.items()}


def _plain(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return [_plain(entry) for entry in value]
    if isinstance(value, dict):
        return {name: _plain(entry) for name, entry in value.items()}
    return dataclasses.asdict(value) if dataclasses.is_dataclass(value) else value  # type: ignore[arg-type]


def _domain(fact: DomainFacts) -> str:
    labels = "no labels" if fact.classes is None else f"{len(fact.classes)} classes"
    total = fact.train_images + fact.test_images
    parts = [f"{fact.title}: {fact.train_images:,} + {fact.test_images:,} images to train and to test on, {labels}"]
    if fact.sizes is not None:
        (low_w, mid_w, high_w), (low_h, mid_h, high_h) = fact.sizes.width, fact.sizes.height
        one = (low_w, low_h) == (high_w, high_h)
        some = "" if one else f" ({low_w}..{high_w} x {low_h}..{high_h})"
        parts.append(f"{mid_w} x {mid_h} pixels{some}")
    seen = fact.read + len(fact.unreadable)
    which = "all" if seen >= total else f"{seen:,}"
    bad = f"{len(fact.unreadable)} unreadable" if fact.unreadable else "all readable"
    on = f"{fact.images_per_second:.0f} images/s on {fact.threads} threads"
    return f"{', '.join(parts)}. {which.capitalize()} read, {bad}, {on}."


def _copies(check: Check) -> str:
    copies = check.copies
    within = ", ".join(f"{count} in {title}" for title, count in copies.within.items() if count)
    across = f"{copies.across} of the target in the source" if copies.across else "none across domains"
    return f"Copies (the same picture, perhaps saved anew): {across}; {within or 'none within a domain'}."


def _shift(check: Check) -> Iterator[str]:
    shift = check.shift
    assert shift is not None
    counts = shift.images
    if shift.a_distance is not None and shift.told_apart is not None and shift.error is not None:
        seen = counts["source_train"] if counts["source_train"] < counts["target_train"] else counts["target_train"]
        yield (
            f"Shift: a linear classifier on {shift.features} tells the domain of {100 * shift.told_apart:.0f} "
            f"± {100 * shift.error:.0f} % of held-out images, {seen} of each domain (50: no shift, 100: disjoint); "
            f"proxy A-distance {shift.a_distance:.2f} of 2."
        )
    if shift.source_score is not None:
        on_target = "and on the target not known, as it has no labels"
        if shift.target_score is not None:
            on_target = f"and {100 * shift.target_score:.0f} % on {counts['target_evaluation']} of the target"
        yield (
            f"Source only: a linear classifier of {counts['source_train']} source images reaches "
            f"{100 * shift.source_score:.0f} % on {counts['source_test']} test images of the source {on_target}."
        )


def _cost(check: Check) -> Iterator[str]:
    cost = check.cost
    assert cost is not None
    source = "" if cost.source_step is None else f", {cost.source_step:.3g} s in the source phase"
    memory = "" if cost.memory is None else f"; {cost.memory / 2**30:.1f} GiB of memory"
    yield (
        f"Cost: {cost.adaptation_step:.3g} s a step of adaptation on {cost.device} ({100 * cost.waiting:.0f} % of it "
        f"waiting for images){source}, the median of three{memory}."
    )
    yield (
        f"A run takes about {duration(cost.seconds)}: {duration(cost.training_seconds)} of training and "
        f"{duration(cost.evaluation_seconds)} for {cost.evaluations} evaluations on {cost.evaluated_images:,} images."
    )
