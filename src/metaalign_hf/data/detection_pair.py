"""A source with labelled objects and a target without, whose class names agree."""

from __future__ import annotations

from collections.abc import Sequence

from .detection_readers import read_detection_domain
from .domain_pair import AnnotationKind, DomainPair, Given, Policy, Split, load_pair, load_view
from .object_columns import domain_of_rows
from .objects import DetectionSet

__all__ = ["DetectionPair", "load_detection_pair", "load_detection_view"]

DetectionPair = DomainPair[DetectionSet]
"""A `DomainPair` of images with objects."""

OBJECTS = AnnotationKind(
    read=read_detection_domain,
    of_rows=domain_of_rows,
    images=DetectionSet,
    enough=1,
    name="boxes",
    needed="a detector needs a source with objects",
    figure="precision",
    dropped="Source objects of classes",
    ignored="Target objects of classes that the source lacks are not evaluated: {}.",
    one="an object",
    leaves_out=True,
)


def load_detection_pair(
    source: Given | Sequence[Given],
    target: Given,
    label_policy: Policy = "strict",
    target_labeled: Given | None = None,
) -> DetectionPair:
    """Load one or several sources with objects and a target, and make their class names agree.

    Classes are matched by name, never by index. The target's objects, if any, go into the evaluation view and nowhere
    else; no target image is chosen, dropped or cropped by them.

    Args:
        source: The source, or its short form, or a list of several.
        target: The target, or its short form.
        label_policy: `strict`: all have the same class names. `shared`: only objects of the classes of all count; no
            image is dropped. `source`: all classes of the source are kept; the target's objects of others do not count.
        target_labeled: A domain whose images, all of them, are target images with objects for training.

    Returns:
        The pair.

    Raises:
        UserError: If a domain cannot be read, a source has no objects, or the class names do not agree.
    """
    return load_pair(OBJECTS, source, target, label_policy, target_labeled)


def load_detection_view(config: Given, labels: Sequence[str], split: Split = "test") -> DetectionSet:
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
    return load_view(OBJECTS, config, labels, split)
