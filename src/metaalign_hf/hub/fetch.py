"""Checkpoints from a folder or the Hub."""

from __future__ import annotations

import json
from contextlib import suppress
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from huggingface_hub import snapshot_download
from huggingface_hub.errors import GatedRepoError

from ..errors import UserError, one_line
from ..progress import quiet_loading
from ..reports import FIGURE_FILES
from ..run_folder import (
    ADAPTER_FILES,
    CARD_FILE,
    FIGURES_FOLDER,
    MODEL_CONFIG_FILE,
    PROCESSOR_FILES,
    RECORD_FILES,
    WEIGHT_FILES,
    holds_adapters_alone,
    model_config_file,
)
from ..tasks import task_of_architecture
from .errors import HubError, explained

__all__ = ["fetch", "load_checkpoint"]


def fetch(checkpoint: str, token: str | None = None, what: str = "checkpoint") -> Path:
    """The folder of a checkpoint: as it is, or downloaded into the Hub's cache.

    Args:
        checkpoint: A folder, `org/name` or `org/name@revision` (branch, tag or commit).
        token: Access token; by default that of the environment or login.
        what: What errors call it.

    Returns:
        The folder; it holds a configuration and safetensors weights, or what `models.adapter_files` writes.

    Raises:
        UserError: If there is no such folder or repository, or it holds no safetensors weights, or
            adapters without heads.
    """
    if Path(checkpoint).expanduser().is_dir():
        folder = Path(checkpoint).expanduser()
    else:
        if checkpoint.startswith((".", "/", "~")) or checkpoint.count("/") > 1:
            raise UserError(f"{what} {checkpoint}: {_no_folder(checkpoint)}")
        repo_id, _, revision = checkpoint.partition("@")
        patterns = [
            *ADAPTER_FILES,
            CARD_FILE,
            *RECORD_FILES,
            *PROCESSOR_FILES,
            "model*.safetensors",
            "model.safetensors.index.json",
            *(f"{FIGURES_FOLDER}/{name}" for name in FIGURE_FILES),
        ]
        try:
            with explained(f"{what} {checkpoint}"):
                found = snapshot_download(repo_id, revision=revision or None, token=token, allow_patterns=patterns)
        except HubError as error:
            if revision or isinstance(error.__cause__, GatedRepoError):
                raise
            # A misspelt folder looks like the name of a repository.
            raise HubError(f"{error}; and {_no_folder(checkpoint)}", error.temporary) from error.__cause__
        except ValueError as error:
            if type(error) is not ValueError or "Invalid" not in str(error):
                raise
            # The name of a file would lead out of the cache.
            raise UserError(f"{what} {checkpoint}: {one_line(error, first=True)}") from error
        folder = Path(found)
    if holds_adapters_alone(folder):
        from ..models.adapter_loading import require_heads

        require_heads(folder, f"{what} {checkpoint}")
        return folder
    if not (folder / MODEL_CONFIG_FILE).is_file():
        raise UserError(f"{what} {checkpoint}: it holds no config.json, so it is not a transformers model")
    if not any(WEIGHT_FILES.fullmatch(path.name) for path in folder.iterdir()):
        raise UserError(
            f"{what} {checkpoint}: it holds no safetensors weights; pickled ones (.bin, .pt) are never loaded"
        )
    return folder


def _no_folder(checkpoint: str) -> str:
    """That there is no such folder, with the nearest one beside it."""
    path, beside = Path(checkpoint).expanduser(), []
    with suppress(OSError):
        beside = [found.name for found in path.parent.iterdir() if found.is_dir()]
    if near := get_close_matches(path.name, beside, n=1):
        return f"there is no such folder; did you mean {path.parent / near[0]}?"
    return "there is no such folder"


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

    from .. import models  # registers the Auto classes
    from ..models.loading import refuse_lost_tensors

    folder = fetch(checkpoint, token)
    try:
        names = json.loads(model_config_file(folder).read_text()).get("architectures") or [""]
        kind = getattr(transformers, task_of_architecture(names[0]).auto_class)
        if holds_adapters_alone(folder):
            kind = models.MetaAlignForImageClassification
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
