"""Configuration of an adapted object detector."""

from typing import Any, ClassVar

from huggingface_hub.dataclasses import strict
from transformers import AutoConfig, PreTrainedConfig
from transformers.configuration_utils import SubConfigSpec

from ..alignment.detection import normalise_levels
from .configuration import FORMAT_VERSION, check_format_version

__all__ = ["MetaAlignDetectionConfig"]


@strict
class MetaAlignDetectionConfig(PreTrainedConfig):
    """Configuration of a `MetaAlignForObjectDetection`.

    Args:
        detector_config: Configuration of the detector, of any family that `detector_types` lists.
        detector_name: Name of the detector: a Hub id, a folder or a model type.
        alignment: Alignment levels as `normalise_levels` writes them: one dict each, with name, weight and options.
        origin: Where the weights came from (`name`, `pretrained`, `weights`, `revision`), as the methods that build or
            load a model record it; None where that is not known. See `models.origin`.
        format_version: Version of the checkpoint layout.
        **kwargs: Anything `PreTrainedConfig` takes, among them `id2label`.

    Raises:
        UserError: If an alignment level or one of its options is unknown, or the checkpoint is of a newer layout.
    """

    model_type = "metaalign_detection"
    sub_configs_defaults: ClassVar[dict[str, SubConfigSpec]] = {
        "detector_config": SubConfigSpec(AutoConfig, model_type="detr")
    }

    detector_config: dict[str, Any] | PreTrainedConfig | None = None
    detector_name: str | None = None
    alignment: list[Any] | dict[str, Any] | str | None = None
    origin: dict[str, Any] | None = None
    format_version: int = FORMAT_VERSION

    def __post_init__(self, **kwargs: Any) -> None:
        check_format_version(self.format_version)
        self.alignment = normalise_levels(self.alignment)
        super().__post_init__(**kwargs)

    @property
    def labels(self) -> list[str]:
        """The class names in the order of the logits."""
        return [self.id2label[index] for index in range(self.num_labels)]
