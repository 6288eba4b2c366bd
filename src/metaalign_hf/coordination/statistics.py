"""Running statistics of batch normalisation: moved by one pass of a step only."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

__all__ = ["frozen_running_statistics", "has_live_statistics"]


def has_live_statistics(module: nn.Module) -> bool:
    """Whether a batch normalisation in the module normalises by the statistics of the batch.

    It does so in `frozen_running_statistics` too, where it moves nothing.
    """
    return any(isinstance(layer, nn.modules.batchnorm._BatchNorm) and layer.training for layer in module.modules())


@contextmanager
def frozen_running_statistics(module: nn.Module) -> Iterator[None]:
    """Batch normalisation uses the batch's statistics inside, but does not move its running statistics.

    For the pass that sees one domain only: the running statistics then come from the mixed pass alone, instead of
    leaning to the source. A layer in eval mode is left as it is.

    Args:
        module: Any module; its batch normalisations at any depth are meant.
    """
    kinds = (layer for layer in module.modules() if isinstance(layer, nn.modules.batchnorm._BatchNorm))
    layers = [layer for layer in kinds if layer.training and layer.track_running_stats]
    for layer in layers:
        layer.track_running_stats = False
    try:
        yield
    finally:
        for layer in layers:
            layer.track_running_stats = True
