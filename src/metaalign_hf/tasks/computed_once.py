"""What a frozen backbone gives, computed once before the first step: the same for classifiers and detectors."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator, DistributedType
from torch import Tensor

from ..configuration import Config
from ..data import DomainPair
from ..data.bad_images import BadImages
from ..data.cache_writing import write_cache
from ..data.cached_features import Facts, open_cache, plan_cache, with_features
from ..errors import UserError
from ..interruption import Interruption, RunInterrupted
from ..models.freezing import frozen_tensors
from ..run_folder import FEATURES_FILE

__all__ = ["computed_pair", "refuse_demanded", "why_not_on_processes"]


def refuse_demanded(config: Config, reason: str | None) -> None:
    """Refuse a run that asks for a cache and cannot have one.

    Args:
        config: The configuration.
        reason: Why it has none; None where it has one.

    Raises:
        UserError: If `data.cache_features` is always, and there is a reason.
    """
    if reason is not None and config.data.cache_features == "always":
        raise UserError(f"data.cache_features is always, which cannot be: {reason}; put that right, or set it to auto")


def why_not_on_processes(accelerator: Accelerator) -> str | None:
    """Why the processes of a run cannot work on features that were computed once; None where they can."""
    return "its weights are sharded" if accelerator.distributed_type == DistributedType.FSDP else None


def computed_pair(
    pair: DomainPair[Any],
    model: Any,
    processor: Any,
    config: Config,
    accelerator: Accelerator,
    bad_images: BadImages,
    stop: Interruption,
    *,
    as_stored: bool = False,
    facts: Facts | None = None,
    only_augmented: Sequence[str] = ("source_train",),
) -> DomainPair[Any]:
    """The pair with features in the place of images. The main process computes them where there is no file yet.

    Args:
        pair: The pair in fixed views.
        model: The bare model, on its device.
        processor: Its image processor.
        config: The configuration.
        accelerator: Knows the processes and the precision.
        bad_images: Where unreadable images are listed, where they are skipped.
        stop: Hears what is asked of the run from outside.
        as_stored: As `with_features` takes it.
        facts: As `plan_cache` takes it.
        only_augmented: As `plan_cache` takes it.

    Raises:
        UserError: If the file is another run's, would be too large, or cannot be written.
        RunInterrupted: If the run must stop; what was computed stays.
    """
    data, training = config.data, config.training
    path = Path(training.output_dir if data.cache_folder is None else data.cache_folder) / FEATURES_FILE

    @torch.no_grad()
    def compute(pixels: Tensor) -> Tensor:
        with accelerator.autocast():
            found: Tensor = model.frozen_outputs(pixels.to(accelerator.device))
        return found

    def go_on() -> None:
        if stop.code:
            raise RunInterrupted(
                stop.code, "stopped while features were computed; go on with them with --training.resume auto"
            )

    checksums = _checksums(model, processor, accelerator, str(config.model.freeze))
    plan = plan_cache(pair, checksums, facts, only_augmented)
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
    return with_features(plan, open_cache(path, plan), as_stored)


def _checksums(model: Any, processor: Any, accelerator: Accelerator, frozen: str) -> dict[str, str]:
    weights = hashlib.sha256(_configuration(model).encode())
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


def _configuration(model: Any) -> str:
    """How the backbone is built: its configuration, or of one without, such as timm's in a detector, its layers."""
    found = getattr(model.config, "backbone_config", None) or getattr(model.backbone, "config", None)
    return str(model.backbone) if found is None else str(found.to_json_string())
