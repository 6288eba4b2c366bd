"""Where a model's weights came from: the entry `origin` of its configuration, which is saved with it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import try_to_load_from_cache
from transformers import PreTrainedConfig

from ..run_folder import MODEL_CONFIG_FILE

__all__ = ["checkpoint_origin", "is_pretrained", "loaded_commit", "note_checkpoint", "weights_origin"]


def weights_origin(name: str, weights: str | None, revision: str | None = None) -> dict[str, Any]:
    """The origin of a model that was built on a backbone or detector.

    Args:
        name: Name of the backbone or detector.
        weights: Hub id, folder or file of its weights; None for random weights.
        revision: Commit of the weights on the Hub, where it is known.

    Returns:
        `name`; `pretrained`, whether training starts from pretrained weights; `weights`, their Hub id, None for random
        and for local ones; and `revision`.
    """
    hub_id = weights if weights is not None and not _is_local(weights) else None
    return {
        "name": name,
        "pretrained": weights is not None,
        "weights": hub_id,
        "revision": revision if hub_id is not None else None,
    }


def checkpoint_origin(place: str, revision: str | None, known: dict[str, Any] | None) -> dict[str, Any] | None:
    """The origin of a model that was loaded from a checkpoint.

    A local folder means nothing elsewhere, so its model keeps the origin that the checkpoint records. `pretrained`
    stays what it was: a network that was trained from scratch is still one. Checkpoints of older releases record no
    origin; they count as pretrained.

    Args:
        place: Hub id or folder of the checkpoint.
        revision: Its commit on the Hub.
        known: The origin that the checkpoint records.
    """
    if _is_local(place):
        return known or {"name": Path(place).resolve().name, "pretrained": True, "weights": None, "revision": None}
    pretrained = known is None or bool(known.get("pretrained", True))
    return {"name": place, "pretrained": pretrained, "weights": place, "revision": revision}


def note_checkpoint(config: Any, place: Any, arguments: Mapping[str, Any]) -> None:
    """Let a configuration record the checkpoint that `from_pretrained` loaded it from.

    Args:
        config: The loaded model's configuration.
        place: What `from_pretrained` was given.
        arguments: Its other arguments.
    """
    commit = loaded_commit(str(place), arguments.get("revision"), arguments.get("cache_dir"))
    config.origin = checkpoint_origin(str(place), commit, config.origin)


def loaded_commit(place: str, revision: str | None = None, cache_dir: str | Path | None = None) -> str | None:
    """The commit of a configuration that has just been loaded from the Hub; None of a local one.

    Args:
        place: Hub id or folder.
        revision: Branch, tag or commit that was asked for; None is main.
        cache_dir: The cache, if not the usual one.
    """
    if _is_local(place):
        return None
    found = try_to_load_from_cache(place, MODEL_CONFIG_FILE, cache_dir, revision)
    return Path(found).parent.name if isinstance(found, str) else None


def is_pretrained(config: PreTrainedConfig) -> bool:
    """Whether the model started from pretrained weights; False where it was built from a configuration alone."""
    return bool((getattr(config, "origin", None) or {}).get("pretrained"))


def _is_local(place: str) -> bool:
    path = Path(place).expanduser()
    return place.startswith((".", "/", "~")) or place.endswith(".safetensors") or path.exists()
