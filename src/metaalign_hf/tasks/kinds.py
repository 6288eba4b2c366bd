"""What is known of a task without torch: its names, measures and words, in one registry."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from ..registry import Registry

if TYPE_CHECKING:
    from .base import Task

__all__ = [
    "Measure",
    "PredictOption",
    "TaskKind",
    "known_tasks",
    "register_task",
    "task_chosen_by",
    "task_named",
    "task_of_architecture",
    "task_of_model",
]


@dataclass(frozen=True)
class Measure:
    """A figure of a model on test images: a share of 0..1, higher is better.

    Attributes:
        name: In `Scores` and, after the domain's name, in summaries (`target_accuracy_after`).
        heading: What tables call it.
        metric: What the Hub calls it.
        indexed: Whether the metadata of a model card always have it; else only where it heads the run's tables.
    """

    name: str
    heading: str
    metric: str
    indexed: bool = False


@dataclass(frozen=True)
class PredictOption:
    """An option of `metaalign predict` that one task alone knows.

    Attributes:
        flag: Such as `--top-k`.
        takes: A whole number from 1 on, a number in 0..1, a new folder, or nothing.
        help: What it does.
        evaluates: Whether `metaalign evaluate` knows it too.
    """

    flag: str
    takes: Literal["count", "share", "folder", "nothing"]
    help: str
    evaluates: bool = False

    @property
    def name(self) -> str:
        """Its name among the parsed options."""
        return self.flag.removeprefix("--").replace("-", "_")


@dataclass(frozen=True, kw_only=True)
class TaskKind:
    """A task: what a command, a model card or a table must know of it. What computes is loaded on demand.

    Attributes:
        pipeline_tag: The Hub's name of the task, and of the `pipeline` that serves its models.
        auto_class: The Auto class of transformers that loads them.
        architectures: How the names of their classes end.
        load: Imports and returns the `tasks.base.Task` that computes.
        measures: Its figures; the first one heads tables by default.
        noun: What one of its models is called.
        chosen_by: Key of the configuration's `model` section that says, where it is set, that a run is of this task.
        ignores: Entries of the `data` section that it does not read, with what it takes instead.
        ignores_of_dataset: Entries of a domain of kind `dataset` that it does not read.
        cited_as: Kinds of its alignment objectives and validators in citations.
        start_key: Key of the `model` section under which a plain model of transformers is named.
        start_words: What becomes of such a model there, for the card.
        example_domains: Options of `metaalign train` that name two domains, for the card.
        verb: Name of the pipeline in the card's examples.
        says: The outputs that the plain model repeats bit by bit, in words.
        limit: What a model cannot do, for the card.
        outputs: Names of the outputs in an ONNX file.
        doing: What `metaalign predict` does to images.
        done: What it has done to them.
        batch_size: Images in a batch of the commands, where none is given.
        options: Further options of `metaalign predict`.
        try_also: Which of them the summary suggests.
    """

    pipeline_tag: str
    auto_class: str
    architectures: str
    load: Callable[[], type[Task]]
    measures: tuple[Measure, ...]
    noun: str
    chosen_by: str | None = None
    ignores: Mapping[str, str] = field(default_factory=dict)
    ignores_of_dataset: tuple[str, ...] = ()
    cited_as: tuple[str, str] = ("alignment", "validator")
    start_key: str = "checkpoint"
    start_words: str = "with new heads"
    example_domains: str = "--data.source SOURCE --data.target TARGET"
    verb: str = "predict"
    says: str = "outputs"
    limit: str = "It answers for every image, also for those that are unlike any that it was trained on."
    outputs: tuple[str, ...] = ("logits",)
    doing: str = "predicting"
    done: str = "predicted"
    batch_size: int = 64
    options: tuple[PredictOption, ...] = ()
    try_also: str = ""

    def measure(self, name: str | None) -> Measure:
        """The measure with this name; the first one where the task has no such measure."""
        return next((measure for measure in self.measures if measure.name == name), self.measures[0])

    def measures_from(self, first: str | None) -> list[Measure]:
        """All measures, the named one first."""
        head = self.measure(first)
        return [head, *(measure for measure in self.measures if measure != head)]


_KINDS: Registry[TaskKind] = Registry("task", "task {!r} is unknown", advice=" (register your own first)")


def register_task(kind: TaskKind) -> TaskKind:
    """Make a task known.

    Returns:
        The same task.

    Raises:
        ValueError: If another one has its pipeline tag.
    """
    if _KINDS.setdefault(kind.pipeline_tag, kind) != kind:
        raise ValueError(f"task {kind.pipeline_tag!r} is registered already")
    return kind


def known_tasks() -> list[TaskKind]:
    """All tasks, in the order in which they were registered."""
    return list(_KINDS.values())


def task_named(pipeline_tag: str) -> TaskKind:
    """The task with this pipeline tag.

    Raises:
        UserError: If there is no such task.
    """
    return _KINDS[pipeline_tag]


def task_chosen_by(model: Mapping[str, Any]) -> TaskKind:
    """The task that the `model` section of a configuration describes; image classification by default."""
    chosen = (kind for kind in _KINDS.values() if kind.chosen_by is not None and model.get(kind.chosen_by) is not None)
    return next(chosen, _KINDS["image-classification"])


def task_of_architecture(name: str) -> TaskKind:
    """The task of a model class, ours or one of transformers; image classification where no other one fits."""
    found = (kind for kind in _KINDS.values() if name.endswith(kind.architectures))
    return next(found, _KINDS["image-classification"])


def task_of_model(model: Any) -> TaskKind:
    """The task of a model: that of its class, or of the nearest class above it that is one of a task."""
    names = [kind.__name__ for kind in type(model).__mro__]
    known = (name for name in names if any(name.endswith(kind.architectures) for kind in _KINDS.values()))
    return task_of_architecture(next(known, names[0]))
