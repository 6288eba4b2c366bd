"""The training arguments of transformers, with what an adaptation adds to them."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any

from transformers import TrainingArguments
from transformers.trainer_utils import HubStrategy

from ..configuration import (
    Config,
    CoordinationConfig,
    DataConfig,
    DomainConfig,
    ModelConfig,
    OptimizerConfig,
    TrainingConfig,
)
from ..errors import UserError, did_you_mean

__all__ = ["MetaAlignTrainingArguments", "check_arguments"]


@dataclass
class MetaAlignTrainingArguments(TrainingArguments):
    """`transformers.TrainingArguments`, and the entries of an adaptation under the names that configurations use.

    Batch sizes count the images of each domain. The seed decides data order and augmentation as well (`data_seed` is
    not read). One run is one phase: adapt from a trained model, or train it first with
    `coordination={"method": "source_only"}`.

    Args:
        coordination: Entries of `CoordinationConfig`, such as `{"direction": "fresh", "inner_lr": 100}`.
        batch_norm: As `training.batch_norm`.
        target_losses: As `training.target_losses`, such as `{"name": "self_training", "threshold": 0.9}` for a
            classifier or `{"name": "mean_teacher", "threshold": 0.5}` for a detector.
        ema_decay: As `training.ema_decay`: decay of an average of the weights, which is then what is evaluated, saved
            and pushed. By default none is kept, unless a target loss has the average for a teacher: then 0.999.
        augmentation: As `data.augmentation`.
        image_size: As `data.image_size`, for classifiers.
        resize_size: As `data.resize_size`, for classifiers.
        detector_size: As `data.detector_size`, for detectors.
        head_multiplier: Learning rate of new layers, relative to `learning_rate`.
        discriminator_multiplier: The same for discriminators.
        discriminator_inner_multiplier: As `optimizer.discriminator_inner_multiplier`.
        validators: Whether an evaluation also judges the model without target labels; `metric_for_best_model` may name
            one of these scores, such as `validator_bnm`, or a figure of the source, but none of the target's.
        selection_images: Largest number of images of each domain for that.
    """

    # A plain class attribute of transformers: which entries may come as JSON from a command line.
    _VALID_DICT_FIELDS = [*TrainingArguments._VALID_DICT_FIELDS, "coordination", "target_losses"]  # noqa: RUF012

    coordination: dict | str | None = field(
        default=None, metadata={"help": "How task and alignment share a step, as JSON."}
    )
    batch_norm: str = field(default="auto", metadata={"help": "Whose statistics batch normalisation uses."})
    target_losses: dict | str | None = field(
        default=None, metadata={"help": "A further loss on target images: its name, or JSON with name and options."}
    )
    ema_decay: float | None = field(default=None, metadata={"help": "Keep an average of the weights, such as 0.999."})
    augmentation: str = field(default="crop_flip", metadata={"help": "Augmentation of training images."})
    image_size: int | None = field(default=None, metadata={"help": "Side of a classifier's images, in pixels."})
    resize_size: int | None = field(default=None, metadata={"help": "Their side before the crop."})
    detector_size: int | None = field(default=None, metadata={"help": "Size of a detector's images, in pixels."})
    head_multiplier: float = field(default=10.0, metadata={"help": "Learning rate of new layers, relative."})
    discriminator_multiplier: float = field(default=10.0, metadata={"help": "Learning rate of discriminators."})
    discriminator_inner_multiplier: float = field(
        default=0.1, metadata={"help": "Factor on the discriminators' inner step (inner_rule fixed)."}
    )
    validators: bool = field(default=True, metadata={"help": "Judge the model without target labels, too."})
    selection_images: int = field(default=512, metadata={"help": "Images of each domain for that, at most."})

    def __post_init__(self) -> None:
        super().__post_init__()
        self.adaptation()

    def adaptation(self) -> Config:
        """The configuration of the package that these arguments stand for.

        Raises:
            UserError: If an entry is unknown or out of range, or nothing would read it.
        """
        clip = self.max_grad_norm
        training: dict[str, Any] = {
            "output_dir": self.output_dir or "trainer_output",
            "batch_size": self.per_device_train_batch_size,
            "evaluation_batch_size": self.per_device_eval_batch_size,
            "gradient_accumulation_steps": self.gradient_accumulation_steps,
            "max_grad_norm": clip if clip and clip > 0 else None,
            "batch_norm": self.batch_norm,
            "gradient_checkpointing": bool(self.gradient_checkpointing),
            "compile": bool(self.torch_compile),
            "target_losses": self.target_losses,
            "ema_decay": self.ema_decay,
            "seed": self.seed,
            "selection_images": self.selection_images,
        }
        return Config(
            data=DataConfig(
                source=DomainConfig(kind="dataset", path="train_dataset"),
                target=DomainConfig(kind="dataset", path="target_dataset"),
                augmentation=self.augmentation,  # type: ignore[arg-type]
                image_size=self.image_size,
                resize_size=self.resize_size,
                detector_size=self.detector_size,
                num_workers=self.dataloader_num_workers,
            ),
            model=ModelConfig(),
            coordination=CoordinationConfig(**_known(self.coordination)),
            optimizer=OptimizerConfig(
                name="sgd" if str(self.optim) in ("sgd", "OptimizerNames.SGD") else "adamw",
                lr=self.learning_rate,
                weight_decay=self.weight_decay,
                head_multiplier=self.head_multiplier,
                discriminator_multiplier=self.discriminator_multiplier,
                discriminator_inner_multiplier=self.discriminator_inner_multiplier,
            ),
            training=TrainingConfig(**training),
        )


def check_arguments(args: Any) -> None:
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


def _known(entries: Any) -> dict[str, Any]:
    """The entries of the coordination, all of which exist."""
    if entries is None:
        return {}
    if not isinstance(entries, dict):
        raise UserError(f'coordination: {entries!r} is no mapping; write {{"method": "metaalign"}}')
    names = [entry.name for entry in fields(CoordinationConfig)]
    for key in entries:
        if key not in names:
            hint = did_you_mean(key, names)
            raise UserError(f"coordination.{key}: there is no such entry; {hint or 'valid: ' + ', '.join(names)}")
    return entries
