"""Data sets as a Trainer is given them, as a domain pair."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from ..configuration import DomainConfig
from ..data import DetectionSet, DomainPair
from ..data.domain_pair import AnnotationKind, load_pair
from ..data.domains import RawDomain
from ..errors import UserError

__all__ = ["evaluation_views", "pair_of", "test_view"]

_SOURCE, _TARGET = "train_dataset", "target_dataset"


def pair_of(
    train: Any, target: Any, evaluation: Mapping[str, Any], labels: Sequence[str], kind: AnnotationKind[Any] | None
) -> DomainPair[Any]:
    """The domain pair of the data sets of a Trainer; class names agree by name.

    Args:
        train: Annotated source images.
        target: Target images, whose annotations, if any, are left behind here.
        evaluation: Annotated test images of `source` and `target`, as far as there are any.
        labels: Class names of the model, by which sets of this package are numbered.
        kind: What annotations are; None for a task that reads no data sets.

    Raises:
        UserError: If a data set is none that can be read, the source has no annotations, or class names differ.
    """
    if kind is None:
        raise UserError(f"{_SOURCE}: this task reads no data sets; give a pair")
    source = _read(train, _SOURCE, labels, kind)
    unlabelled = _read(target, _TARGET, labels, kind).train.without_annotations()
    nothing = source.train.subset([]).without_annotations()
    tests = {
        domain: _read(evaluation[domain], f"eval_dataset[{domain!r}]", labels, kind)
        for domain in ("source", "target")
        if evaluation.get(domain) is not None
    }
    if source.labels is None:
        raise UserError(f"{_SOURCE} has no {kind.name}: {kind.needed}")
    held_out = _numbered(tests["source"], source.labels) if "source" in tests else source.train.subset([])
    known = tests["target"].labels if "target" in tests else None
    found = {
        _SOURCE: RawDomain("source", source.labels, source.train, held_out, source.notes),
        _TARGET: RawDomain("target", known, unlabelled, tests["target"].train if known is not None else nothing),
    }
    first, second = (DomainConfig(kind="dataset", path=path) for path in (_SOURCE, _TARGET))
    pair: DomainPair[Any] = load_pair(replace(kind, read=lambda config: found[str(config.path)]), first, second)
    return replace(pair, domains=None)


def evaluation_views(pair: DomainPair[Any]) -> dict[str, Any]:
    """The annotated test images of a pair by domain, as far as there are any."""
    views = {"source": pair.source_test, "target": pair.target_evaluation}
    return {domain: view for domain, view in views.items() if view is not None and len(view) > 0}


def test_view(given: Any, labels: Sequence[str], kind: AnnotationKind[Any] | None) -> Any:
    """The images of a data set to predict, with labels numbered as `labels` where it has any.

    Raises:
        UserError: If it cannot be read, or has a class that the model lacks.
    """
    if kind is None:
        raise UserError("test_dataset: this task reads no data sets")
    read = _read(given, "test_dataset", labels, kind)
    return read.train if read.labels is None else _numbered(read, labels, "the model")


def _read(given: Any, name: str, labels: Sequence[str], kind: AnnotationKind[Any]) -> RawDomain[Any]:
    """A data set with the names of its classes; those of the model for a set of this package."""
    if isinstance(given, kind.images):
        annotated = given.objects is not None if isinstance(given, DetectionSet) else given.labels is not None
        return RawDomain(name, list(labels) if annotated else None, given)
    if hasattr(given, "features") and hasattr(given, "select_columns") and hasattr(given, "__len__"):
        return kind.of_rows(given, _columns(given, name), name)
    raise UserError(
        f"{name} is a {type(given).__name__}: give a datasets.Dataset with a column of images, or a "
        f"{kind.images.__name__}, such as a view of a domain pair"
    )


def _columns(data: Any, name: str) -> DomainConfig:
    """The domain whose columns these are: the only column of images, and the only one of class labels, or `label`."""
    if data.features is None:
        raise UserError(f"{name} does not know its columns; give a datasets.Dataset")
    kinds: dict[str, list[str]] = {}
    for column, feature in data.features.items():
        kinds.setdefault(type(feature).__name__, []).append(column)
    found: dict[str, Any] = {}
    for kind, key in (("Image", "image"), ("ClassLabel", "label")):
        columns = kinds.get(kind, [])
        found[f"{key}_column"] = columns[0] if len(columns) == 1 else key
    if found["image_column"] not in data.column_names:
        raise UserError(f"{name} has no column {found['image_column']!r}; it has {', '.join(data.column_names)}")
    return DomainConfig(kind="dataset", path=name, **found)


def _numbered(tests: RawDomain[Any], labels: Sequence[str], whose: str = _SOURCE) -> Any:
    """Test images numbered as the training images are."""
    unknown = [label for label in tests.labels or () if label not in labels]
    if unknown or tests.labels is None:
        lacks = f"has the class {unknown[0]!r}, which {whose} lacks" if unknown else "has no annotations"
        raise UserError(f"{tests.name} {lacks}")
    return tests.train.relabelled(tests.labels, labels)
