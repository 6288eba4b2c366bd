"""Domain pairs: where images come from, label agreement, preprocessing and endless streams."""

from .configuration import DataConfig, DomainConfig
from .digits import load_digits_images
from .domain_pair import Domain, DomainPair, load_domain, load_domain_pair, load_labelled_view
from .images import ImageSet, image_files, read_image
from .streams import batch_indices, evaluation_batches, even_batch_indices, training_stream
from .transforms import augment, build_image_processor, preprocess

__all__ = [
    "DataConfig",
    "Domain",
    "DomainConfig",
    "DomainPair",
    "ImageSet",
    "augment",
    "batch_indices",
    "build_image_processor",
    "evaluation_batches",
    "even_batch_indices",
    "image_files",
    "load_digits_images",
    "load_domain",
    "load_domain_pair",
    "load_labelled_view",
    "preprocess",
    "read_image",
    "training_stream",
]
