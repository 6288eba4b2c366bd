"""A classifier whose backbone is frozen, or some stages of it: what then trains, and whether what they give is kept."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from ...configuration import Config
from ...errors import UserError
from ...models import IGNORED_LABEL, MetaAlignForImageClassification
from ...models.freezing import frozen_tensors, leave_out
from ...target_losses import LogitsLoss

__all__ = ["check_something_aligns", "check_statistics_stay", "leave_out_frozen_stages", "why_not_cached"]


def check_statistics_stay(config: Config) -> None:
    """Refuse that statistics of a backbone move that is frozen as a whole: a classifier has hardly any others.

    Raises:
        UserError: If they would.
    """
    training = config.training
    if config.model.freeze != "all":
        return
    if training.batch_norm not in ("auto", "frozen"):
        raise UserError(
            f"training.batch_norm is {training.batch_norm}: with model.freeze all the backbone's statistics stay; "
            "leave it at auto"
        )
    if training.recalibrate_bn != "none":
        raise UserError(
            "training.recalibrate_bn: with model.freeze all the backbone's statistics stay; leave it at none"
        )


def check_something_aligns(model: MetaAlignForImageClassification) -> None:
    """Refuse alignment objectives that reach nothing that trains, since the features are frozen.

    Raises:
        UserError: If no gradient of the alignment loss reaches bottleneck or classifier.
    """
    if model.alignment is None:
        return
    entry: Any = model.classifier if model.bottleneck is None else model.bottleneck[0]
    labels, training = torch.tensor([0, 1, IGNORED_LABEL, IGNORED_LABEL]), model.training
    source_index = torch.tensor([0, 1, -1, -1])
    with torch.random.fork_rng(devices=[]):
        features = torch.randn(4, entry.in_features)
        loss = model.eval()(
            features.to(model.device, model.dtype),
            labels.to(model.device),
            torch.tensor([0, 0, 1, 1]).to(model.device),
            objective="alignment",
            source_index=source_index.to(model.device),
        ).alignment_loss
    model.train(training)
    head = list(model.parameter_roles()["head"].values())
    if loss.requires_grad and any(g is not None for g in torch.autograd.grad(loss, head, allow_unused=True)):
        return
    names = " and ".join(entry["name"] for entry in model.config.alignment)
    raise UserError(
        f"model.freeze: with all of the backbone frozen {names} aligns nothing that trains; set model.bottleneck_dim, "
        "such as 256, or take an objective of the logits, such as cdan or mcc"
    )


def why_not_cached(config: Config, losses: Sequence[Any]) -> str | None:
    """Why features are not computed once; None where they are.

    Args:
        config: The configuration.
        losses: The target losses.
    """
    if config.model.freeze == "none":
        return "model.freeze is none"
    if config.data.cache_features == "never":
        return "data.cache_features is never"
    if config.model.freeze != "all" and config.data.views is None and config.data.augmentation != "none":
        return "data.views is null, so that every batch has new views"
    for loss in losses:
        if not (isinstance(loss, LogitsLoss) and loss.plain):
            return f"the target loss {loss.name} needs a view of its own in every step"
    return None


def leave_out_frozen_stages(config: Config, model: MetaAlignForImageClassification, statistics: str) -> str | None:
    """Let passes begin behind the frozen stages of a backbone.

    Args:
        config: The configuration, in which some stages are frozen.
        model: The model, frozen already.
        statistics: Name of the mode of batch normalisation.

    Returns:
        None, or why it cannot be; the model is then as it was.
    """
    training = config.training
    for key in ("gradient_checkpointing", "compile"):
        if getattr(training, key):
            return f"training.{key} takes whole passes"
    frozen = any(name.endswith("running_mean") for name in frozen_tensors(model))
    if frozen and (statistics == "per_domain" or training.recalibrate_bn != "none"):
        return "their batch statistics do not stay"
    assert isinstance(config.model.freeze, int)
    return leave_out(model, config.model.freeze)
