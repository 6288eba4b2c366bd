"""Batch normalisation while adapting, in one place.

Which statistics a pass normalises with, which pass moves them, and freezing are the modes of `training.batch_norm`
(`modes`); statistics by domain are one of them (`per_domain`); `recalibration` estimates them anew on the target. The
mechanism that holds running statistics still for a pass is in `coordination`, which needs it for its own passes.
"""

from .layers import require_batch_norm, running_statistics
from .modes import (
    MODES,
    BatchStatistics,
    Frozen,
    Mixed,
    PerDomain,
    Rows,
    batch_statistics,
    check_batch_norm,
    register_batch_norm,
)
from .per_domain import SourceStatistics
from .recalibration import RECALIBRATION_IMAGES, recalibrate_batch_norm

__all__ = [
    "MODES",
    "RECALIBRATION_IMAGES",
    "BatchStatistics",
    "Frozen",
    "Mixed",
    "PerDomain",
    "Rows",
    "SourceStatistics",
    "batch_statistics",
    "check_batch_norm",
    "recalibrate_batch_norm",
    "register_batch_norm",
    "require_batch_norm",
    "running_statistics",
]
