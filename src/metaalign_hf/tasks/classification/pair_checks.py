"""What a classification run asks of its domain pair."""

from __future__ import annotations

from ...configuration import Config
from ...data import DomainPair, ImageSet
from ...data.label_agreement import UNKNOWN
from ...errors import UserError
from ...models import MetaAlignForImageClassification

__all__ = ["check_metric", "check_open", "check_sources"]


def check_metric(config: Config, pair: DomainPair[ImageSet]) -> None:
    """Refuse average precision where no test image is of the positive class."""
    if config.training.metric != "average_precision" or len(pair.labels) > 2:
        return
    views = {pair.source_name: pair.source_test, pair.target_name: pair.target_evaluation}
    for name, view in views.items():
        if view is not None and len(view) > 0 and 1 not in (view.labels or ()):
            raise UserError(
                f"training.metric: average_precision is that of the class {pair.labels[1]}, and {name} has no "
                "test image of it; use accuracy"
            )


def check_sources(config: Config, pair: DomainPair[ImageSet], model: MetaAlignForImageClassification) -> None:
    """Check that the sources of each objective exist and are in every micro-batch."""
    if not pair.has_source:
        return
    found = max(1, len(pair.source_train.parts))
    for entry in model.config.alignment:
        wanted = entry.get("sources", 1)
        if wanted == 1:
            continue
        if wanted != found:
            raise UserError(f"alignment {entry['name']}: sources is {wanted}, and data.source names {found}")
        if config.data.source_sampling != "even" or config.training.batch_size < 2 * found:
            raise UserError(
                f"alignment {entry['name']}: sources {found} needs rows of each source in every batch: set "
                f"data.source_sampling: even and training.batch_size: {2 * found} or more"
            )


def check_open(pair: DomainPair[ImageSet], model: MetaAlignForImageClassification) -> None:
    """Refuse an objective that needs the class `unknown` where there is none."""
    if any(entry["name"] == "osbp" for entry in model.config.alignment) and pair.labels[-1] != UNKNOWN:
        raise UserError(
            f"alignment osbp: it needs {UNKNOWN} as the last class; set data.label_policy: open, or take another"
        )
