"""An object detector of the DETR family with domain-alignment heads."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForObjectDetection, PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import ModelOutput
from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

from ..alignment import IGNORED_LABEL
from ..alignment.detection import DetectionAlignmentBatch, Level, build_levels, normalise_levels
from ..checks import check_pretrained
from ..coordination import Stage, frozen_running_statistics, has_live_statistics
from ..errors import UserError, did_you_mean, one_line
from ..progress import quiet_loading
from .base import MetaAlignModel
from .detection_configuration import MetaAlignDetectionConfig
from .detectors import DetectorFeatures, detector_adapter, detector_types
from .detectors.finite_loss import loss_that_may_be_nan
from .detectors.frozen_maps import FrozenMaps
from .detectors.labelled_rows import loss_of_rows
from .detectors.stages import detector_stages, stages_of_trunk
from .freezing import freeze_all
from .loading import require_in_reach, require_options
from .origin import loaded_commit, weights_origin

__all__ = ["MetaAlignDetectionOutput", "MetaAlignForObjectDetection"]


@dataclass
class MetaAlignDetectionOutput(ModelOutput):
    """Output of `MetaAlignForObjectDetection`.

    Attributes:
        loss: The losses that were asked for, summed; None where neither labels nor domain labels were given.
        logits: Class scores of the queries `(B, Q, K)`, or `(B, Q, K + 1)` where the detector has a class "no object".
        pred_boxes: Boxes of the queries `(B, Q, 4)`, cx, cy, w, h in 0..1.
        task_loss: The detector's own loss on the labelled images; scalar.
        alignment_loss: Weighted sum of the alignment levels; scalar.
        parts: Named parts of the alignment loss, detached scalars.
    """

    loss: Tensor | None = None
    logits: Tensor | None = None
    pred_boxes: Tensor | None = None
    task_loss: Tensor | None = None
    alignment_loss: Tensor | None = None
    parts: dict[str, Tensor] | None = None


class MetaAlignForObjectDetection(MetaAlignModel):
    """A DETR-style detector of transformers, unchanged, with alignment heads on its inner features.

    The detection loss is the detector's own and comes from a forward pass on the labelled images alone, or, where batch
    normalisations have live statistics, on all images with the loss of the labelled ones; the alignment loss comes from
    a pass without labels on the images of both domains. They are two passes because denoising queries exist only for
    labelled images: in one pass their count would tell the domain.

    Args:
        config: The configuration. Use `from_detector` to start from a detector, `from_pretrained` for a checkpoint.
    """

    config_class = MetaAlignDetectionConfig
    base_model_prefix = "detector"

    def __init__(self, config: MetaAlignDetectionConfig) -> None:
        super().__init__(config)
        assert isinstance(config.detector_config, PreTrainedConfig)
        self.adapter = detector_adapter(config.detector_config.model_type)
        self.detector = AutoModelForObjectDetection.from_config(config.detector_config)
        self.adapter.prepare(self.detector)
        self.alignment = build_levels(config.alignment, self.adapter.widths(self.detector))
        self._frozen_maps: FrozenMaps | None = None
        self.post_init()

    @classmethod
    def from_detector(
        cls,
        name: str | dict[str, Any] | PreTrainedConfig,
        labels: Sequence[str] | dict[int, str],
        alignment: Any = "detr",
        *,
        pretrained: bool | str = True,
        **detector_options: Any,
    ) -> MetaAlignForObjectDetection:
        """A detector for `labels`, ready to adapt.

        Args:
            name: A Hub id or local folder (`PekingU/rtdetr_r50vd`), a model type (`d_fine`; random weights only), or a
                configuration (object, or dict with `model_type`).
            labels: Class names in the order of the class indices, or `id2label`.
            alignment: A level, a preset (`swda`, `detr`), a dict with name, weight and options, a list of those, or
                None.
            pretrained: True, False (random weights; no network for model types and configurations), or where to load
                the weights from.
            **detector_options: Entries of the detector's configuration.

        Returns:
            The model. Class heads that do not fit the labels start anew, all other weights are those of the detector.

        Raises:
            UserError: If the detector, a level or an option is unknown, or the labels are not different names.
        """
        names = list(labels.values()) if isinstance(labels, dict) else list(labels)
        if not names or len(set(names)) != len(names):
            raise UserError(f"labels: at least one class name is needed, all different, got {labels!r}")
        detector_config, place = _resolve(name, pretrained, detector_options)
        detector_adapter(detector_config.model_type)
        id2label = dict(enumerate(names))
        label2id = {label: index for index, label in enumerate(names)}
        detector_config.id2label, detector_config.label2id = id2label, label2id
        detector_name = name if isinstance(name, str) else detector_config.model_type
        revision = loaded_commit(name) if place == name else None
        config = MetaAlignDetectionConfig(
            detector_config=detector_config,
            detector_name=detector_name,
            origin=weights_origin(_public(detector_name), place, revision),
            # Normalised here: these errors say more than those of the strict configuration.
            alignment=normalise_levels(alignment),
            id2label=dict(id2label),
            label2id=dict(label2id),
        )
        model = cls(config)
        if place is not None:
            # Only now: building the model runs post_init, which would overwrite weights that were loaded before.
            model.detector.load_state_dict(_load_weights(place, detector_config).state_dict())
        return model

    def forward(
        self,
        pixel_values: Tensor,
        pixel_mask: Tensor | None = None,
        labels: Sequence[dict[str, Tensor] | None] | None = None,
        domain_labels: Tensor | None = None,
        progress: float = 1.0,
        objective: Literal["task", "alignment"] | None = None,
        return_dict: bool | None = None,
    ) -> MetaAlignDetectionOutput | tuple[Tensor, ...]:
        """Logits and boxes, and the losses for which there are labels.

        Args:
            pixel_values: Images `(B, 3, H, W)`, normalised; or what a frozen backbone gave for them before, `(B, D)`
                (`leave_out_backbone`).
            pixel_mask: `(B, H, W)`, 1 on the image and 0 on padding; None where nothing is padded.
            labels: One entry for each image: `class_labels` `(n,)` and `boxes` `(n, 4)` as cx, cy, w, h in 0..1; None
                for an image without labels (the target's), which is not the same as an image without objects.
            domain_labels: `(B,)`, 0 for the source, 1.. for the target, and -100 for images that take no part in
                alignment.
            progress: Training progress in 0..1, which sets the strength of gradient reversal.
            objective: Compute only this loss, with one forward pass. Without it two passes are made where both losses
                are asked for.
            return_dict: Whether to return a `MetaAlignDetectionOutput` (default) or a plain tuple.

        Returns:
            The output; without labels and domain labels it holds logits and boxes only. Where a loss was asked for,
            logits and boxes are detached and come from the last pass: where that is the task's, they are those of the
            labelled images, and in training mode those of the denoising queries come first. With objective `alignment`
            there may be none `(B, 0, ...)`, where the levels read the backbone's maps alone.
        """
        align = domain_labels is not None and objective != "task" and self.alignment is not None
        train = labels is not None and objective != "alignment"
        if objective is not None and not (train or align):
            needed = "labels" if objective == "task" else "domain_labels and an alignment level"
            raise ValueError(f"objective={objective!r} needs {needed}")
        task_loss = alignment_loss = parts = None
        if train:
            assert labels is not None
            # With both losses the running statistics move once, by the pass on both domains.
            frozen = frozen_running_statistics(self) if align else nullcontext()
            with frozen, loss_that_may_be_nan(self.detector):
                task_loss, logits, boxes = self._task(pixel_values, pixel_mask, labels)
        if align:
            assert domain_labels is not None
            features = self._aligned_features(pixel_values, pixel_mask, objective == "alignment")
            taking_part = domain_labels != IGNORED_LABEL
            aligned = features if bool(taking_part.all()) else features.rows(taking_part)
            alignment_loss, parts = self._align(aligned, domain_labels[taking_part], progress)
            logits, boxes = features.logits.detach(), features.pred_boxes.detach()
        elif not train:
            plain = self._run(self.adapter.predict, pixel_values, pixel_mask)
            logits, boxes = plain.logits, plain.pred_boxes
        losses = [value for value in (task_loss, alignment_loss) if value is not None]
        loss = torch.stack(losses).sum() if losses else None
        output = MetaAlignDetectionOutput(loss, logits, boxes, task_loss, alignment_loss, parts)
        return output if return_dict is not False else output.to_tuple()

    def _task(
        self, pixel_values: Tensor, pixel_mask: Tensor | None, labels: Sequence[dict[str, Tensor] | None]
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """The detector's own loss on the labelled images."""
        if len(labels) != len(pixel_values):
            raise ValueError(f"labels has {len(labels)} entries for {len(pixel_values)} images")
        rows = [index for index, entry in enumerate(labels) if entry is not None]
        if not rows and not (dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1):
            return pixel_values.new_zeros((), requires_grad=True), None, None
        empty = torch.zeros(0, dtype=torch.long, device=pixel_values.device)
        nothing = {"class_labels": empty, "boxes": pixel_values.new_zeros(0, 4)}
        if not rows:
            # Losses that count the boxes of all processes wait for this one too.
            output = self._run(self.adapter.predict, pixel_values, pixel_mask, labels=[nothing] * len(labels))
            return 0.0 * output.loss, None, None
        if len(rows) < len(labels) and has_live_statistics(self.detector):
            # Live statistics of the labelled images alone would be others than those of evaluation, which both domains
            # make, so all images run, and the loss takes the labelled ones.
            everything = [nothing if entry is None else entry for entry in labels]
            with loss_of_rows(self.detector, rows, self.adapter.layers_first):
                output = self._run(self.adapter.predict, pixel_values, pixel_mask, labels=everything)
            return output.loss, output.logits[rows].detach(), output.pred_boxes[rows].detach()
        if len(rows) < len(labels):
            pixel_values = pixel_values[rows]
            pixel_mask = None if pixel_mask is None else pixel_mask[rows]
        known = [entry for entry in labels if entry is not None]
        output = self._run(self.adapter.predict, pixel_values, pixel_mask, labels=known)
        return output.loss, output.logits.detach(), output.pred_boxes.detach()

    def _aligned_features(self, pixel_values: Tensor, pixel_mask: Tensor | None, alone: bool) -> DetectorFeatures:
        """Features of a pass without labels; without queries where no level and nobody else asks for them."""
        assert self.alignment is not None
        # What wraps parts of a model on several processes waits for the end of a forward.
        if not (alone and self.alignment.maps_suffice) or (dist.is_available() and dist.is_initialized()):
            return self.inner_features(pixel_values, pixel_mask)
        maps: list[Level] = self._run(self.adapter.maps, pixel_values, pixel_mask)
        none = pixel_values.new_zeros(len(pixel_values), 0, 4)
        return DetectorFeatures(maps, [], none, none, none)

    def inner_features(self, pixel_values: Tensor, pixel_mask: Tensor | None = None) -> DetectorFeatures:
        """Maps, tokens and queries of a pass without labels."""
        features: DetectorFeatures = self._run(self.adapter.features, pixel_values, pixel_mask)
        return features

    def _run(self, method: Callable[..., Any], pixel_values: Tensor, pixel_mask: Tensor | None, **labels: Any) -> Any:
        """A method of the adapter, which runs the detector; on a frozen backbone's outputs where these are given."""
        if pixel_values.ndim != 2:
            return method(self.detector, pixel_values, pixel_mask, **labels)
        assert self._frozen_maps is not None, "outputs of the backbone in the place of images need leave_out_backbone"
        with self._frozen_maps.answering(pixel_values) as blank:
            return method(self.detector, blank, pixel_mask, **labels)

    @property
    def backbone(self) -> nn.Module:
        """The detector's backbone proper, which `freeze` freezes.

        Raises:
            UserError: If the family has none.
        """
        return self.detector.get_submodule(self.adapter.frozen_name(self.detector))

    def freeze(self) -> None:
        """Train everything but the backbone, which stays in evaluation mode from now on.

        Its batch normalisations keep their running statistics, so that the maps of an image never change.

        Raises:
            UserError: If the family has no backbone of its own, as YOLOS.
        """
        self.frozen_modules = freeze_all(self.backbone)
        self.train(self.training)

    def leave_out_backbone(self, size: tuple[int, int]) -> str | None:
        """From now on `forward` also takes what the frozen backbone gave (`frozen_outputs`) in the place of images.

        Args:
            size: Height and width of all images, in pixels.

        Returns:
            None, or why that cannot be, and then nothing has changed.
        """
        maps, training = FrozenMaps(self.backbone, size), self.training
        self.eval()
        try:
            reason = maps.check(lambda pixels: self.adapter.predict(self.detector, pixels, None))
        finally:
            self.train(training)
        if reason is None:
            self._frozen_maps = maps
        return reason

    def frozen_outputs(self, pixel_values: Tensor) -> Tensor:
        """The maps that the frozen backbone gives for images `(B, 3, H, W)`, flat: `(B, D)`."""
        assert self._frozen_maps is not None
        return self._frozen_maps.outputs(pixel_values)

    def _align(
        self, features: DetectorFeatures, domain_labels: Tensor, progress: float
    ) -> tuple[Tensor, dict[str, Tensor]]:
        assert self.alignment is not None
        objectness = self.adapter.probabilities(features.logits.detach()).amax(-1)
        batch = DetectionAlignmentBatch(
            maps=features.maps,
            encoder=features.encoder,
            queries=features.queries,
            objectness=objectness,
            domain_labels=domain_labels,
            progress=progress,
        )
        aligned = self.alignment(batch if self.alignment_scale is None else batch.scaled(self.alignment_scale))
        return aligned.loss, aligned.parts

    @property
    def boxes_relative_to_image(self) -> bool:
        """Whether boxes are relative to the image in the canvas (the detector reads masks), or to the whole canvas."""
        return self.adapter.uses_mask

    def _role_of(self) -> Callable[[str, nn.Parameter], str]:
        """The detector's backbone; its transformer and heads; the levels.

        Recipes of DETR train the backbone at a tenth of the rest's learning rate: the default multiplier of heads.
        """
        backbone = f"detector.{self.adapter.backbone_name(self.detector)}."

        def role(name: str, _: nn.Parameter) -> str:
            if name.startswith("alignment."):
                return "discriminator"
            return "backbone" if name.startswith(backbone) else "head"

        return role

    def parameter_stages(self) -> list[Stage]:
        """Its backbone, encoder, decoder and head, or the stages of its ViT: for group weights and the inner step."""
        backbone = f"detector.{self.adapter.backbone_name(self.detector)}"
        return detector_stages(self) or stages_of_trunk(self, backbone)

    def export_native(self, processor: Any = None) -> PreTrainedModel:
        """The adapted detector as the plain transformers class: bit-identical logits and boxes, nothing shared.

        Args:
            processor: Its image processor, which says nothing that the detector's configuration would have to repeat.
        """
        native = copy.deepcopy(self.detector)
        native.config.architectures = [type(native).__name__]
        return native


def _resolve(
    name: str | dict[str, Any] | PreTrainedConfig, pretrained: bool | str, options: dict[str, Any]
) -> tuple[PreTrainedConfig, str | None]:
    """The detector's configuration, and where its weights are (None for random ones)."""
    check_pretrained(pretrained, "pretrained")
    weights = pretrained if isinstance(pretrained, str) else None
    if isinstance(name, dict):
        given = dict(name)
        model_type = given.pop("model_type", None)
        if model_type not in CONFIG_MAPPING_NAMES:
            raise UserError(f"detector: a configuration needs a known model_type, not {model_type!r}")
        detector_adapter(model_type)
        name = _configured(model_type, given)
    if isinstance(name, PreTrainedConfig):
        if pretrained is True:
            raise UserError("detector: a configuration has no weights; use pretrained=False or give the weights' path")
        return _changed(copy.deepcopy(name), options), weights
    if not Path(name).is_dir():
        if name in CONFIG_MAPPING_NAMES:
            detector_adapter(name)
            if pretrained is True:
                raise UserError(f"detector: {name!r} is a model type without weights; use pretrained=False or a Hub id")
            return _configured(name, options), weights
        if "/" not in name:
            hint = did_you_mean(name, detector_types(), f"model types: {', '.join(detector_types())}", n=2)
            raise UserError(f"detector: {name!r} is not a model type, a local folder or a Hub id; {hint}")
    require_in_reach(name, "detector")
    try:
        config = AutoConfig.from_pretrained(name, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise UserError(f"detector: {name!r} cannot be loaded: {one_line(error, first=True)}") from error
    return _changed(config, options), (weights or name) if pretrained else None


def _public(name: str) -> str:
    """A name that means something elsewhere: of a folder its last part."""
    return Path(name).resolve().name if Path(name).is_dir() else name


def _configured(model_type: str, options: dict[str, Any]) -> PreTrainedConfig:
    """A configuration of a model type. Built at once, since what follows from the options is derived by its class."""
    require_options(AutoConfig.for_model(model_type), options, "detector")
    given = {key: dict(value) if isinstance(value, dict) else value for key, value in options.items()}
    try:
        return AutoConfig.for_model(model_type, **given)
    except Exception as error:
        raise UserError(f"detector: {model_type} refuses the options: {one_line(error)}") from error


def _changed(config: PreTrainedConfig, options: dict[str, Any]) -> PreTrainedConfig:
    require_options(config, options, "detector")
    for key, value in options.items():
        setattr(config, key, value)
    return config


def _load_weights(place: str, config: PreTrainedConfig) -> PreTrainedModel:
    """The detector with pretrained weights; only tensors with a row for each class may start anew."""
    if place.startswith((".", "/", "~")) and not Path(place).expanduser().is_dir():
        raise UserError(f"detector weights: the folder {place} does not exist")
    require_in_reach(place, "detector weights")
    try:
        with quiet_loading():
            model, info = AutoModelForObjectDetection.from_pretrained(
                place, config=config, ignore_mismatched_sizes=True, output_loading_info=True, use_safetensors=True
            )
    except (OSError, ValueError, RuntimeError) as error:
        raise UserError(f"detector weights: cannot load {place}: {one_line(error, first=True)}") from error
    lost = sorted(info["missing_keys"])
    for key, found, wanted in info["mismatched_keys"]:
        if tuple(found)[1:] != tuple(wanted)[1:]:
            lost.append(key)
    if lost:
        raise UserError(f"detector weights: {place} lacks {len(lost)} tensors of the detector, e.g. {lost[0]}")
    return model
