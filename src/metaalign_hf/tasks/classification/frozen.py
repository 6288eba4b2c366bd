"""A classifier whose backbone is frozen, or some stages of it: what then trains, and what they give computed once."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from ...configuration import Config
from ...data import DomainPair, ImageSet
from ...data.bad_images import BadImages
from ...data.cached_features import open_cache, plan_cache, with_features, write_cache
from ...errors import UserError
from ...interruption import Interruption, RunInterrupted
from ...models import IGNORED_LABEL, MetaAlignForImageClassification
from ...models.freezing import frozen_tensors, leave_out
from ...run_folder import FEATURES_FILE
from ...target_losses import LogitsLoss

__all__ = ["check_something_aligns", "check_statistics_stay", "feature_pair", "why_not_cached", "why_not_left_out"]


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


def why_not_left_out(config: Config, model: MetaAlignForImageClassification, statistics: str) -> str | None:
    """Why a pass cannot begin behind the frozen stages of a backbone; None where it does from now on.

    Args:
        config: The configuration, in which some stages are frozen.
        model: The model, frozen already.
        statistics: Name of the mode of batch normalisation.
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


def feature_pair(
    pair: DomainPair[ImageSet],
    model: MetaAlignForImageClassification,
    processor: Any,
    config: Config,
    accelerator: Accelerator,
    bad_images: BadImages,
    stop: Interruption,
) -> DomainPair[ImageSet]:
    """The pair with features in the place of images. The main process computes them where there is no file yet.

    Args:
        pair: The pair in fixed views.
        model: The bare model, on its device.
        processor: Its image processor.
        config: The configuration.
        accelerator: Knows the processes and the precision.
        bad_images: Where unreadable images are listed, where they are skipped.
        stop: Hears what is asked of the run from outside.

    Raises:
        UserError: If the file is another run's, would be too large, or cannot be written.
        RunInterrupted: If the run must stop; what was computed stays.
    """
    data, training = config.data, config.training
    path = Path(training.output_dir if data.cache_folder is None else data.cache_folder) / FEATURES_FILE

    @torch.no_grad()
    def compute(pixels: Tensor) -> Tensor:
        with accelerator.autocast():
            return model.frozen_outputs(pixels.to(accelerator.device))

    def go_on() -> None:
        if stop.code:
            raise RunInterrupted(
                stop.code, "stopped while features were computed; go on with them with --training.resume auto"
            )

    plan = plan_cache(pair, _checksums(model, processor, accelerator, str(config.model.freeze)))
    if accelerator.is_main_process and not path.exists():
        write_cache(
            path,
            plan,
            compute,
            batch_size=training.evaluation_batch_size,
            gigabytes=data.cache_gigabytes,
            num_workers=data.num_workers,
            unreadable=bad_images.add if data.on_bad_image == "skip" else None,
            go_on=go_on,
        )
    while not path.exists():  # no collective call: it may take longer than these wait
        time.sleep(0.2)
        go_on()
    # The stages after others take what these gave in the type that they gave it in.
    return with_features(plan, open_cache(path, plan), as_stored=config.model.freeze != "all")


def _checksums(
    model: MetaAlignForImageClassification, processor: Any, accelerator: Accelerator, frozen: str
) -> dict[str, str]:
    weights = hashlib.sha256(model.config.backbone_config.to_json_string().encode())
    for name, tensor in frozen_tensors(model).items():
        weights.update(name.encode())
        weights.update(tensor.cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    made = hashlib.sha256(processor.to_json_string().encode())
    return {
        "backbone": weights.hexdigest(),
        "image processor": made.hexdigest(),
        "precision": str(accelerator.mixed_precision),
        "frozen part": frozen,
    }
