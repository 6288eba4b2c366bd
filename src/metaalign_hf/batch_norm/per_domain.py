"""Batch normalisation by domain: source and target rows of one batch, each under statistics of their own."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor, nn

from ..coordination._replacement import replaced_attribute
from .layers import bare_model, require_batch_norm, running_statistics

__all__ = ["SourceStatistics"]

CITATION = """\
@inproceedings{chang2019domain,
  title     = {Domain-Specific Batch Normalization for Unsupervised Domain Adaptation},
  author    = {Chang, Woong-Gi and You, Tackgeun and Seo, Seonguk and Kwak, Suha and Han, Bohyung},
  booktitle = {Proceedings of the IEEE/CVF Conference on Computer Vision and Pattern Recognition},
  year      = {2019}
}"""


class SourceStatistics(nn.Module):
    """The source's running statistics, kept aside while those in the model become the target's.

    With B_d the rows of domain d in the batch, every batch normalisation outside the alignment heads computes::

        y = gamma (x - mean(B_d)) / sqrt(var(B_d) + eps) + beta        for x of domain d

    A pass on the source alone thus normalises the source's rows as a pass on both domains does. In evaluation the
    means are running ones: the model holds the target's, so that what is saved is simply the target's model, and
    `swapped_in` puts the source's in their place.

    Unlike the source, which has gamma and beta by domain as well, domains share these here, as in AutoDIAL and AdaBN:
    nothing but the statistics has to be kept for a domain.

    Source: Chang, You, Seo, Kwak, Han, "Domain-Specific Batch Normalization for Unsupervised Domain Adaptation", CVPR
    2019, section 3.

    Args:
        model: The bare model, whose running statistics are copied as the source's.

    Raises:
        UserError: If it has no batch normalisation.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        known = set(require_batch_norm(model, "training.batch_norm: per_domain", "auto"))
        # An alignment objective may have layers of its own, which see any rows it likes, in any order.
        self.names = [
            name for name, part in model.named_modules() if part in known and not name.startswith("alignment.")
        ]
        self.layers = nn.ModuleList()
        for name in self.names:
            kept = nn.Module()
            for key, value in model.get_submodule(name).named_buffers(recurse=False):
                kept.register_buffer(key, value.clone())
            self.layers.append(kept)

    @contextmanager
    def per_domain(
        self, model: nn.Module, source_rows: int, rows: int, until: nn.Module | None = None
    ) -> Iterator[None]:
        """Every batch normalisation in training mode treats the domains apart inside, and moves the statistics of both.

        Args:
            model: Called inside, with batches whose first rows are the source's. Wrapped or not.
            source_rows: Rows of the source.
            rows: Rows of both domains. A layer may see whole multiples of them, where a network folds places into rows.
            until: From this submodule on, layers see rows of one domain alone, and are left as they are.

        Raises:
            ValueError: In the forward pass, if a layer sees another number of rows.
        """
        reached: list[bool] = []
        with ExitStack() as stack:
            if until is not None:
                stack.callback(until.register_forward_pre_hook(lambda *_: reached.append(True)).remove)
            for layer, kept in self._pairs(model):
                if layer.training:
                    split = _split(layer, kept, source_rows, rows, reached)
                    stack.enter_context(replaced_attribute(layer, "forward", split))
            yield

    @contextmanager
    def swapped_in(self, model: nn.Module) -> Iterator[None]:
        """The model has the source's running statistics inside, and its own again afterwards.

        Args:
            model: The model or an average of it, wrapped or not.
        """
        bare = bare_model(model)
        own = running_statistics(bare)
        # Values, not tensors, are exchanged: DistributedDataParallel holds on to the tensors it knows.
        bare.load_state_dict(
            {
                f"{name}.{key}": value
                for name, kept in zip(self.names, self.layers, strict=True)
                for key, value in kept.named_buffers()
            },
            strict=False,
        )
        try:
            yield
        finally:
            bare.load_state_dict(own, strict=False)

    def _pairs(self, model: nn.Module) -> Iterator[tuple[nn.Module, nn.Module]]:
        """Each layer of the model with the module that holds the source's statistics of it."""
        bare = bare_model(model)
        for name, kept in zip(self.names, self.layers, strict=True):
            yield bare.get_submodule(name), kept


def _split(
    layer: nn.Module, kept: nn.Module, source_rows: int, rows: int, reached: list[bool]
) -> Callable[[Tensor], Tensor]:
    """A forward that sends the source's rows and the target's through the layer's own one after the other."""
    real = layer.forward

    def forward(x: Tensor) -> Tensor:
        if reached:
            return real(x)
        places, rest = divmod(len(x), rows)
        if rest:
            raise ValueError(f"a batch normalisation sees {len(x)} rows of a batch of {rows}: its domains are unknown")
        with _buffers_of(layer, kept):
            source = real(x[: places * source_rows])
        return torch.cat([source, real(x[places * source_rows :])])

    return forward


@contextmanager
def _buffers_of(layer: nn.Module, other: nn.Module) -> Iterator[None]:
    """The layer works on the other module's buffers inside, and moves those."""
    own = dict(layer._buffers)
    layer._buffers.update(other._buffers)
    try:
        yield
    finally:
        layer._buffers.update(own)
