"""The typed configuration of a training run: six dataclasses, one YAML file."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from ..checks import LARGEST_SEED, PROMPT, Limits, check_lora, check_pretrained, check_prompts
from ..errors import UserError
from .data import DataConfig
from .durations import seconds_of
from .hub import HubConfig
from .reading import own_inner_lr, own_rule
from .section import Section

__all__ = ["Config", "CoordinationConfig", "HubConfig", "ModelConfig", "OptimizerConfig", "TrainingConfig"]


@dataclass
class ModelConfig(Section):
    """The model to adapt.

    Args:
        backbone: timm name, Hub id, local folder, model type of transformers, or a configuration with model_type.
        pretrained: true, false (random weights, no network for timm names and model types), or where the weights are.
        backbone_options: Entries of the backbone's configuration, or arguments of timm.create_model.
        bottleneck_dim: Width of a bottleneck before the classifier; null has none.
        bottleneck_kind: linear, or batch_norm (and a batch normalisation); both fold into the classifier when exported.
        alignment: Alignment objective, or for detectors level or preset: a name, a mapping with name, weight and
            options, a list of those, or null. auto: cdan for classifiers, detr for detectors.
        detector: For object detection, in the backbone's place: Hub id, local folder, model type of transformers
            (d_fine, rt_detr, detr ...), or a configuration with model_type.
        detector_options: Entries of the detector's configuration.
        checkpoint: A metaalign checkpoint (folder, Hub id or id@revision) to go on adapting; backbone (or
            detector) and alignment heads are then its own, and its classes must be those of the data.
        attention: Attention kernel of transformers, such as eager or sdpa; null takes the default. timm backbones
            switch between eager and their fused kernel.
        freeze: Part of the backbone that does not train: all, none, or for classifiers a number of its stages, counted
            from the images (the stem is the first one; a ViT has quarters). Its batch normalisation keeps its
            statistics, its dropout is off. What the frozen part gives is computed once for each image where that can
            be (data.cache_features).
        head: Where a classifier's head starts. linear, from random weights; zero_shot, from the text embeddings of the
            class names: backbone is then a dual encoder with its tokenizer (CLIP, SigLIP, SigLIP 2; Hub id or folder).
        prompt: With head zero_shot, the text that is embedded for a class, with {label} for its name; or a list of
            several, whose embeddings are averaged.
        lora: Low-rank adapters in the linear layers of a classifier's backbone, which train in its place (needs peft):
            a mapping with r (16), alpha (r) and target_modules (auto, all; or a list of last parts of their names, such
            as qkv); null has none.
        labels: With head zero_shot and data.source none, the class names; null takes those that the target has.
    """

    backbone: str | dict[str, Any] = "timm/resnet50.a1_in1k"
    pretrained: bool | str = True
    backbone_options: dict[str, Any] = field(default_factory=dict)
    bottleneck_dim: int | None = None
    bottleneck_kind: Literal["linear", "batch_norm"] = "batch_norm"
    alignment: Any = "auto"
    detector: str | dict[str, Any] | None = None
    detector_options: dict[str, Any] = field(default_factory=dict)
    checkpoint: str | None = None
    attention: str | None = None
    freeze: Literal["none", "all"] | int = "none"
    head: Literal["linear", "zero_shot"] = "linear"
    prompt: str | list[str] = PROMPT
    labels: list[str] | None = None
    lora: dict[str, Any] | None = None

    SECTION = "model"
    LIMITS: ClassVar[Mapping[str, Limits]] = {"bottleneck_dim": Limits(1), "freeze": Limits(1)}

    def check(self) -> None:
        """As `Section.check`, and what the values must be together."""
        super().check()
        check_pretrained(self.pretrained, "model.pretrained")
        if self.lora is not None:
            check_lora(self.lora, "model.lora")
            if self.freeze != "none":
                raise UserError(
                    "model.freeze: adapters (model.lora) leave the backbone as it is anyway; drop one of them"
                )
        if self.head == "zero_shot":
            if not isinstance(self.backbone, str):
                raise UserError("model.backbone: with head zero_shot it is the Hub id or the folder of a dual encoder")
            check_prompts(self.prompt, "model.prompt")


@dataclass
class CoordinationConfig(Section):
    """How task and alignment share a step.

    Args:
        method: metaalign (the two play meta-train and meta-test), joint (their plain sum), extragradient or heun (two
            joint passes, the second after a trial step), pga (each objective's gradient after a step up its own and
            down the other's), source_only (no alignment) or target_only (the target losses alone; what data.source none
            stands for).
        direction: For metaalign, what the inner step follows: remembered, a gradient that an earlier step has left, so
            that a step costs little more than a joint one; fresh, the gradient of the meta-train objective in this
            step, in a pass of its own, as published.
        remember: With direction remembered: total, the last step's whole gradient; role, that of the meta-train
            objective, taken apart from the other's in every refresh_every-th step.
        refresh_every: See remember.
        inner_rule: fixed, inner_lr is a factor on each group's learning rate (or absolute, see relative), as published;
            update, every tensor moves inner_lr times as far as the optimiser has just moved it; trust_ratio, by the
            share inner_lr of its own length; normalised, all parameters together move by the distance inner_lr. auto:
            update with direction remembered, normalised for pga, else fixed.
        inner_lr: Inner step size, see inner_rule. null: 3 with direction remembered, 0.05 for pga, else 1.
        relative: Whether inner_lr multiplies the learning rate (rule fixed).
        first: The objective that is meta-train in the first step.
        roles: alternate, the roles swap every swap_every steps; task or alignment, that objective is always meta-train.
        swap_every: Steps between swaps.
        order: 1, perturb and restore; or 2, which adds the second-order term at three to four times the cost of a joint
            step (attention must be eager: model.attention eager).
        inner_scope: Parameters that take the inner step: all, last_stage (and the heads) or head.
        share_prefix: With inner_scope last_stage or head, run the layers before it once on the mixed batch for both
            passes, which makes the step nearly as cheap as a joint one.
        groups: none, or stage: one learned weight on the inner step per stage of the network, and a report by stage.
        weight_lr: Step size of these weights; 0 keeps them at 1.
        smoothing: Radius of a sharpness-aware task gradient (SDAT), such as 0.02, for metaalign and joint alike; it
            costs one more task pass a step. 0 takes the plain gradient.
        alignment_share: Scale the gradient that alignment sends into the network, so that at full strength it has this
            share of the task gradient's length, such as 0.25, whatever the units of the losses. Both are measured now
            and then, over the parameters that both train, which costs about a tenth of a joint step. Discriminators
            learn as ever, and weights in model.alignment count among its objectives alone. null leaves it as it is.
    """

    method: Literal["metaalign", "joint", "extragradient", "heun", "pga", "source_only", "target_only"] = "metaalign"
    direction: Literal["remembered", "fresh"] = "remembered"
    remember: Literal["total", "role"] = "total"
    refresh_every: int = 4
    inner_rule: Literal["auto", "fixed", "update", "trust_ratio", "normalised"] = "auto"
    inner_lr: float | None = None
    relative: bool = True
    first: Literal["task", "alignment"] = "task"
    roles: Literal["alternate", "task", "alignment"] = "alternate"
    swap_every: int = 1
    order: Literal[1, 2] = 1
    inner_scope: Literal["all", "last_stage", "head"] = "all"
    share_prefix: bool = True
    groups: Literal["none", "stage"] = "none"
    weight_lr: float = 0.1
    smoothing: float = 0.0
    alignment_share: float | None = None

    SECTION = "coordination"
    LIMITS: ClassVar[Mapping[str, Limits]] = {
        "inner_lr": Limits(0),
        "swap_every": Limits(1),
        "refresh_every": Limits(1),
        "weight_lr": Limits(0),
        "smoothing": Limits(0),
        "alignment_share": Limits(0, inside=True),
    }

    @property
    def inner_step(self) -> tuple[str, float]:
        """Rule and size of the inner step; where none is named, those of the method."""
        rule = own_rule(self.method, self.direction) if self.inner_rule == "auto" else self.inner_rule
        return rule, own_inner_lr(self.method, self.direction) if self.inner_lr is None else self.inner_lr

    def check(self) -> None:
        """As `Section.check`, and what the values must be together."""
        super().check()
        if self.smoothing > 0 and self.method == "metaalign" and self.inner_scope != "all" and self.share_prefix:
            raise UserError("coordination.smoothing: a shared prefix cannot be smoothed; set share_prefix to false")
        rule, _ = self.inner_step
        if self.inner_lr is None and rule != own_rule(self.method, self.direction):
            raise UserError(f"coordination.inner_lr: it must be set with inner_rule: {rule}")
        if self.inner_lr is not None and self.inner_lr >= 1 and rule == "trust_ratio":
            raise UserError(
                f"coordination.inner_lr is {self.inner_lr}: with inner_rule trust_ratio it is the share "
                "of its own length that a tensor moves by; it must be below 1, such as 0.03"
            )


@dataclass
class OptimizerConfig(Section):
    """The optimiser of both phases.

    Args:
        name: sgd (momentum 0.9, nesterov) or adamw.
        lr: Learning rate of the backbone.
        weight_decay: Weight decay; adamw spares biases and norms, sgd decays all as published.
        head_multiplier: Learning rate of bottleneck, classifier and bridges, relative to the backbone's.
        discriminator_multiplier: Learning rate of the discriminators, relative to the backbone's.
        discriminator_inner_multiplier: Factor on the inner step of the discriminators under inner_rule fixed; 0.1
            cancels their multiplier of 10, as in the published code.
        schedule: inverse, lr (1 + 0.001 i)^-0.75; cosine, to 0 at the end; or constant. Each phase starts anew.
        warmup_steps: Steps of linear warm-up at the start of each phase.
    """

    name: Literal["sgd", "adamw"] = "sgd"
    lr: float = 1e-3
    weight_decay: float = 1e-3
    head_multiplier: float = 10.0
    discriminator_multiplier: float = 10.0
    discriminator_inner_multiplier: float = 0.1
    schedule: Literal["inverse", "cosine", "constant"] = "inverse"
    warmup_steps: int = 0

    SECTION = "optimizer"
    LIMITS: ClassVar[Mapping[str, Limits]] = {
        "lr": Limits(0),
        "weight_decay": Limits(0),
        "head_multiplier": Limits(0),
        "discriminator_multiplier": Limits(0),
        "discriminator_inner_multiplier": Limits(0),
        "warmup_steps": Limits(0),
    }


@dataclass
class TrainingConfig(Section):
    """The course of a run.

    Args:
        output_dir: Folder for the checkpoint, metrics and summary; must be new, or hold this very run to resume.
        source_steps: Steps of the source phase: task loss alone, on the source. Its end is "before".
        max_steps: Steps of the adaptation phase. Its end is "after". With resume and a checkpoint (checkpoint_every) it
            may be raised, also for a finished run, where that gives the weights of a run that was so long from the
            start: not with schedule cosine, recalibrate_bn target or an objective with gradient reversal (dann, cdan,
            gvb, mdd, osbp; all of detectors), which depend on the number of steps.
        batch_size: Images of each domain in a micro-batch, per process.
        gradient_accumulation_steps: Micro-batches of each domain in a step.
        max_grad_norm: Clip the norm of the total gradient; null does not clip.
        batch_norm: Batch normalisation of the backbone. train: as published, every pass moves its running statistics,
            also the task's pass on the source alone. mixed: every pass is on both domains, as in a joint step, and one
            moves the statistics; a metaalign step then costs two joint ones, or little more than one with inner_scope
            last_stage. per_domain: source and target rows are normalised each by their own statistics, the task's pass
            is on the source alone, and the saved model holds the target's. frozen: pretrained statistics stay. auto:
            frozen with pretrained weights, else mixed.
        recalibrate_bn: target re-estimates the running statistics of batch normalisation on unlabelled target training
            images (AdaBN) in every evaluated and saved model of the adaptation phase; none leaves them.
        mixed_precision: no, bf16, fp16, or auto: bf16 on a GPU that computes in it, else no.
        device: auto, cpu or cuda.
        gradient_checkpointing: Recompute activations of the backbone in the backward pass to save memory.
        compile: Compile the model with torch.compile.
        ema_decay: Decay of an exponential moving average of the weights, such as 0.999; the average is then what is
            evaluated and saved. null keeps none, unless a target loss has the average for a teacher: then 0.999.
        target_losses: Further loss terms on target images: a name, a mapping with name, weight and options, a list of
            those, or null. For classifiers self_training (labels of the average of the weights, threshold 0.9, learned
            on a strong view), masked_consistency (the same on a view with patches left out) and
            information_maximization (sure and diverse predictions); for detectors mean_teacher (threshold 0.5, or
            counts, so that it finds as many objects of a class in an image as the source has). burn_in and ramp_up are
            the shares of the adaptation in which a weight is 0 yet, and then rises. They are part of the task loss;
            with model.alignment null they take the place of alignment.
        pseudo_label_weight: For detectors, the weight of mean_teacher in target_losses in other words: the detection
            loss on a strong view (colours, blur) of the target images with the boxes that the average of the weights
            (ema_decay) finds in them. 0 is off.
        pseudo_label_threshold: Least score of such a box: one number, or one for each class name.
        seed: Seed of everything random.
        evaluate_every: Steps between evaluations; 0 evaluates only at the end of each phase, null also within the
            adaptation phase, at most ten times, at least 100 steps apart, and so rarely that all evaluations take about
            a tenth of the run at most.
        metric: Of classifiers, the figure that heads the summary, the progress lines and the tables of checkpoints, and
            that select_tolerance is measured in: accuracy; balanced_accuracy, the mean over classes of each class's
            share; or average_precision, with two classes that of the positive class, the last label, otherwise the mean
            over classes. All three are reported.
        select_by: Validator (bnm, mutual_information, entropy, snd, dev, a_distance, agreement, source_accuracy; for
            detectors agreement or entropy) that selects among the models evaluated from the end of the source phase on,
            without target labels; auto: bnm, and agreement for detectors and without a source; null selects none. The
            last model is saved in output_dir, a selected earlier one in output_dir/selected.
        select_tolerance: How far the source figure of the selected checkpoint may lie below the best one, 0..1.
        selection_images: Largest number of held-out source images, and of target training images, for the validators.
        baseline: Also train the same number of steps on the source alone, from the same seed, in output_dir/baseline,
            and state the gain against it.
        log_every: Steps between lines of metrics.jsonl.
        checkpoint_every: Steps between resumable checkpoints; null writes one every ten minutes, and 0 none. A run that
            is stopped by a signal, or by max_time, writes one in any case.
        keep_checkpoints: How many of the newest checkpoints stay.
        evaluation_batch_size: Images in an evaluation batch.
        trackers: Experiment trackers of accelerate, such as tensorboard, trackio or wandb. They get the numbers and, at
            evaluations, the curves where they take images.
        tracker_options: What a tracker is started with, by its name, such as {trackio: {space_id: me/space}}.
        resume: auto (or true) goes on from the newest checkpoint in output_dir that is not damaged, and starts from the
            beginning where there is none; never (or false) refuses a folder that holds a run; or the folder of a
            checkpoint in output_dir, from which the run goes on, whatever came after.
        max_time: Stop after this time: save a checkpoint and exit with code 124, to go on with resume. Seconds, or a
            text such as 3h50m, 90m or 45s; null has no limit.
        max_bad_steps: A step whose losses or gradients are not finite is skipped: nothing changes but the count. After
            so many in a row the run stops, and bad_step.json in output_dir says what was in the batch. 0 stops at the
            first.
    """

    output_dir: str = "runs/adaptation"
    source_steps: int = 0
    max_steps: int = 1000
    batch_size: int = 24
    gradient_accumulation_steps: int = 1
    max_grad_norm: float | None = None
    batch_norm: str = "auto"
    recalibrate_bn: Literal["none", "target"] = "none"
    mixed_precision: Literal["no", "bf16", "fp16", "auto"] = "no"
    device: Literal["auto", "cpu", "cuda"] = "auto"
    gradient_checkpointing: bool = False
    compile: bool = False
    ema_decay: float | None = None
    target_losses: Any = None
    pseudo_label_weight: float = 0.0
    pseudo_label_threshold: float | dict[str, float] = 0.5
    seed: int = 0
    evaluate_every: int | None = None
    metric: Literal["accuracy", "balanced_accuracy", "average_precision"] = "accuracy"
    select_by: str | None = "auto"
    select_tolerance: float = 0.05
    selection_images: int = 512
    baseline: bool = False
    log_every: int = 20
    checkpoint_every: int | None = None
    keep_checkpoints: int = 2
    evaluation_batch_size: int = 64
    trackers: list[str] = field(default_factory=list)
    tracker_options: dict[str, dict[str, Any]] | None = None
    resume: bool | str = "never"
    max_time: float | str | None = None
    max_bad_steps: int = 3

    SECTION = "training"
    LIMITS: ClassVar[Mapping[str, Limits]] = {
        "source_steps": Limits(0),
        "max_steps": Limits(1),
        "batch_size": Limits(1),
        "gradient_accumulation_steps": Limits(1),
        "max_grad_norm": Limits(0, inside=True),
        "ema_decay": Limits(0, 1, inside=True),
        "pseudo_label_weight": Limits(0),
        "seed": Limits(0, LARGEST_SEED),
        "evaluate_every": Limits(0),
        "select_tolerance": Limits(0, 1),
        "selection_images": Limits(1),
        "log_every": Limits(1),
        "checkpoint_every": Limits(0),
        "max_time": Limits(0, inside=True),
        "max_bad_steps": Limits(0),
        "keep_checkpoints": Limits(1),
        "evaluation_batch_size": Limits(1),
    }

    @property
    def target_loss_specs(self) -> list[Any]:
        """The target losses as a list, those that `pseudo_label_weight` stands for among them."""
        given = self.target_losses
        listed = list(given) if isinstance(given, list | tuple) else [] if given is None else [given]
        if self.pseudo_label_weight == 0:
            return listed
        weight, threshold = self.pseudo_label_weight, self.pseudo_label_threshold
        return [{"name": "mean_teacher", "weight": weight, "threshold": threshold}, *listed]

    def check_values(self) -> None:
        """The threshold of pseudo-labels, one number or one for each class, lies in 0..1."""
        threshold = self.pseudo_label_threshold
        for name, value in threshold.items() if isinstance(threshold, dict) else [("", threshold)]:
            if not 0 <= value <= 1:
                key = f"training.pseudo_label_threshold{f' of {name}' if name else ''}"
                raise UserError(f"{key} is {value}: it must lie in 0..1")

    def check(self) -> None:
        """As `Section.check`, and what the values must be together."""
        super().check()
        if isinstance(self.resume, bool):
            self.resume = "auto" if self.resume else "never"
        if self.max_time is not None:
            seconds_of(self.max_time, "training.max_time")
        for name in self.tracker_options or {}:
            if name not in self.trackers:
                raise UserError(
                    f"training.tracker_options: {name} is not among training.trackers; add it, or leave it out"
                )
        if self.pseudo_label_weight > 0 and self.ema_decay is None:
            raise UserError(
                "training.pseudo_label_weight: its teacher is the average of the weights; set training.ema_decay: 0.999"
            )


@dataclass
class Config:
    """A whole run.

    Args:
        data: The domain pair and its preprocessing.
        model: The model to adapt.
        coordination: How task and alignment share a step.
        optimizer: The optimiser.
        training: The course of the run.
        hub: Pushing to the Hub.
    """

    data: DataConfig
    model: ModelConfig = field(default_factory=ModelConfig)
    coordination: CoordinationConfig = field(default_factory=CoordinationConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    hub: HubConfig = field(default_factory=HubConfig)

    def __post_init__(self) -> None:
        self.check()

    def check(self) -> None:
        """Refuse values that no run can use, alone or together; a section may have been changed since it was made.

        Raises:
            UserError: For the first one.
        """
        for section in (self.data, self.model, self.coordination, self.optimizer, self.training, self.hub):
            section.check()
        method, training = self.coordination.method, self.training
        self._check_source()
        if training.target_loss_specs and method == "source_only":
            key = "pseudo_label_weight" if training.pseudo_label_weight > 0 else "target_losses"
            raise UserError(
                f"training.{key}: source_only reads no target; set coordination.method to joint or metaalign"
            )
        if training.baseline and method == "source_only" and training.recalibrate_bn == "none":
            raise UserError(
                "training.baseline: the run is a source-only one itself; set it to false, or coordination.method to "
                "joint or metaalign, or training.recalibrate_bn to target"
            )
        share = self.coordination.alignment_share
        if share is not None and self.model.alignment is None and self.model.checkpoint is None:
            raise UserError(
                f"coordination.alignment_share is {share}: with model.alignment null there is nothing to scale; drop it"
            )
        for key in ("gradient_checkpointing", "compile"):
            if self.coordination.order == 2 and getattr(training, key):
                raise UserError(f"coordination.order: 2 does not work with training.{key}; switch one off")

    def _check_source(self) -> None:
        """Refuse what does not work without a source."""
        method, training = self.coordination.method, self.training
        if self.data.source is not None:
            if self.model.labels is not None:
                raise UserError("model.labels: the classes are those of data.source; leave it out")
            if method == "target_only":
                raise UserError(
                    "coordination.method: target_only is for adapting without a source; set data.source: none"
                )
            return
        if self.model.checkpoint is None and self.model.head != "zero_shot":
            raise UserError(
                "data.source is none: without a source a finished model is adapted; name it with model.checkpoint, or "
                "set model.head: zero_shot"
            )
        if method != "target_only":
            raise UserError(
                f"coordination.method is {method}: without a source (data.source none) the target losses are all there "
                "is; leave it out, or set it to target_only"
            )
        if not training.target_loss_specs:
            raise UserError(
                "training.target_losses: without a source (data.source none) there is nothing else to learn from; name "
                "one, such as information_maximization"
            )
        needing = {
            "training.source_steps": training.source_steps > 0,
            "training.baseline": training.baseline,
            "data.target_labeled": self.data.target_labeled is not None,
            "training.batch_norm: per_domain": training.batch_norm == "per_domain",
            "training.select_by: source_accuracy": training.select_by == "source_accuracy",
        }
        for key in (key for key, wrong in needing.items() if wrong):
            raise UserError(f"{key}: it needs a source, and data.source is none; leave it out")
