"""Model classes: a backbone and classifier, or a detector, with alignment objectives in one `PreTrainedModel`."""

from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModelForImageClassification,
    AutoModelForObjectDetection,
    BitImageProcessor,
    DetrImageProcessor,
)

from ..alignment import IGNORED_LABEL
from .configuration import MetaAlignConfig
from .detection_configuration import MetaAlignDetectionConfig
from .detectors import detector_types
from .image_classification import MetaAlignForImageClassification, MetaAlignOutput
from .image_processor import build_image_processor
from .native_export import export_native, save_native
from .object_detection import MetaAlignDetectionOutput, MetaAlignForObjectDetection

__all__ = [
    "IGNORED_LABEL",
    "MetaAlignConfig",
    "MetaAlignDetectionConfig",
    "MetaAlignDetectionOutput",
    "MetaAlignForImageClassification",
    "MetaAlignForObjectDetection",
    "MetaAlignOutput",
    "build_image_processor",
    "detector_types",
    "export_native",
    "save_native",
]

AutoConfig.register(MetaAlignConfig.model_type, MetaAlignConfig, exist_ok=True)
AutoModelForImageClassification.register(MetaAlignConfig, MetaAlignForImageClassification, exist_ok=True)
AutoImageProcessor.register(MetaAlignConfig, image_processor_classes={"torchvision": BitImageProcessor}, exist_ok=True)

AutoConfig.register(MetaAlignDetectionConfig.model_type, MetaAlignDetectionConfig, exist_ok=True)
AutoModelForObjectDetection.register(MetaAlignDetectionConfig, MetaAlignForObjectDetection, exist_ok=True)
AutoImageProcessor.register(
    MetaAlignDetectionConfig, image_processor_classes={"torchvision": DetrImageProcessor}, exist_ok=True
)
