"""The batch normalisations of a model and what they keep."""

from __future__ import annotations

from accelerate.utils import extract_model_from_parallel
from torch import Tensor, nn

from ..errors import UserError

__all__ = ["bare_model", "frozen_kind", "require_batch_norm", "running_statistics"]


def running_statistics(module: nn.Module) -> dict[str, Tensor]:
    """Copies of the running statistics of every batch normalisation, by name; for `load_state_dict(strict=False)`."""
    return {
        f"{name}.{key}": value.clone()
        for name, layer in module.named_modules()
        if isinstance(layer, nn.modules.batchnorm._BatchNorm)
        for key, value in layer.named_buffers(recurse=False)
    }


def require_batch_norm(
    module: nn.Module, setting: str = "training.recalibrate_bn", instead: str = "none"
) -> list[nn.modules.batchnorm._BatchNorm]:
    """Every batch normalisation of the module that has running statistics and is not frozen.

    Args:
        module: Any module.
        setting: What needs them, for the error.
        instead: Its value that needs none.

    Raises:
        UserError: If there is none.
    """
    found = [
        layer
        for layer in module.modules()
        if isinstance(layer, nn.modules.batchnorm._BatchNorm) and layer.running_mean is not None
    ]
    frozen = set(getattr(module, "frozen_modules", ()))
    if layers := [layer for layer in found if layer not in frozen]:
        return layers
    why = "with model.freeze none of the model's" if found else "the model has no"
    why += " batch normalisation" + (" may move" if found else "")
    if (kind := frozen_kind(module)) is not None:
        why = f"the model has only batch normalisation whose statistics never move ({kind})"
    raise UserError(f"{setting}: {why}; leave it at {instead}")


def frozen_kind(module: nn.Module) -> str | None:
    """Class of the batch normalisations that detectors put in the place of a backbone's own; None without any."""
    return next((type(m).__name__ for m in module.modules() if "FrozenBatchNorm" in type(m).__name__), None)


def bare_model(model: nn.Module) -> nn.Module:
    """The model inside DistributedDataParallel and torch.compile."""
    bare: nn.Module = extract_model_from_parallel(model, keep_torch_compile=False)
    return bare
