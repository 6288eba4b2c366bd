"""Checks on loaded checkpoints: complete, and in aligned memory."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, try_to_load_from_cache
from huggingface_hub.errors import HFValidationError, OfflineModeIsEnabled
from torch import nn
from transformers import PreTrainedConfig

from ..errors import UserError, did_you_mean, one_line

__all__ = ["align_memory", "refuse_lost_tensors", "require_in_reach", "require_options"]

_ADVICE = (
    "take random weights (pretrained: false), name a local folder, or download it where there is a network and set "
    "HF_HUB_OFFLINE=1 here"
)


def refuse_lost_tensors(info: dict[str, Any], place: Any) -> None:
    """Refuse a checkpoint that lacks a tensor of its model.

    Args:
        info: The loading info of `from_pretrained`.
        place: Where the checkpoint is, for the error.

    Raises:
        UserError: If tensors are missing or have another shape than the configuration says.
    """
    lost = sorted({*info["missing_keys"], *(str(key) for key in info["mismatched_keys"])})
    if lost:
        raise UserError(f"checkpoint {place}: {len(lost)} tensors are missing or misshapen, e.g. {lost[0]}")


def align_memory(model: nn.Module) -> None:
    """Move tensors that lie anywhere in the mapped file to aligned memory.

    Matrix products of unaligned and aligned memory may differ in the last bit, and a loaded model must give the very
    logits that the saved one gave.
    """
    for tensor in [*model.parameters(), *model.buffers()]:
        if tensor.device.type == "cpu" and tensor.data_ptr() % 64:
            tensor.data = tensor.data.clone()


def require_in_reach(place: str, key: str, revision: str | None = None, advice: str = _ADVICE) -> None:
    """Refuse a Hub id that is not cached and cannot be downloaded, before transformers retries for a long time.

    Args:
        place: A local folder or file, which is left alone, or a Hub id.
        key: What named it, for the error.
        revision: Its branch, tag or commit; None is main.
        advice: What to do about it.

    Raises:
        UserError: If it is not in the cache, and the Hub is not to be asked (`HF_HUB_OFFLINE`) or does not answer.
    """
    if Path(place).expanduser().exists() or place.startswith((".", "/", "~")):
        return
    try:
        if isinstance(try_to_load_from_cache(place, "config.json", revision=revision), str):
            return
        HfApi().model_info(place, timeout=10)
        return
    except HFValidationError:
        return
    except OfflineModeIsEnabled:
        reason = "HF_HUB_OFFLINE is set, so the Hub is not asked"
    except Exception as error:
        if not _is_lost_connection(error):
            return  # transformers explains what the Hub answered
        reason = f"the Hub cannot be reached ({one_line(error)})"
    named = place if revision is None else f"{place} at revision {revision}"
    raise UserError(f"{key}: {named} is not in the local cache, and {reason}; {advice}")


def _is_lost_connection(error: Exception) -> bool:
    """Whether the network client could not connect or timed out."""
    names = {kind.__name__ for kind in type(error).__mro__}
    return isinstance(error, ConnectionError | TimeoutError) or "TransportError" in names


def require_options(config: PreTrainedConfig, options: Iterable[str], key: str) -> None:
    """Refuse options that a configuration does not have.

    Args:
        config: A configuration of the class.
        options: Names of entries.
        key: What is configured, for the error.

    Raises:
        UserError: For the first one.
    """
    known = config.to_dict()
    for name in options:
        if name not in known:
            hint = did_you_mean(name, known, "see its configuration class", n=2)
            raise UserError(f"{key}: a {config.model_type} has no option {name!r}; {hint}")
