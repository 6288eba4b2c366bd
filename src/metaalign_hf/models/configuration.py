"""Configuration of an adapted image classifier."""

from pathlib import Path
from typing import Any, ClassVar, Literal

from huggingface_hub.dataclasses import strict
from transformers import AutoConfig, PreTrainedConfig
from transformers.configuration_utils import SubConfigSpec

from ..alignment import normalise_alignment
from ..errors import UserError
from .backbone import BackboneSource
from .image_processor import backbone_image_size
from .origin import weights_origin

__all__ = ["FORMAT_VERSION", "MetaAlignConfig", "check_format_version", "check_labels", "configuration_on"]

FORMAT_VERSION = 1
"""Version of the checkpoint layout; it grows when an older release can no longer read what a newer one writes."""


def check_format_version(version: int) -> None:
    """Refuse a checkpoint of a newer layout.

    Raises:
        UserError: If this release cannot read it.
    """
    if version > FORMAT_VERSION:
        raise UserError(
            f"this checkpoint has layout version {version}, and this release of metaalign-hf reads up to "
            f"{FORMAT_VERSION}: upgrade with pip install -U metaalign-hf"
        )


@strict
class MetaAlignConfig(PreTrainedConfig):
    """Configuration of a `MetaAlignForImageClassification`.

    Args:
        backbone_config: Configuration of the backbone (any image classification model of transformers, timm included).
        backbone_name: Name of the backbone: a Hub id, a timm name or a model type.
        feature_dim: Width D of the pooled backbone feature. Found from the backbone when None.
        bottleneck_dim: Width of a bottleneck before the classifier; None has none.
        bottleneck_kind: `linear` or `batch_norm` (and a batch normalisation). None, as older checkpoints have it, adds
            a ReLU as well; such a model has no native form and cannot be trained further.
        alignment: Alignment objectives as `normalise_alignment` writes them: one dict each, with name, weight and
            options.
        image_mean: Mean per channel of the images that the backbone was trained on, in 0..1.
        image_std: Standard deviation per channel, in 0..1.
        image_size: Side of the square images that the model sees, in pixels; None for what the backbone was made for.
        resize_size: Side of the square before the crop; None for `image_size` / 0.875.
        origin: Where the weights came from (`name`, `pretrained`, `weights`, `revision`), as the methods that build or
            load a model record it; None where that is not known. See `models.origin`.
        lora: Low-rank adapters in the backbone (`r`, `alpha`, `target_modules` by full name); None has none.
        format_version: Version of the checkpoint layout.
        **kwargs: Anything `PreTrainedConfig` takes, among them `id2label`.

    Raises:
        UserError: If an alignment objective or one of its options is unknown, or the checkpoint is of a newer layout.
    """

    model_type = "metaalign"
    sub_configs_defaults: ClassVar[dict[str, SubConfigSpec]] = {
        "backbone_config": SubConfigSpec(AutoConfig, model_type="resnet")
    }

    backbone_config: dict[str, Any] | PreTrainedConfig | None = None
    backbone_name: str | None = None
    feature_dim: int | None = None
    bottleneck_dim: int | None = None
    bottleneck_kind: Literal["linear", "batch_norm"] | None = None
    alignment: list[dict[str, Any]] | dict[str, Any] | str | None = None
    image_mean: list[float] | tuple[float, ...] = (0.485, 0.456, 0.406)
    image_std: list[float] | tuple[float, ...] = (0.229, 0.224, 0.225)
    image_size: int | None = None
    resize_size: int | None = None
    origin: dict[str, Any] | None = None
    lora: dict[str, Any] | None = None
    format_version: int = FORMAT_VERSION

    def __post_init__(self, **kwargs: Any) -> None:
        check_format_version(self.format_version)
        self.alignment = normalise_alignment(self.alignment)
        super().__post_init__(**kwargs)

    @property
    def labels(self) -> list[str]:
        """The class names in the order of the logits."""
        return [self.id2label[index] for index in range(self.num_labels)]

    @property
    def seen_size(self) -> int:
        """Side of the square images that the model sees, in pixels."""
        return backbone_image_size(self.backbone_config) if self.image_size is None else self.image_size


def check_labels(labels: list[str]) -> None:
    """Refuse what names no classes.

    Raises:
        UserError: If the labels are not at least two different names.
    """
    if isinstance(labels, str | int) or len(labels) < 2 or len(set(labels)) != len(labels):
        raise UserError(f"labels: at least two different class names are needed, got {labels!r}")


def configuration_on(
    source: BackboneSource,
    labels: list[str],
    alignment: Any,
    bottleneck_dim: int | None = None,
    bottleneck_kind: Literal["linear", "batch_norm"] = "batch_norm",
) -> MetaAlignConfig:
    """The configuration of a new model on a backbone.

    Args:
        source: The backbone.
        labels: Class names in the order of the logits.
        alignment: As `normalise_alignment` takes it.
        bottleneck_dim: Width of an optional bottleneck.
        bottleneck_kind: Its kind, where there is one.

    Raises:
        UserError: If an objective or an option is unknown.
    """
    backbone_name = source.name
    if Path(backbone_name).is_dir():
        # A local path has no meaning on another machine, and configurations are published.
        backbone_name = source.config._name_or_path = Path(backbone_name).resolve().name
    return MetaAlignConfig(
        backbone_config=source.config,
        backbone_name=backbone_name,
        bottleneck_dim=bottleneck_dim,
        bottleneck_kind=None if bottleneck_dim is None else bottleneck_kind,
        # Normalised here: these errors say more than those of the strict configuration.
        alignment=normalise_alignment(alignment),
        image_mean=list(source.image_mean),
        image_std=list(source.image_std),
        image_size=source.image_size,
        origin=weights_origin(backbone_name, source.weights, source.revision),
        id2label=dict(enumerate(labels)),
        label2id={label: index for index, label in enumerate(labels)},
    )
