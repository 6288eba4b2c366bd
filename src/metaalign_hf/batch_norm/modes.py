"""The modes of `training.batch_norm`: which statistics a pass normalises with, and which pass moves them.

A mode is a subclass of `BatchStatistics` under `register_batch_norm`; nothing else in the package names one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING, ClassVar, NamedTuple, TypeVar

from accelerate.utils import broadcast
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from ..coordination import frozen_running_statistics, has_live_statistics
from ..errors import UserError
from ..registry import Registry
from .layers import bare_model, frozen_kind, require_batch_norm
from .per_domain import CITATION, SourceStatistics

if TYPE_CHECKING:
    from ..configuration import TrainingConfig

__all__ = [
    "MODES",
    "BatchStatistics",
    "Frozen",
    "Mixed",
    "PerDomain",
    "Rows",
    "batch_statistics",
    "check_batch_norm",
    "register_batch_norm",
]


class Rows(NamedTuple):
    """The rows of a batch on both domains, of which the source's come first.

    Attributes:
        source: How many are the source's.
        total: How many there are.
    """

    source: int
    total: int


class BatchStatistics:
    """What batch normalisation does in a run. This class is the mode `train`, as published: every pass moves them.

    Args:
        model: The bare model.

    Attributes:
        name: Name of the mode; `register_batch_norm` sets it.
        one_pass_moves: Whether in a step on both domains only the alignment pass moves running statistics.
        excludes: Settings of `training` that do not work with the mode.

    Raises:
        UserError: If the mode does not work with the model.
    """

    name: ClassVar[str]
    one_pass_moves: ClassVar[bool] = False
    excludes: ClassVar[tuple[str, ...]] = ()

    def __init__(self, model: nn.Module) -> None:
        self.model = model

    def train_mode(self, model: nn.Module) -> None:
        """Put the model, wrapped or not, in the mode in which it trains."""
        model.train()

    def begin_adaptation(self) -> None:
        """Called before the first step on both domains, and before the tensors of a checkpoint of a later one."""

    def task_needs_target(self, model: nn.Module, labelled_target: bool = False) -> bool:
        """Whether the task's pass must be on both domains, as a joint step's, though its loss is the source's.

        Args:
            model: The model in training mode.
            labelled_target: Whether rows of the target are among the source's batch.
        """
        return False

    def on_both(self, model: nn.Module, rows: Rows, until: nn.Module | None = None) -> AbstractContextManager[None]:
        """A context for a pass on both domains.

        Args:
            model: The model, wrapped or not.
            rows: The rows of the batch.
            until: From this submodule on only rows of one domain go on; None where all do.
        """
        return nullcontext()

    @contextmanager
    def task_pass(self, model: nn.Module, rows: Rows | None = None) -> Iterator[None]:
        """A context for the task's pass in a step on both domains.

        Args:
            model: The model, wrapped or not.
            rows: The rows of the batch; None where it holds rows of one domain alone.
        """
        apart = nullcontext() if rows is None else self.on_both(model, rows)
        with apart, frozen_running_statistics(model) if self.one_pass_moves else nullcontext():
            yield

    def as_source(self, model: nn.Module) -> AbstractContextManager[None]:
        """A context in which the model, or an average of it, is evaluated on source images."""
        return nullcontext()

    def synchronise(self, model: nn.Module) -> None:
        """All processes take over the first one's statistics, before an evaluation of the model that they share.

        DistributedDataParallel does so before every training pass, so training does not depend on it.
        """
        broadcast([buffer for layer in model.modules() if isinstance(layer, _BatchNorm) for buffer in layer.buffers()])

    def modules(self) -> dict[str, nn.Module]:
        """By file name, what a checkpoint must hold beside the model."""
        return {}

    def notes(self) -> list[str]:
        """Plain statements for the summary."""
        return []


T = TypeVar("T", bound=type[BatchStatistics])

MODES: Registry[type[BatchStatistics]] = Registry(
    "batch-norm mode", "training.batch_norm: {!r} is unknown", others=("auto",), cited_as="batch_norm"
)


def register_batch_norm(name: str, *, citation: str | None = None) -> Callable[[T], T]:
    """Make a mode known by name: a class decorator.

    Args:
        name: The name that `training.batch_norm` takes; it must be free.
        citation: BibTeX of the publication, which model cards of runs with the mode then cite.

    Raises:
        ValueError: If another class has the name, or the citation is not BibTeX.
    """

    def named(mode: T) -> T:
        mode.name = name
        return mode

    return MODES.register(name, named, citation=citation)


register_batch_norm("train")(BatchStatistics)


@register_batch_norm("mixed")
class Mixed(BatchStatistics):
    """Every pass of the adaptation is on both domains, and one of them moves the statistics.

    A layer with live statistics that sees the source alone normalises it otherwise than in evaluation, where the
    statistics are those of both domains.
    """

    one_pass_moves = True

    def task_needs_target(self, model: nn.Module, labelled_target: bool = False) -> bool:
        """Where any layer has live statistics."""
        return has_live_statistics(model)


@register_batch_norm("frozen")
class Frozen(Mixed):
    """The backbone normalises with its running statistics, which stay; layers after it are as in `mixed`."""

    def train_mode(self, model: nn.Module) -> None:
        """Training mode but for the batch normalisations of the backbone."""
        model.train()
        bare = bare_model(model)
        for layer in getattr(bare, "base_model", bare).modules():
            if isinstance(layer, nn.modules.batchnorm._BatchNorm):
                layer.eval()


@register_batch_norm("per_domain", citation=CITATION)
class PerDomain(Mixed):
    """Source and target rows each have statistics of their own; see `SourceStatistics`.

    The domains part with the first adaptation step; until then it is `mixed`.
    """

    # Both bypass the forwards that the pass puts in place: compiled layers, and layers that run again in backward.
    excludes = ("compile", "gradient_checkpointing")

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model)
        self.source: SourceStatistics | None = None
        require_batch_norm(model, "training.batch_norm: per_domain", "auto")
        if (kind := frozen_kind(model)) is not None:
            raise UserError(
                f"training.batch_norm: per_domain: the backbone's batch normalisation is frozen by the detector "
                f"({kind}); set model.detector_options: {{freeze_backbone_batch_norms: false}}, or leave it at auto"
            )

    def begin_adaptation(self) -> None:
        """From now on the running statistics in the model are the target's, and the source's are kept beside it."""
        self.source = SourceStatistics(self.model)

    def task_needs_target(self, model: nn.Module, labelled_target: bool = False) -> bool:
        """A few labelled target rows need the others of their domain; the source's rows do not."""
        return has_live_statistics(model) and (self.source is None or labelled_target)

    def on_both(self, model: nn.Module, rows: Rows, until: nn.Module | None = None) -> AbstractContextManager[None]:
        """Source and target rows are normalised apart."""
        if self.source is None:
            return nullcontext()
        return self.source.per_domain(model, rows.source, rows.total, until)

    def as_source(self, model: nn.Module) -> AbstractContextManager[None]:
        """The source's statistics are in the model."""
        return nullcontext() if self.source is None else self.source.swapped_in(model)

    def synchronise(self, model: nn.Module) -> None:
        """All processes take over the first one's statistics of both domains."""
        super().synchronise(model)
        if self.source is not None:
            broadcast(list(self.source.buffers()))

    def modules(self) -> dict[str, nn.Module]:
        """The source's statistics."""
        return {} if self.source is None else {"source_statistics": self.source}

    def notes(self) -> list[str]:
        """Whose statistics the figures are measured under."""
        if self.source is None:
            return []
        return [
            "Source figures after adaptation are under the source's statistics of batch normalisation; the saved "
            "model holds the target's."
        ]


def batch_statistics(setting: str, model: nn.Module, pretrained: bool) -> BatchStatistics:
    """The mode that `training.batch_norm` names, for a model.

    `auto` is `frozen` for pretrained weights and `mixed` for random ones: a network that trains from scratch needs live
    statistics, and fine-tuning with small batches of two domains destroys pretrained ones.

    Args:
        setting: Name of a mode, or `auto`.
        model: The bare model.
        pretrained: Whether its weights are pretrained.

    Raises:
        UserError: If the mode is unknown, or does not work with the model.
    """
    return MODES[("frozen" if pretrained else "mixed") if setting == "auto" else setting](model)


def check_batch_norm(training: TrainingConfig) -> None:
    """Refuse a mode that is unknown, or does not work with another setting, before a model is built.

    Raises:
        UserError: If it is.
    """
    if training.batch_norm == "auto":
        return
    mode = MODES[training.batch_norm]
    for name in mode.excludes:
        if getattr(training, name):
            raise UserError(f"training.batch_norm: {mode.name} does not work with training.{name}; switch one off")
