"""The fair comparison: the same steps on the source alone.

A run of its own in `baseline/` of the run's folder, with the same seed, the same source phase and the same number of
steps, its own checkpoints and summary; so it resumes as every run does.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..configuration import Config, CoordinationConfig, DataConfig, HubConfig, TrainingConfig
from ..run_folder import BASELINE_FOLDER, SUMMARY_FILE
from ..tasks.summary import Summary

__all__ = ["baseline_config", "baseline_figures", "read_summary"]


def baseline_config(config: Config, cached: bool = False) -> Config:
    """The configuration of the source-only run that a run is compared with.

    Args:
        config: The run's.
        cached: Whether its steps are on cached features: then those of the baseline are on the same ones.
    """
    data = config.data
    if config.model.freeze != "none" and data.cache_features != "never":
        folder = config.training.output_dir if data.cache_folder is None else data.cache_folder
        never: dict[str, Any] = {
            "cache_features": "never",
            "cache_folder": None,
            "cache_gigabytes": DataConfig.cache_gigabytes,
        }
        data = replace(data, cache_folder=folder) if cached else replace(data, **never)
    training = replace(
        config.training,
        output_dir=str(Path(config.training.output_dir) / BASELINE_FOLDER),
        baseline=False,
        # An interrupted run may have left it anywhere.
        resume="auto",
        max_time=None,
        trackers=[],
        tracker_options=None,
        target_losses=None,
        pseudo_label_weight=0.0,
        pseudo_label_threshold=TrainingConfig.pseudo_label_threshold,
        recalibrate_bn="none",
    )
    coordination = CoordinationConfig(method="source_only")
    return replace(config, data=data, coordination=coordination, training=training, hub=HubConfig())


def read_summary(config: Config) -> Summary | None:
    """The summary of a run that is finished with all its steps, or None."""
    path = Path(config.training.output_dir) / SUMMARY_FILE
    if not path.is_file():
        return None
    summary = Summary.from_dict(json.loads(path.read_text()))
    return summary if summary.adaptation_steps == config.training.max_steps else None


def baseline_figures(summary: Summary, config: Config) -> dict[str, Any]:
    """What the summary of a run says of its baseline; `target` is None where the target has no labels."""
    (_, _, source, _), (_, _, target, _) = summary.rows()
    return {
        "source": source,
        "target": target,
        "steps": summary.adaptation_steps,
        "output_dir": config.training.output_dir,
    }
