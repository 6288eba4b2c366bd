"""A transformers Trainer whose step is the package's own: the same tasks, objectives and coordinators."""

from .arguments import MetaAlignTrainingArguments
from .trainer import MetaAlignTrainer

__all__ = ["MetaAlignTrainer", "MetaAlignTrainingArguments"]
