"""The publications behind the methods of a run."""

from __future__ import annotations

from ..citations import citations_of, import_methods
from .record import RunRecord

__all__ = ["cited_by", "methods_of"]


def cited_by(record: RunRecord) -> list[str]:
    """The BibTeX entries of a run: as it recorded them, or, where it did not, of the methods that it names."""
    recorded = record.summary.get("citations")
    if recorded is not None:
        return [str(entry) for entry in recorded]
    import_methods()
    return citations_of(methods_of(record))


def methods_of(record: RunRecord) -> list[str]:
    """Kind and name of every method that a run used, as `metaalign_hf.citations` knows them."""
    coordination, training = record.training.get("coordination", {}), record.training.get("training", {})
    method = str(coordination.get("method") or record.summary.get("method"))
    found = [f"coordination/{method}"]
    if method == "metaalign" and coordination.get("direction", "fresh") == "remembered":
        found.append("coordination/remembered")
    if coordination.get("smoothing"):
        found.append("coordination/smoothing")
    alignment = (record.model.get("alignment") or []) if method != "source_only" else []
    detects = record.task.pipeline_tag == "object-detection"
    kind = "level" if detects else "alignment"
    found += [f"{kind}/{entry['name']}" for entry in alignment]
    found += [f"{kind}/{option}" for entry in alignment for option, value in entry.items() if value]
    if training.get("pseudo_label_weight"):
        found.append("target_loss/mean_teacher")
    found.append(f"batch_norm/{record.summary.get('batch_norm') or training.get('batch_norm')}")
    if training.get("recalibrate_bn") == "target":
        found.append("batch_norm/recalibrate_bn")
    selecting = next(iter(record.summary.get("validators") or {}), None)
    return [*found, f"{'detection_' if detects else ''}validator/{selecting}"]
