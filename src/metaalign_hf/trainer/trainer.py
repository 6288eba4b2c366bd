"""MetaAlign as a subclass of the transformers Trainer."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.data import BatchSampler, DataLoader, SequentialSampler
from transformers import PreTrainedModel, TrainerCallback
from transformers.trainer_utils import PredictionOutput, speed_metrics

from ..coordination import Coordinator, StepReport
from ..data import DomainPair
from ..errors import UserError
from ..target_losses import TargetLoss
from ..tasks.building import build_task, described_task
from ..training.gradient import StepGradient, step_seed
from ..training.optimizers import parameter_groups
from ..training.schedules import progress
from ..training.steps import micro_batches
from ..training.weights import Weights, average_decay
from .arguments import MetaAlignTrainingArguments, check_arguments
from .average import KeepAverage
from .checkpoints import load_state, save_state
from .datasets import evaluation_views, pair_of, test_view
from .pushing import PushingTrainer

__all__ = ["MetaAlignTrainer"]

_ARGUMENTS = "training_args.bin"
_MEASURED = ("task_loss", "alignment_loss", "target_loss", "cosine", "inner_product")


class MetaAlignTrainer(PushingTrainer):
    """Adapts a model from a labelled source to an unlabelled target, with the loop, logs and checkpoints of Trainer.

    A step is that of `metaalign_hf.adapt`: on the same images it leaves the same gradient, bit for bit. Learning rate,
    clipping, evaluation, checkpoints, callbacks and trackers are Trainer's. A run that is resumed from a checkpoint is
    the run that never stopped: images and random numbers depend on the step alone, and what the coordinator remembers
    is in the checkpoint.

    With `ema_decay`, or a target loss whose teacher is the average of the weights, the average is the model that is
    evaluated, saved and pushed, and that `model` is when training ends.

    Args:
        model: A `MetaAlignForImageClassification` or `MetaAlignForObjectDetection`; it is trained in place.
        args: The arguments.
        train_dataset: Annotated source images: a `datasets.Dataset` with columns `image` and `label` (or `objects`), or
            a view of a domain pair, numbered as the labels of the model.
        target_dataset: Target images in either form. Their labels, if any, are not read.
        eval_dataset: Annotated test images, `{"source": ..., "target": ...}` or one of them; a single data set is the
            target's. Metrics are `eval_source_accuracy`, `eval_target_accuracy` and so on, as shares of 1.
        pair: A domain pair in the place of the three, whose class names agree with the model's by name.
        callbacks: As Trainer takes them.
        optimizers: As Trainer takes them; the default optimiser has groups for backbone, new layers and discriminators.

    Raises:
        UserError: If the data sets, the model and the arguments do not fit together.
    """

    args: MetaAlignTrainingArguments
    # Trainer sets these; it is not typed.
    optimizer: Any
    control: Any

    def __init__(
        self,
        model: PreTrainedModel,
        args: MetaAlignTrainingArguments | None = None,
        train_dataset: Any = None,
        target_dataset: Any = None,
        eval_dataset: Any = None,
        *,
        pair: DomainPair[Any] | None = None,
        callbacks: list[TrainerCallback] | None = None,
        optimizers: tuple[Any, Any] = (None, None),
    ) -> None:
        args = MetaAlignTrainingArguments(output_dir="runs/trainer") if args is None else args
        check_arguments(args)
        kind = described_task(args.adaptation(), model)
        if pair is None:
            if train_dataset is None or target_dataset is None:
                raise UserError("train_dataset and target_dataset: give both, or a pair")
            tests = eval_dataset if isinstance(eval_dataset, Mapping) else {"target": eval_dataset}
            if unknown := set(tests) - {"source", "target"}:
                raise UserError(f"eval_dataset has a data set {min(unknown)!r}: name them source and target")
            pair = pair_of(train_dataset, target_dataset, tests, model.config.labels, kind.load().annotations)
        elif not (train_dataset is target_dataset is eval_dataset is None):
            raise UserError("pair: it takes the place of train_dataset, target_dataset and eval_dataset")
        self.config = args.adaptation()
        self.task = build_task(self.config, pair, model)
        views = evaluation_views(self.task.pair)
        self._weights: Weights | None = None
        self._gradient: StepGradient | None = None
        self._streams: tuple[Iterator[Any], Iterator[Any]] | None = None
        self._report: StepReport | None = None
        self._figures: dict[str, Any] = {}
        super().__init__(
            model=model,
            args=args,
            train_dataset=self.task.pair.source_train,
            eval_dataset=views or None,
            processing_class=self.task.processor,
            callbacks=callbacks,
            optimizers=optimizers,
        )
        # First, so that whoever else is told of the end sees the model that was trained.
        self.callback_handler.callbacks.insert(0, KeepAverage(lambda: self._weights, self._drop_average))
        if self.args.n_gpu > 1:
            raise UserError(f"one process with {self.args.n_gpu} GPUs: start one for each, with accelerate launch")

    # Steps

    def get_train_dataloader(self) -> DataLoader[Any]:
        """Numbers of micro-batches, an epoch of the source long; their images come with the step that takes them."""
        args = self.args
        images = args.per_device_train_batch_size * args.gradient_accumulation_steps * args.world_size
        batches = range(math.ceil(len(self.train_dataset) / images) * args.gradient_accumulation_steps)
        sampler = BatchSampler(SequentialSampler(batches), batch_size=1, drop_last=False)
        return DataLoader(batches, batch_sampler=sampler, collate_fn=_numbered)  # type: ignore[arg-type]

    def num_examples(self, dataloader: DataLoader[Any]) -> int:
        """The number of source images."""
        return len(self.train_dataset)

    def floating_point_ops(self, inputs: Any) -> int:
        """0: it is not counted."""
        return 0

    def create_optimizer(self, model: nn.Module | None = None) -> Optimizer:
        """The optimiser that the arguments name, with a group for each role of the parameters."""
        if self.optimizer is None:
            bare = self.accelerator.unwrap_model(self.model if model is None else model, keep_torch_compile=False)
            groups = parameter_groups(bare.parameter_roles(), self.config.optimizer)
            chosen, options = self.get_optimizer_cls_and_kwargs(self.args, bare)
            self.optimizer = chosen(groups, **options)
        return self.optimizer

    def train(self, *args: Any, **options: Any) -> Any:
        """As Trainer's."""
        self._weights = self._gradient = self._streams = None
        return super().train(*args, **options)

    def training_step(self, model: nn.Module, inputs: Any, num_items_in_batch: Any = None) -> Tensor:
        """Leave the gradient of a whole step in `.grad`, at its last micro-batch; the others only count."""
        if not self.accelerator.sync_gradients:
            return torch.zeros((), device=self.args.device)
        step, k, place = self.state.global_step, self.args.gradient_accumulation_steps, self._place()
        if self._streams is None:
            self._trained()
            self._streams = self.task.streams(k * step, k * step, *place)
            if self._aligns and self.task.statistics.modules() == {}:
                self.task.statistics.begin_adaptation()
        source, target = (
            micro_batches(stream, k, self.args.device) if wanted else []
            for stream, wanted in zip(self._streams, (True, self._aligns), strict=True)
        )
        torch.manual_seed(step_seed(self.args.seed, step, place[0]))
        self.task.statistics.train_mode(model)
        try:
            done = progress(step, self.state.max_steps)
            self._report, self._figures = self._step_gradient().leave(source, target, step, done)
        except FloatingPointError as error:
            raise UserError(
                f"training diverged: {error} in step {step + 1}; lower learning_rate or coordination's inner_lr"
            ) from error
        losses = (self._report.task_loss, self._report.alignment_loss)
        return torch.stack([loss.float() for loss in losses if loss is not None]).sum().to(self.args.device)

    @property
    def _aligns(self) -> bool:
        return self.config.coordination.method != "source_only"

    def _place(self) -> tuple[int, int]:
        return self.accelerator.process_index, self.accelerator.num_processes

    def _step_gradient(self) -> StepGradient:
        """Built once model and optimiser are wrapped."""
        if self._gradient is None:
            weights = self._trained()
            self._gradient = StepGradient(
                self.config,
                self.task,
                weights.model,
                self.optimizer,
                self.accelerator,
                teacher=lambda: weights.evaluated,
            )
        return self._gradient

    def _trained(self) -> Weights:
        """The model while it is trained, and its average where one is kept; built once the model is wrapped."""
        if self._weights is None:
            decay = average_decay(self.config.training, self.task.target_losses)
            self._weights = Weights(self.model_wrapped, self.task.processor, self.accelerator, decay)
        return self._weights

    def _drop_average(self) -> None:
        self._weights = self._gradient = None

    @property
    def _average(self) -> nn.Module | None:
        """The average of the weights, as long as it is kept beside the model."""
        average = None if self._weights is None else self._weights.average
        return None if average is None else average.module

    @property
    def _evaluated(self) -> Any:
        return self.model if self._average is None else self._average

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """As Trainer's, with what the last step measured: both losses, the cosine of the gradients, target losses."""
        if "loss" in logs and self._report is not None:
            figures = self._step_gradient().measured(self._report)
            logs |= {name: float(figures[name]) for name in _MEASURED if name in figures}
            logs |= {name: float(value) for name, value in self._figures.items()}
        super().log(logs, start_time)

    # Evaluation

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: list[str] | None = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """Figures on the test images of source and target, and scores without target labels where these are asked for.

        Args:
            eval_dataset: `{"source": ..., "target": ...}`, or a data set of the target; by default those given before.
            ignore_keys: Not read.
            metric_key_prefix: What the names of the metrics start with.

        Returns:
            The metrics.
        """
        self._memory_tracker.start()
        started, place = time.time(), self._place()
        kept: dict[str, Any] = {}
        views = self._views(eval_dataset)
        self._synchronise()
        metrics: dict[str, float] = {}
        for domain, view in views.items():
            found = self.task.scores(self._evaluated, domain, view, *place, kept)
            named = {measure.name: found[measure.name] for measure in self.task.kind.measures}
            metrics |= {f"{domain}_{name}": value for name, value in named.items() if value is not None}
        if self.args.validators and eval_dataset is None:
            scores = self.task.validate(self._evaluated, *place, kept)
            metrics |= {f"validator_{name}": value for name, value in scores.items()}
        metrics = {f"{metric_key_prefix}_{name}": float(value) for name, value in metrics.items()}
        images = sum(len(view) for view in views.values())
        metrics |= speed_metrics(metric_key_prefix, started, num_samples=images)
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        self._memory_tracker.stop_and_update_metrics(metrics)
        return metrics

    def _synchronise(self) -> None:
        """Give all processes the same running statistics."""
        self.task.statistics.synchronise(self.accelerator.unwrap_model(self._evaluated, keep_torch_compile=False))

    def _views(self, given: Any) -> dict[str, Any]:
        if given is None:
            return dict(self.eval_dataset or {})
        tests = given if isinstance(given, Mapping) else {"target": given}
        pair = self.task.pair
        read = pair_of(pair.source_train, pair.target_train, tests, pair.labels, self.task.annotations)
        return evaluation_views(read)

    def predict(
        self, test_dataset: Any, ignore_keys: list[str] | None = None, metric_key_prefix: str = "test"
    ) -> PredictionOutput:
        """The logits of a classifier for images, with figures where these have labels.

        Args:
            test_dataset: A data set as `target_dataset` takes it; its classes agree with the model's by name.
            ignore_keys: Not read.
            metric_key_prefix: What the names of the metrics start with.

        Returns:
            `predictions` `(N, K)`, `label_ids` `(N,)` or None, and `metrics`, empty without labels.

        Raises:
            UserError: If the data set cannot be read, its class names differ, or the model is a detector, which
                `metaalign predict` asks.
        """
        view = test_view(test_dataset, self.task.pair.labels, self.task.annotations)
        self._synchronise()
        started = time.time()
        predictions, found = self.task.predictions(self._evaluated, view, *self._place())
        measured = {m.name: found[m.name] for m in self.task.kind.measures} if found is not None else {}
        metrics = {f"{metric_key_prefix}_{name}": float(v) for name, v in measured.items() if v is not None}
        metrics = {name: value for name, value in metrics.items() if not math.isnan(value)}
        metrics |= speed_metrics(metric_key_prefix, started, num_samples=len(view))
        labels = None if view.labels is None else np.asarray(view.labels)
        output = PredictionOutput(predictions=predictions, label_ids=labels, metrics=metrics)
        self.control = self.callback_handler.on_predict(self.args, self.state, self.control, output.metrics)
        return output

    # Checkpoints

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        super()._save_optimizer_and_scheduler(output_dir)
        save_state(Path(output_dir), *self._state(), write=self.args.should_save)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is None:
            return
        self._trained()  # its average is a copy of the model, as the checkpoint has it
        if self._aligns:
            self.task.statistics.begin_adaptation()
        load_state(Path(checkpoint), *self._state())

    def _state(self) -> tuple[Weights, dict[str, nn.Module], Coordinator, list[TargetLoss]]:
        """What a checkpoint holds beside what Trainer writes."""
        gradient = self._step_gradient()
        return self._trained(), self.task.statistics.modules(), gradient.coordinator, self.task.target_losses

    def _load_best_model(self) -> None:
        super()._load_best_model()
        self._drop_average()  # the model holds the average of its step

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        """As Trainer's, the average of the weights where one is kept, without the pickle of the arguments."""
        average = self._average
        super()._save(output_dir, state_dict if average is None else average.state_dict())
        if self.args.should_save:
            (Path(output_dir or self.args.output_dir) / _ARGUMENTS).unlink(missing_ok=True)


def _numbered(numbers: list[int]) -> dict[str, int]:
    return {"micro_batch": numbers[0]}
