"""Model classes: a backbone, a classifier and alignment objectives in one `PreTrainedModel`."""

from transformers import AutoConfig, AutoImageProcessor, AutoModelForImageClassification, BitImageProcessor

from .configuration import MetaAlignConfig
from .image_classification import IGNORED_LABEL, MetaAlignForImageClassification, MetaAlignOutput
from .native_export import export_native

__all__ = [
    "IGNORED_LABEL",
    "MetaAlignConfig",
    "MetaAlignForImageClassification",
    "MetaAlignOutput",
    "export_native",
]

AutoConfig.register(MetaAlignConfig.model_type, MetaAlignConfig, exist_ok=True)
AutoModelForImageClassification.register(MetaAlignConfig, MetaAlignForImageClassification, exist_ok=True)
AutoImageProcessor.register(MetaAlignConfig, image_processor_classes={"torchvision": BitImageProcessor}, exist_ok=True)
