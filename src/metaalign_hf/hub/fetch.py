"""Checkpoints from a folder or the Hub."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from huggingface_hub import snapshot_download

from ..errors import UserError, one_line
from ..progress import quiet_loading
from ..reports import FIGURE_FILES
from ..run_folder import (
    ADAPTER_CONFIG_FILE,
    CARD_FILE,
    FIGURES_FOLDER,
    MODEL_CONFIG_FILE,
    PROCESSOR_FILES,
    RECORD_FILES,
    WEIGHT_FILES,
)
from ..tasks import task_of_architecture
from .errors import explained

__all__ = ["fetch", "load_checkpoint"]


def fetch(checkpoint: str, token: str | None = None, what: str = "checkpoint") -> Path:
    """The folder of a checkpoint: as it is, or downloaded into the Hub's cache.

    Args:
        checkpoint: A folder, `org/name` or `org/name@revision` (branch, tag or commit).
        token: Access token; by default that of the environment or login.
        what: What errors call it.

    Returns:
        The folder; it holds a configuration and safetensors weights.

    Raises:
        UserError: If there is no such folder or repository, or it holds no safetensors weights.
    """
    if Path(checkpoint).expanduser().is_dir():
        folder = Path(checkpoint).expanduser()
    else:
        if checkpoint.startswith((".", "/", "~")) or checkpoint.count("/") > 1:
            raise UserError(f"{what} {checkpoint}: there is no such folder")
        repo_id, _, revision = checkpoint.partition("@")
        patterns = [
            ADAPTER_CONFIG_FILE,
            CARD_FILE,
            *RECORD_FILES,
            *PROCESSOR_FILES,
            "model*.safetensors",
            "model.safetensors.index.json",
            *(f"{FIGURES_FOLDER}/{name}" for name in FIGURE_FILES),
        ]
        with explained(f"{what} {checkpoint}"):
            try:
                found = snapshot_download(repo_id, revision=revision or None, token=token, allow_patterns=patterns)
            except ValueError as error:
                if type(error) is not ValueError or "Invalid" not in str(error):
                    raise
                # The name of a file would lead out of the cache.
                raise UserError(f"{what} {checkpoint}: {one_line(error, first=True)}") from error
            folder = Path(found)
    if not (folder / MODEL_CONFIG_FILE).is_file() and (folder / ADAPTER_CONFIG_FILE).is_file():
        raise UserError(
            f"{what} {checkpoint}: it holds adapters alone, which peft reads on top of their base model; name the run "
            "that they are of, or its plain model"
        )
    if not (folder / MODEL_CONFIG_FILE).is_file():
        raise UserError(f"{what} {checkpoint}: it holds no config.json, so it is not a transformers model")
    if not any(WEIGHT_FILES.fullmatch(path.name) for path in folder.iterdir()):
        raise UserError(
            f"{what} {checkpoint}: it holds no safetensors weights; pickled ones (.bin, .pt) are never loaded"
        )
    return folder


def load_checkpoint(checkpoint: str, token: str | None = None) -> tuple[Any, Any]:
    """A checkpoint, adapted or native, of a folder or the Hub, with its image processor.

    Args:
        checkpoint: As `fetch` takes it.
        token: Access token.

    Returns:
        The model in evaluation mode, and the image processor.

    Raises:
        UserError: If it cannot be found or loaded, lacks a tensor, or is not a vision model.
    """
    import transformers

    from .. import models  # noqa: F401  (registers the Auto classes)
    from ..models.loading import refuse_lost_tensors

    folder = fetch(checkpoint, token)
    try:
        names = json.loads((folder / MODEL_CONFIG_FILE).read_text()).get("architectures") or [""]
        kind = getattr(transformers, task_of_architecture(names[0]).auto_class)
        processor = transformers.AutoImageProcessor.from_pretrained(folder, trust_remote_code=False)
        with quiet_loading():
            model, info = kind.from_pretrained(
                folder, use_safetensors=True, output_loading_info=True, trust_remote_code=False
            )
    except UserError as error:
        raise UserError(str(error).replace(str(folder), checkpoint)) from error
    except Exception as error:  # damaged files make the libraries raise nearly anything
        raise UserError(f"checkpoint {checkpoint} cannot be loaded: {one_line(error, first=True)}") from error
    refuse_lost_tensors(info, checkpoint)
    return model.eval(), processor
