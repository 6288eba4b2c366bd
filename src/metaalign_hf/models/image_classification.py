"""An image classifier with domain-alignment heads."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import BitImageProcessor, PreTrainedConfig, PreTrainedModel

from ..alignment import AlignmentBatch
from ..checks import PROMPT
from ..errors import UserError
from .adapter_loading import from_adapters
from .backbone import build_backbone, load_pretrained_backbone, pooled_features, resolve_backbone
from .classifier_heads import ClassifierHeads, MetaAlignOutput
from .configuration import MetaAlignConfig, check_labels, configuration_on
from .dual_encoders import load_dual_encoder
from .freezing import freeze_parameters
from .frozen_part import FrozenPart
from .image_processor import build_image_processor, default_resize_size
from .lora import add_adapters, new_adapters, only_adapters_train
from .native_export import export_native

__all__ = ["MetaAlignForImageClassification", "MetaAlignOutput"]


class MetaAlignForImageClassification(ClassifierHeads):
    """Any image backbone, a linear classifier and alignment objectives.

    With f the pooled feature (after the bottleneck, if any) and V_j the linear bridges of the objectives (GVB)::

        logits = (W - sum_j V_j) f + (b - sum_j c_j)

    so that a bridge costs nothing at inference and folds exactly into a plain classifier (`export_native`). In
    evaluation mode the bottleneck is folded into the classifier as well, batch normalisation and all.

    Args:
        config: The configuration. Use `from_backbone` to start from a backbone, `from_pretrained` for a checkpoint.
    """

    config_class = MetaAlignConfig
    base_model_prefix = "backbone"
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True

    def __init__(self, config: MetaAlignConfig) -> None:
        super().__init__(config)
        self._frozen_part: FrozenPart | None = None
        self.backbone, backbone_dim = build_backbone(config.backbone_config)
        if config.lora is not None:
            add_adapters(self.backbone, config.lora)
        self._build_heads(backbone_dim)
        self.post_init()

    @classmethod
    def from_backbone(
        cls,
        name: str | dict[str, Any] | PreTrainedConfig,
        labels: list[str],
        alignment: Any = "cdan",
        *,
        pretrained: bool | str = True,
        bottleneck_dim: int | None = None,
        bottleneck_kind: Literal["linear", "batch_norm"] = "batch_norm",
        **backbone_options: Any,
    ) -> MetaAlignForImageClassification:
        """A classifier for `labels` on a backbone, ready to adapt.

        Args:
            name: `timm/resnet50.a1_in1k`, `resnet50`, `facebook/dinov2-base`, a local folder, a model type (`vit`), or
                a configuration; see `resolve_backbone`.
            labels: Class names in the order of the logits.
            alignment: A name, a dict with name, weight and options, a list of those, or None.
            pretrained: True, False (no network needed for timm names, types and configurations), or where to load the
                weights from.
            bottleneck_dim: Width of an optional bottleneck before the classifier.
            bottleneck_kind: `linear`, or `batch_norm` for a batch normalisation after the linear layer.
            **backbone_options: Entries of the backbone's configuration, or `timm.create_model` arguments.

        Returns:
            The model, with a fresh classifier.

        Raises:
            UserError: If the backbone, an objective or an option is unknown, or the labels are not at least two names.
        """
        check_labels(labels)
        source = resolve_backbone(name, pretrained, **backbone_options)
        model = cls(configuration_on(source, labels, alignment, bottleneck_dim, bottleneck_kind))
        if source.weights is not None:
            # Only now: building the model runs post_init, which would overwrite weights that were loaded before.
            model.backbone.load_state_dict(load_pretrained_backbone(source).state_dict())
        return model

    @classmethod
    def from_dual_encoder(
        cls,
        name: str,
        labels: list[str],
        alignment: Any = "cdan",
        *,
        images: Sequence[Tensor],
        prompts: str | Sequence[str] = PROMPT,
    ) -> MetaAlignForImageClassification:
        """A zero-shot classifier for `labels`: the image tower of a dual encoder, and a head from its text tower.

        Its predictions are the dual encoder's; see `ZeroShot.classifier` for what a plain classifier must leave out.

        Args:
            name: Hub id or folder of a CLIP, SigLIP or SigLIP 2 model with its tokenizer.
            labels: Class names in the order of the logits.
            alignment: As in `from_backbone`.
            images: A few images `(3, H, W)`, uint8, of any classes and sizes; a length is measured on them.
            prompts: A text with `{label}`, or several, whose embeddings are averaged.

        Returns:
            The model.

        Raises:
            UserError: If it is no dual encoder, cannot be loaded, or a prompt has no `{label}`.
        """
        check_labels(labels)
        encoder = load_dual_encoder(name, labels, prompts)
        model = cls(configuration_on(encoder.source, labels, alignment)).eval()
        model.backbone.load_state_dict(encoder.state)
        model.set_image_sizes(None, None)
        with torch.no_grad():
            pixels = model.image_processor()(list(images), input_data_format="channels_first", return_tensors="pt")
            weight, bias = encoder.classifier(model.pooled(pixels["pixel_values"]))
            model.classifier.weight.copy_(weight)
            model.classifier.bias.copy_(bias)
        return model

    @classmethod
    def from_pretrained(cls, *args: Any, output_loading_info: bool = False, **kwargs: Any) -> Any:
        """As its parent's; of a backbone with adapters they alone train, as when they were put in.

        Adapters that were pushed alone are read as well: their base model is loaded from where it is.

        Raises:
            UserError: If tensors are missing or have another shape than the configuration says; or the base model of
                adapters is out of reach or is another than they were trained on.
        """
        place = args[0] if args else kwargs.get("pretrained_model_name_or_path")
        if place is not None and (adapted := from_adapters(cls, str(place), kwargs)) is not None:
            nothing: dict[str, Any] = {key: set() for key in ("missing_keys", "unexpected_keys", "mismatched_keys")}
            return (adapted, nothing) if output_loading_info else adapted
        model, info = super().from_pretrained(*args, output_loading_info=True, **kwargs)
        if model.config.lora is not None:
            only_adapters_train(model.backbone)
        return (model, info) if output_loading_info else model

    def forward(
        self,
        pixel_values: Tensor,
        labels: Tensor | None = None,
        domain_labels: Tensor | None = None,
        progress: float = 1.0,
        objective: Literal["task", "alignment", "penalty"] | None = None,
        return_dict: bool | None = None,
        source_index: Tensor | None = None,
    ) -> MetaAlignOutput | tuple[Tensor, ...]:
        """One forward pass: logits, and the losses for which there are labels.

        Args:
            pixel_values: Images `(B, 3, H, W)`, normalised; or what was computed of them before, `(B, D)`: the features
                of the backbone (`pooled`), or what its frozen stages gave (`frozen_outputs`).
            labels: Class indices `(B,)`, -100 for rows without a label (the target's).
            domain_labels: `(B,)`, 0 for the source, 1.. for the target, and -100 for rows that take no part in
                alignment.
            progress: Training progress in 0..1, which sets the strength of gradient reversal.
            objective: Compute only this loss, and detach everything else in the output. For the split passes of
                MetaAlign: DistributedDataParallel then waits for no gradient that never comes. `penalty` leaves of the
                alignment loss the part that stands in the task loss as well, for the report of a step.
            return_dict: Whether to return a `MetaAlignOutput` (default) or a plain tuple.
            source_index: `(B,)`, the number of each source row's domain where there are several sources.

        Returns:
            The output; without labels and domain labels it holds logits and features only.
        """
        if pixel_values.ndim != 2:
            pooled = self.pooled(pixel_values)
        else:
            pooled = pixel_values if self._frozen_part is None else self._frozen_part.rest(pixel_values)
        features = pooled = self.head_entry(pooled)
        if self.bottleneck is not None:
            features = self.bottleneck(features)
        if self.training or self.no_native_form() is not None:
            logits = F.linear(features, *self.effective_classifier())
        else:  # just as the native form computes them
            logits = F.linear(pooled, *self.folded_classifier())
        task_loss = alignment_loss = parts = None
        if labels is not None and objective in (None, "task"):
            task_loss = self._task_loss(features, logits, labels)
        if domain_labels is not None and objective != "task" and self.alignment is not None:
            batch = AlignmentBatch(
                features=features,
                logits=logits,
                domain_labels=domain_labels,
                progress=progress,
                labels=labels,
                classifier_weight=self.effective_classifier()[0],
                source_index=source_index,
            )
            aligned = self._aligned(batch)
            alignment_loss, parts = aligned.penalty if objective == "penalty" else aligned.loss, aligned.parts
        losses = [value for value in (task_loss, alignment_loss) if value is not None]
        if objective is not None:
            if not losses:
                needed = "labels" if objective == "task" else "domain_labels and an alignment objective"
                raise ValueError(f"objective={objective!r} needs {needed}")
            features, logits = features.detach(), logits.detach()
        output = MetaAlignOutput(
            loss=torch.stack(losses).sum() if losses else None,
            logits=logits,
            task_loss=task_loss,
            alignment_loss=alignment_loss,
            features=features,
            parts=parts,
        )
        return output if return_dict is not False else output.to_tuple()

    def pooled(self, pixel_values: Tensor) -> Tensor:
        """The backbone's features `(B, D)` of images `(B, 3, H, W)`."""
        return pooled_features(self.backbone, pixel_values)

    def frozen_outputs(self, pixel_values: Tensor) -> Tensor:
        """What the frozen part of the backbone gives for images `(B, 3, H, W)`, flat; see `freezing.leave_out`."""
        return self.pooled(pixel_values) if self._frozen_part is None else self._frozen_part.outputs(pixel_values)

    def add_lora(self, r: int = 16, alpha: float | None = None, target_modules: str | list[str] = "auto") -> None:
        """Put low-rank adapters into the backbone; of it they alone train from now on. See `lora`.

        Args:
            r: Their rank.
            alpha: Their product counts `alpha / r` times; None is r.
            target_modules: `auto`, every linear layer of the backbone; or last parts of their names, such as `qkv`.

        Raises:
            UserError: If the backbone has no such layer, or has adapters already, or peft is not installed.
        """
        if self.config.lora is not None:
            raise UserError("model.lora: the model has adapters already")
        options = {"r": r, "target_modules": target_modules} | ({"alpha": alpha} if alpha else {})
        image = torch.zeros(1, 3, *[self.config.seen_size] * 2, device=self.device, dtype=self.dtype)
        self.config.lora = new_adapters(self.backbone, options, image, str(self.config.backbone_name))
        origin = self.config.origin or {}
        # Weights of a checkpoint are no base model: others than the backbone's have been trained.
        is_plain = origin.get("name") == self.config.backbone_name
        self.config.lora["base"] = {key: origin.get(key) for key in ("weights", "revision")} if is_plain else None

    def freeze(self, stages: int | Literal["all"]) -> None:
        """Train only what follows some part of the backbone; that part stays in evaluation mode from now on.

        Its batch normalisations keep their running statistics, and its dropout does nothing, so that what it makes of
        an image never changes.

        Args:
            stages: `all` of the backbone, or so many of its stages, counted from the images: the stem is the first one;
                then come the stages of a ResNet or Swin, or the quarters of a ViT.

        Raises:
            UserError: If the backbone has fewer stages, or none that can be told apart.
        """
        self.frozen_modules = freeze_parameters(self, stages)
        self.train(self.training)

    def set_image_sizes(self, image_size: int | None, resize_size: int | None) -> None:
        """Say, before training, which images the model will see; `image_processor` makes them.

        Args:
            image_size: Side of the square crop, in pixels; None keeps the model's own.
            resize_size: Side of the square before the crop; None takes `image_size` / 0.875, or the model's own where
                neither is given.
        """
        config = self.config
        if image_size is not None or resize_size is not None:
            config.resize_size = resize_size
        config.image_size = config.seen_size if image_size is None else image_size
        if config.resize_size is None:
            config.resize_size = default_resize_size(config.image_size)

    def image_processor(self) -> BitImageProcessor:
        """The image processor that goes with the model: resize to a square, centre crop, normalise.

        Raises:
            UserError: If the crop does not fit into the square.
        """
        config = self.config
        square = default_resize_size(config.seen_size) if config.resize_size is None else config.resize_size
        return build_image_processor(config.seen_size, square, config.image_mean, config.image_std)

    def export_native(self, processor: Any = None) -> PreTrainedModel:
        """The plain transformers class with identical logits; see `native_export.export_native`."""
        return export_native(self, processor)
