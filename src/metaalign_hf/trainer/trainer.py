"""MetaAlign as a subclass of the transformers Trainer."""

from __future__ import annotations

import json
import math
import shutil
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.data import BatchSampler, DataLoader, SequentialSampler
from transformers import PreTrainedModel, Trainer, TrainerCallback
from transformers.trainer_utils import HubStrategy, PredictionOutput, speed_metrics
from transformers.utils import PushInProgress

from ..coordination import StepReport
from ..data import DomainPair
from ..errors import UserError
from ..hub import push, write_card
from ..run_folder import MODEL_CONFIG_FILE, WEIGHT_FILES
from ..tasks.building import build_task, described_task
from ..training.checkpoints import load_modules, whole_tensors
from ..training.gradient import StepGradient, step_seed
from ..training.optimizers import parameter_groups
from ..training.schedules import progress
from ..training.steps import micro_batches
from .arguments import MetaAlignTrainingArguments
from .datasets import evaluation_views, pair_of, test_view

__all__ = ["MetaAlignTrainer"]

_STATE = "metaalign_state.json"
_ARGUMENTS = "training_args.bin"
_MEASURED = ("task_loss", "alignment_loss", "cosine", "inner_product")


class MetaAlignTrainer(Trainer):
    """Adapts a model from a labelled source to an unlabelled target, with the loop, logs and checkpoints of Trainer.

    A step is that of `metaalign_hf.adapt`: on the same images it leaves the same gradient, bit for bit. Learning rate,
    clipping, evaluation, checkpoints, callbacks and trackers are Trainer's. A run that is resumed from a checkpoint is
    the run that never stopped: images and random numbers depend on the step alone, and what the coordinator remembers
    is in the checkpoint.

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
    push_in_progress: Any

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
        _check_arguments(args)
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
        if taught := [loss.name for loss in self.task.target_losses if loss.needs_teacher]:
            raise UserError(
                f"target_losses: {taught[0]} needs an average of the weights (ema_decay), and Trainer keeps none; use "
                "`metaalign train` or metaalign_hf.adapt"
            )
        views = evaluation_views(self.task.pair)
        self._gradient: StepGradient | None = None
        self._streams: tuple[Iterator[Any], Iterator[Any]] | None = None
        self._report: StepReport | None = None
        super().__init__(
            model=model,
            args=args,
            train_dataset=self.task.pair.source_train,
            eval_dataset=views or None,
            processing_class=self.task.processor,
            callbacks=callbacks,
            optimizers=optimizers,
        )
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
        self._gradient = self._streams = None
        return super().train(*args, **options)

    def training_step(self, model: nn.Module, inputs: Any, num_items_in_batch: Any = None) -> Tensor:
        """Leave the gradient of a whole step in `.grad`, at its last micro-batch; the others only count."""
        if not self.accelerator.sync_gradients:
            return torch.zeros((), device=self.args.device)
        step, k, place = self.state.global_step, self.args.gradient_accumulation_steps, self._place()
        if self._streams is None:
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
            self._report, _ = self._step_gradient().leave(source, target, step, done)
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
            model = self.model_wrapped
            self._gradient = StepGradient(
                self.config, self.task, model, self.optimizer, self.accelerator, teacher=lambda: model
            )
        return self._gradient

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """As Trainer's, with what the last step measured: both losses, and the cosine of the gradients if known."""
        if "loss" in logs and self._report is not None:
            figures = self._report.to_dict()
            logs |= {name: float(figures[name]) for name in _MEASURED if name in figures}
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
        self.task.statistics.synchronise(self.accelerator.unwrap_model(self.model, keep_torch_compile=False))
        metrics: dict[str, float] = {}
        for domain, view in views.items():
            found = self.task.scores(self.model, domain, view, *place, kept)
            named = {measure.name: found[measure.name] for measure in self.task.kind.measures}
            metrics |= {f"{domain}_{name}": value for name, value in named.items() if value is not None}
        if self.args.validators and eval_dataset is None:
            scores = self.task.validate(self.model, *place, kept)
            metrics |= {f"validator_{name}": value for name, value in scores.items()}
        metrics = {f"{metric_key_prefix}_{name}": float(value) for name, value in metrics.items()}
        images = sum(len(view) for view in views.values())
        metrics |= speed_metrics(metric_key_prefix, started, num_samples=images)
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        self._memory_tracker.stop_and_update_metrics(metrics)
        return metrics

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
        self.task.statistics.synchronise(self.accelerator.unwrap_model(self.model, keep_torch_compile=False))
        started = time.time()
        predictions, found = self.task.predictions(self.model, view, *self._place())
        measured = {m.name: found[m.name] for m in self.task.kind.measures} if found is not None else {}
        metrics = {f"{metric_key_prefix}_{name}": float(v) for name, v in measured.items() if v is not None}
        metrics = {name: value for name, value in metrics.items() if not math.isnan(value)}
        metrics |= speed_metrics(metric_key_prefix, started, num_samples=len(view))
        labels = None if view.labels is None else np.asarray(view.labels)
        output = PredictionOutput(predictions=predictions, label_ids=labels, metrics=metrics)
        self.control = self.callback_handler.on_predict(self.args, self.state, self.control, output.metrics)
        return output

    # Checkpoints

    def _modules(self) -> dict[str, nn.Module]:
        """What a checkpoint holds beside what Trainer writes."""
        memory = self._step_gradient().coordinator.memory
        return {**({} if memory is None else {"coordination": memory}), **self.task.statistics.modules()}

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        super()._save_optimizer_and_scheduler(output_dir)
        files = {name: whole_tensors(module.state_dict()) for name, module in self._modules().items()}
        if not self.args.should_save:
            return
        for name, tensors in files.items():
            save_file(tensors, Path(output_dir) / f"{name}.safetensors")
        state = {
            "coordinator": self._step_gradient().coordinator.state_dict(),
            "target_losses": {loss.name: loss.state_dict() for loss in self.task.target_losses},
        }
        (Path(output_dir) / _STATE).write_text(json.dumps(state, indent=2) + "\n")

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is None:
            return
        folder = Path(checkpoint)
        if not (folder / _STATE).is_file():
            raise UserError(f"checkpoint {checkpoint}: it has no {_STATE}; it is not one of MetaAlignTrainer")
        if self._aligns:
            self.task.statistics.begin_adaptation()
        load_modules(folder, self._modules())
        state = json.loads((folder / _STATE).read_text())
        self._step_gradient().coordinator.load_state_dict(state["coordinator"])
        for loss in self.task.target_losses:
            loss.load_state_dict(state["target_losses"][loss.name])

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        """As Trainer's, without the pickle of the arguments."""
        super()._save(output_dir, state_dict)
        if self.args.should_save:
            (Path(output_dir or self.args.output_dir) / _ARGUMENTS).unlink(missing_ok=True)

    # The Hub

    def create_model_card(self, *args: Any, license: str | None = None, **options: Any) -> None:
        """Write the card of the package into the output folder; a card that somebody has edited stays."""
        if self.is_world_process_zero():
            write_card(Path(self.args.output_dir), self.hub_model_id or self.args.hub_model_id, license)

    def push_to_hub(
        self,
        commit_message: str | None = "End of training",
        blocking: bool = True,
        token: str | None = None,
        revision: str | None = None,
        private: bool | None = None,
        **options: Any,
    ) -> Any:
        """Save the model and push it as `metaalign push` does: weights, configuration and card, in one commit.

        Args:
            commit_message: Message of the commit.
            blocking: Whether to wait; else a future comes back.
            token: By default `hub_token`, or that of the environment.
            revision: Branch; by default `hub_revision`, or main.
            private: Whether a new repository is private; by default `hub_private_repo`.
            **options: As `metaalign_hf.push` takes them, such as `license`.
        """
        self.callback_handler.on_push_begin(self.args, self.state, self.control)
        token = self.args.hub_token if token is None else token
        if self.hub_model_id is None:
            self.init_hf_repo(token=token, private=private)
        self.save_model(_internal_call=True)
        if not self.is_world_process_zero():
            return None
        self.create_model_card(license=options.get("license"))
        self._finish_current_push()
        return self._push(Path(self.args.output_dir), commit_message, blocking, token, revision, **options)

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        if not self.is_world_process_zero() or self.args.hub_strategy == HubStrategy.END:
            return
        if not self.args.hub_always_push and self.push_in_progress is not None and not self.push_in_progress.is_done():
            return
        self._finish_current_push()
        self.callback_handler.on_push_begin(self.args, self.state, self.control)
        # Checkpoints are deleted in time; the output folder stays.
        folder = Path(self.args.output_dir)
        for path in Path(checkpoint_folder).iterdir():
            if path.name == MODEL_CONFIG_FILE or WEIGHT_FILES.fullmatch(path.name):
                shutil.copy(path, folder / path.name)
        self.processing_class.save_pretrained(folder)
        self.create_model_card()
        message = f"Training in progress, step {self.state.global_step}"
        self.push_in_progress = PushInProgress([self._push(folder, message, False, self.args.hub_token, None)])

    def _push(
        self, folder: Path, message: str | None, blocking: bool, token: str | None, revision: str | None, **options: Any
    ) -> Any:
        from huggingface_hub import HfApi

        def once() -> str:
            branch = self.args.hub_revision if revision is None else revision
            given: dict[str, Any] = {"commit_message": message, "token": token, "revision": branch, **options}
            return push(folder, str(self.hub_model_id), **given)

        return once() if blocking else HfApi().run_as_future(once)

    def _finish_current_push(self) -> None:
        super()._finish_current_push()
        if (current := getattr(self, "push_in_progress", None)) is not None:
            for job in current.jobs:
                job.result()  # a push that failed in the background is told


def _numbered(numbers: list[int]) -> dict[str, int]:
    return {"micro_batch": numbers[0]}


def _check_arguments(args: Any) -> None:
    """Refuse arguments of Trainer that nothing here would read, and classes without ours.

    Raises:
        UserError: For the first one.
    """
    if not isinstance(args, MetaAlignTrainingArguments):
        raise UserError(f"args is a {type(args).__name__}: use MetaAlignTrainingArguments, which has the same entries")
    if args.auto_find_batch_size:
        raise UserError("auto_find_batch_size: the batch size is fixed here; set per_device_train_batch_size")
    if args.label_smoothing_factor:
        raise UserError("label_smoothing_factor: the task loss is that of the model; leave it at 0")
    if (args.metric_for_best_model or "").removeprefix("eval_").startswith("target_"):
        raise UserError(
            f"metric_for_best_model: {args.metric_for_best_model} is measured with target labels, which choose nothing "
            "here; use validator_bnm, or source_accuracy"
        )
    if args.push_to_hub and args.hub_strategy in (HubStrategy.CHECKPOINT, HubStrategy.ALL_CHECKPOINTS):
        raise UserError("hub_strategy: checkpoints hold pickles, which are not pushed; use end or every_save")
