"""The files of a run, by name: every module that reads or writes one takes its name from here."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

__all__ = [
    "ADAPTER_CONFIG_FILE",
    "ADAPTER_FILES",
    "ADAPTER_HEADS_FILE",
    "ADAPTER_MODEL_FILE",
    "ADAPTER_WEIGHTS_FILE",
    "BAD_IMAGES_FILE",
    "BAD_STEP_FILE",
    "BASELINE_FOLDER",
    "CANDIDATES_FOLDER",
    "CARD_FILE",
    "CHECKPOINTS_FOLDER",
    "CONFIG_FILE",
    "DETECTIONS_FILE",
    "FEATURES_FILE",
    "FIGURES_FOLDER",
    "LOCK_FILE",
    "LOG_FILE",
    "METRICS_FILE",
    "MODEL_CONFIG_FILE",
    "OUTPUTS_FILE",
    "PROCESSOR_FILES",
    "PUSH_FOLDER",
    "RECORD_FILES",
    "REPORT_FOLDER",
    "RUN_FILE",
    "SELECTED_FOLDER",
    "SUMMARY_FILE",
    "TARGET_IMAGES_FILE",
    "WEIGHT_FILES",
    "holds_adapters_alone",
    "model_config_file",
    "with_present_names",
]

MODEL_CONFIG_FILE = "config.json"
"""What the model is, as transformers writes it."""

ADAPTER_CONFIG_FILE = "adapter_config.json"
"""What low-rank adapters are, and of which base model, as peft writes it."""

ADAPTER_WEIGHTS_FILE = "adapter_model.safetensors"
"""Their weights."""

ADAPTER_MODEL_FILE = "metaalign_config.json"
"""What the model is that they are of, as `MODEL_CONFIG_FILE` says it of a whole one."""

ADAPTER_HEADS_FILE = "metaalign_heads.safetensors"
"""What that model has on top of its backbone."""

ADAPTER_FILES = (ADAPTER_CONFIG_FILE, ADAPTER_WEIGHTS_FILE, ADAPTER_MODEL_FILE, ADAPTER_HEADS_FILE)
"""A model as adapters and heads, without its base model; the first two are for peft as well."""

WEIGHT_FILES = re.compile(r"model(-\d+-of-\d+)?\.safetensors|model\.safetensors\.index\.json")
"""Names of the files with the weights."""

PROCESSOR_FILES = ("preprocessor_config.json", "processor_config.json")
"""Names that the image processor may have."""

CONFIG_FILE = "training_config.yaml"
"""The configuration of the run."""

METRICS_FILE = "metrics.jsonl"
"""A line for every logged step and evaluation."""

SUMMARY_FILE = "summary.json"
"""What a finished run achieved."""

RECORD_FILES = (MODEL_CONFIG_FILE, CONFIG_FILE, SUMMARY_FILE, METRICS_FILE)
"""What a model card is written from."""

CARD_FILE = "README.md"
"""The model card."""

FIGURES_FOLDER = "figures"
"""Figures of the model card."""

TARGET_IMAGES_FILE = "target_images.png"
"""Picture of target test images with their predictions before and after."""

DETECTIONS_FILE = "detections.png"
"""Picture of target test images with the boxes found before and after."""

OUTPUTS_FILE = "outputs.safetensors"
"""What the model said of test images before and after, for `metaalign report`. It stays on the machine."""

REPORT_FOLDER = "report"
"""What `metaalign report` writes."""

SELECTED_FOLDER = "selected"
"""The checkpoint that a validator selected, if it is not the last one."""

BASELINE_FOLDER = "baseline"
"""The run on the source alone that a run is compared with."""

CANDIDATES_FOLDER = "candidates"
"""Weights that may still be selected, while the run goes on."""

CHECKPOINTS_FOLDER = "checkpoints"
"""What a run resumes from."""

PUSH_FOLDER = ".push"
"""The state that is being pushed in the background."""

LOCK_FILE = ".lock"
"""Who writes the folder, while somebody does."""

LOG_FILE = "log.txt"
"""What the run said, with the time."""

RUN_FILE = "run.json"
"""How it was run: command, versions, commit, machine. It stays on the machine."""

BAD_IMAGES_FILE = "bad_images.jsonl"
"""Images that could not be read and were skipped."""

FEATURES_FILE = "features.safetensors"
"""Features of a frozen backbone, of every image and view."""

BAD_STEP_FILE = "bad_step.json"
"""The step at which a run stopped because its numbers were not finite."""


def holds_adapters_alone(folder: Path) -> bool:
    """Whether a folder holds low-rank adapters, and no whole model."""
    return not (folder / MODEL_CONFIG_FILE).is_file() and (folder / ADAPTER_CONFIG_FILE).is_file()


def model_config_file(folder: Path) -> Path:
    """The file of a folder that says what its model is; it need not exist."""
    return folder / (ADAPTER_MODEL_FILE if holds_adapters_alone(folder) else MODEL_CONFIG_FILE)


def with_present_names(summary: dict[str, Any]) -> dict[str, Any]:
    """The entries of a `summary.json` under the names of today.

    Older releases wrote `source_accuracy` where it is now `source_accuracy_after`, and so for all measures.
    """

    def name(key: str) -> str:
        old = key.startswith("source_") and f"{key}_before" in summary and f"{key}_after" not in summary
        return f"{key}_after" if old else key

    return {name(key): value for key, value in summary.items()}
