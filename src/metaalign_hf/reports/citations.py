"""The publications behind the methods of a run."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from ..citations import citations_of, import_methods
from .record import RunRecord

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["citations_of_run", "cited_by", "methods_of", "target_losses_of"]


def cited_by(record: RunRecord) -> list[str]:
    """The BibTeX entries of a run: as it recorded them, or, where it did not, of the methods that it names."""
    recorded = record.summary.get("citations")
    if recorded is not None:
        return [str(entry) for entry in recorded]
    import_methods()
    return citations_of(methods_of(record))


def citations_of_run(
    model: PreTrainedModel, config: dict[str, Any], batch_norm: str, validators: Iterable[str]
) -> list[str]:
    """The BibTeX entries of a run.

    Args:
        model: Its bare model.
        config: Its configuration.
        batch_norm: What batch normalisation did.
        validators: Names of the validators, the selecting one first.
    """
    described = {**model.config.to_dict(), "architectures": [type(model).__name__]}
    known = {"batch_norm": batch_norm, "validators": dict.fromkeys(validators)}
    return citations_of(methods_of(RunRecord(described, config, known)))


def target_losses_of(training: dict[str, Any]) -> list[Any]:
    """The target losses in the `training` section of a run's configuration, each a name or a mapping with one."""
    given = training.get("target_losses")
    return given if isinstance(given, list) else [] if given is None else [given]


def methods_of(record: RunRecord) -> list[str]:
    """Kind and name of every method that a run used, as `metaalign_hf.citations` knows them."""
    coordination, training = record.training.get("coordination", {}), record.training.get("training", {})
    method = str(coordination.get("method") or record.summary.get("method"))
    found = [f"coordination/{method}"]
    if method == "metaalign" and coordination.get("direction", "fresh") == "remembered":
        found.append("coordination/remembered")
    if coordination.get("smoothing"):
        found.append("coordination/smoothing")
    alignment = (record.model.get("alignment") or []) if method not in ("source_only", "target_only") else []
    kind, validator = record.task.cited_as
    found += [f"{kind}/{entry['name']}" for entry in alignment]
    found += [f"alignment/{option}" for entry in alignment for option, value in entry.items() if value]
    if training.get("pseudo_label_weight"):
        found.append("target_loss/mean_teacher")
    losses = target_losses_of(training)
    found += [f"target_loss/{entry['name'] if isinstance(entry, dict) else entry}" for entry in losses]
    found.append(f"batch_norm/{record.summary.get('batch_norm') or training.get('batch_norm')}")
    if training.get("recalibrate_bn") == "target":
        found.append("batch_norm/recalibrate_bn")
    if record.model.get("lora"):
        found.append("model/lora")
    if (record.training.get("model") or {}).get("head") == "zero_shot":
        found.append("model/zero_shot")
    selecting = next(iter(record.summary.get("validators") or {}), None)
    return [*found, f"{validator}/{selecting}"]
