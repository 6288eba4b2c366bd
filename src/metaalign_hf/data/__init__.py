"""Domain pairs: where images come from, label agreement, preprocessing and endless streams."""

from ..configuration import DataConfig, DomainConfig
from .detection_batches import detection_batch, detection_batches, detection_stream
from .detection_pair import DetectionPair, load_detection_pair, load_detection_view
from .digit_scenes import load_digit_scenes
from .digits import load_digits_images
from .domain_pair import DomainPair, load_domain, load_domain_pair, load_labelled_view, load_target
from .domains import AnnotatedImages, Domain
from .images import ImageSet, image_files, read_image
from .object_augmentation import augment_objects
from .objects import DetectionSet, Objects
from .pair_domains import PairDomains
from .streams import batch_indices, evaluation_batches, even_batch_indices, training_stream
from .transforms import augment, preprocess

__all__ = [
    "AnnotatedImages",
    "DataConfig",
    "DetectionPair",
    "DetectionSet",
    "Domain",
    "DomainConfig",
    "DomainPair",
    "ImageSet",
    "Objects",
    "PairDomains",
    "augment",
    "augment_objects",
    "batch_indices",
    "detection_batch",
    "detection_batches",
    "detection_stream",
    "evaluation_batches",
    "even_batch_indices",
    "image_files",
    "load_detection_pair",
    "load_detection_view",
    "load_digit_scenes",
    "load_digits_images",
    "load_domain",
    "load_domain_pair",
    "load_labelled_view",
    "load_target",
    "preprocess",
    "read_image",
    "training_stream",
]
