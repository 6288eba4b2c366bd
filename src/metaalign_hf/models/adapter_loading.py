"""Reading what `adapter_files` writes: the model that the adapters are of, on top of its base model."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from huggingface_hub import hf_hub_download, snapshot_download
from huggingface_hub.errors import EntryNotFoundError
from safetensors import safe_open
from torch import Tensor

from ..errors import UserError, one_line
from ..run_folder import (
    ADAPTER_CONFIG_FILE,
    ADAPTER_FILES,
    ADAPTER_HEADS_FILE,
    ADAPTER_MODEL_FILE,
    ADAPTER_WEIGHTS_FILE,
    MODEL_CONFIG_FILE,
    holds_adapters_alone,
)
from .adapter_files import CHECKSUM, PREFIX, base_checksum, own_tensors, without_name
from .backbone import BackboneSource, load_pretrained_backbone
from .configuration import MetaAlignConfig
from .loading import require_in_reach
from .lora import only_adapters_train
from .origin import checkpoint_origin

if TYPE_CHECKING:
    from .image_classification import MetaAlignForImageClassification

__all__ = ["from_adapters", "require_heads"]

_HUB_ARGUMENTS = ("revision", "token", "cache_dir", "local_files_only")
_ARGUMENTS = (*_HUB_ARGUMENTS, "dtype", "pretrained_model_name_or_path", "use_safetensors", "trust_remote_code")
_ADVICE = (
    "download it where there is a network and set HF_HUB_OFFLINE=1 here, or name its folder as base_model_name_or_path "
    f"in {ADAPTER_CONFIG_FILE}"
)


def from_adapters(
    kind: type[MetaAlignForImageClassification], place: str, arguments: Mapping[str, Any]
) -> MetaAlignForImageClassification | None:
    """The model of which `export_adapter` wrote adapters and heads, with the same logits bit for bit.

    The base model is loaded from the place and at the revision that `adapter_config.json` names, and must have the very
    weights that the adapters were trained on.

    Args:
        kind: The model class.
        place: A folder or Hub id.
        arguments: Those of `from_pretrained`.

    Returns:
        The model in evaluation mode; None where the place holds anything but adapters without a base model.

    Raises:
        UserError: If a file is missing or damaged, the base model is out of reach or is another, or an argument is not
            for adapters.
    """
    hub = {key: arguments[key] for key in _HUB_ARGUMENTS if key in arguments}
    if (folder := _find(place, **hub)) is None:
        return None
    what = f"checkpoint {place}"
    if unknown := [key for key in arguments if key not in _ARGUMENTS]:
        raise UserError(f"{what}: adapters alone are loaded without {unknown[0]}; merge them first (metaalign export)")
    require_heads(folder, what)
    model = _load(kind, folder, what, arguments.get("token"))
    commit = None if Path(place).expanduser().is_dir() else folder.name  # a snapshot in the Hub's cache
    model.config.origin = checkpoint_origin(place, commit, model.config.origin)
    dtype = arguments.get("dtype")
    return model.to(dtype) if isinstance(dtype, torch.dtype) else model


def _find(place: str, **hub: Any) -> Path | None:
    """The folder of adapters without a base model; None where the place holds anything else, or is not there."""
    if (folder := Path(place).expanduser()).is_dir():
        return folder if holds_adapters_alone(folder) else None

    def there(name: str) -> bool:
        try:
            hf_hub_download(place, name, **hub)
        except EntryNotFoundError:
            return False
        return True

    try:
        if there(MODEL_CONFIG_FILE) or not there(ADAPTER_CONFIG_FILE):
            return None
        return Path(snapshot_download(place, allow_patterns=list(ADAPTER_FILES), **hub))
    except Exception:  # no id, no such repository, no network: the usual loading says what
        return None


def require_heads(folder: Path, what: str) -> None:
    """Refuse adapters that peft alone wrote.

    Args:
        folder: A folder with adapters alone.
        what: What errors call it.

    Raises:
        UserError: If what a model has beside its adapters is missing.
    """
    if lacking := [name for name in ADAPTER_FILES if not (folder / name).is_file()]:
        base = _read_json(folder / ADAPTER_CONFIG_FILE, what).get("base_model_name_or_path")
        raise UserError(
            f"{what}: it holds adapters without {' and '.join(lacking)}, which `metaalign push --adapter` and `export "
            f"--adapter` write; peft reads such adapters on top of their base model {base}"
        )


def _load(
    kind: type[MetaAlignForImageClassification], folder: Path, what: str, token: str | None
) -> MetaAlignForImageClassification:
    """The model, of a folder with all files."""
    described = _read_json(folder / ADAPTER_CONFIG_FILE, what)
    base, revision = str(described.get("base_model_name_or_path")), described.get("revision")
    adapters, _ = _read_tensors(folder / ADAPTER_WEIGHTS_FILE, what)
    heads, told = _read_tensors(folder / ADAPTER_HEADS_FILE, what)
    named = f"{base} at revision {revision}" if revision and not Path(base).expanduser().exists() else base
    try:
        config = MetaAlignConfig.from_dict(_read_json(folder / ADAPTER_MODEL_FILE, what))
        model = kind(config)
    except UserError as error:
        raise UserError(f"{what}: {error}") from error
    try:
        require_in_reach(base, "base model", revision, _ADVICE)
        plain = load_pretrained_backbone(_source(config, base, revision), token)
    except UserError as error:
        raise UserError(f"{what}: its {str(error).replace('backbone weights', 'base model')}") from error
    dtype = getattr(torch, str(config.dtype).removeprefix("torch."), None)
    if isinstance(dtype, torch.dtype):
        model.to(dtype)
    state, own = plain.state_dict(), own_tensors(model.backbone)
    with torch.no_grad():
        for name, value in model.backbone.state_dict().items():
            if name not in own:
                value.copy_(state[name.replace(".base_layer.", ".")])
        _fill(own, {key: adapters.get(PREFIX + without_name(key)) for key in own}, f"{what}: {ADAPTER_WEIGHTS_FILE}")
        wanted = {key: value for key, value in model.state_dict().items() if not key.startswith("backbone.")}
        _fill(wanted, {key: heads.get(key) for key in wanted}, f"{what}: {ADAPTER_HEADS_FILE}")
    if base_checksum(model.backbone) != told.get(CHECKSUM):
        raise UserError(
            f"{what}: its adapters were trained on other weights than those of {named}; name the right ones as "
            f"base_model_name_or_path and revision in {ADAPTER_CONFIG_FILE}"
        )
    only_adapters_train(model.backbone)
    return model.eval()


def _source(config: MetaAlignConfig, base: str, revision: str | None) -> BackboneSource:
    backbone_config: Any = copy.deepcopy(config.backbone_config)
    mean, std = tuple(config.image_mean), tuple(config.image_std)
    return BackboneSource(backbone_config, base, base, mean, std, config.image_size or 0, revision)


def _fill(tensors: dict[str, Tensor], values: dict[str, Tensor | None], what: str) -> None:
    """Copy values into tensors.

    Raises:
        UserError: If one is missing or has another shape.
    """
    lost = [key for key, value in values.items() if value is None or value.shape != tensors[key].shape]
    if lost:
        raise UserError(f"{what}: {len(lost)} tensors are missing or misshapen, e.g. {lost[0]}")
    for key, value in values.items():
        assert value is not None
        tensors[key].copy_(value)


def _read_tensors(path: Path, what: str) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors and the metadata of a file."""
    try:
        with safe_open(path, "pt") as file:
            return {key: file.get_tensor(key) for key in file.keys()}, dict(file.metadata() or {})  # noqa: SIM118
    except Exception as error:  # safetensors raises errors of several kinds
        raise UserError(f"{what}: {path.name} is damaged ({one_line(error, first=True)})") from error


def _read_json(path: Path, what: str) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{what}: {path.name} is damaged ({one_line(error, first=True)})") from error
    if not isinstance(found, dict):
        raise UserError(f"{what}: {path.name} is damaged (it is no JSON object)")
    return found
