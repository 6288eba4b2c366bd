"""What a model said of test images before and after, kept small in the run's folder for `metaalign report`.

`outputs.safetensors` holds `before/NAME` and `after/NAME` and stays below about 2 MB. Of a classifier, with DOMAIN
`source` or `target`:

- `DOMAIN_predicted`, `DOMAIN_confidence` `(N,)`: the class and its probability, of at most `MOST_IMAGES` test images;
- `DOMAIN_label` `(N,)`: their true classes, where they are known;
- `DOMAIN_features` `(M, C)`: of the first `MOST_FEATURES` of them the first principal components (at most `COMPONENTS`)
  of both domains' features.

Of a detector, where the target's test images have boxes: `precision` `(K, 101)`, the interpolated precision of each
class at recalls 0, .01, ... 1 and an IoU of .50, and `ap50` `(K,)`; both NaN for a class without objects.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from ..run_folder import OUTPUTS_FILE

__all__ = ["COMPONENTS", "MOST_FEATURES", "MOST_IMAGES", "add_outputs", "classifier_outputs", "read_outputs"]

MOST_IMAGES = 20_000
MOST_FEATURES = 1_000
COMPONENTS = 64


def classifier_outputs(
    found: Mapping[str, tuple[Tensor, Tensor, Tensor, Sequence[int] | None]],
) -> dict[str, Tensor]:
    """The tensors of one evaluation of a classifier.

    Args:
        found: By domain the class and confidence of each image `(N,)`, features of the first ones `(M, D)`, and the
            true classes where they are known.
    """
    tensors: dict[str, Tensor] = {}
    for domain, (predicted, confidence, _, labels) in found.items():
        tensors[f"{domain}_predicted"], tensors[f"{domain}_confidence"] = predicted.int(), confidence.half()
        if labels is not None:
            tensors[f"{domain}_label"] = torch.tensor(labels, dtype=torch.int32)
    projected = principal_components([features for _, _, features, _ in found.values()])
    for domain, features in zip(found, projected, strict=True):
        tensors[f"{domain}_features"] = features.half()
    return tensors


def principal_components(features: Sequence[Tensor], most: int = COMPONENTS) -> list[Tensor]:
    """Sets of features `(M, D)` on the first principal components of all of them together, scaled as a whole."""
    every = torch.cat(list(features)).double().nan_to_num()
    centred = every - every.mean(0)
    _, _, axes = torch.linalg.svd(centred / centred.std().clamp_min(1e-12), full_matrices=False)
    along = (centred / centred.std().clamp_min(1e-12)) @ axes[:most].T
    return list(along.float().split([len(rows) for rows in features]))


def add_outputs(folder: Path, when: str, tensors: Mapping[str, Tensor]) -> None:
    """Write the tensors of an evaluation into a run's folder; those of the other one stay.

    Args:
        folder: The run's folder.
        when: `before` or `after`.
        tensors: By name.
    """
    kept = {} if when == "before" else {f"before/{k}": v for k, v in read_outputs(folder).get("before", {}).items()}
    added = {f"{when}/{name}": value.detach().cpu().contiguous() for name, value in tensors.items()}
    if not added:
        return
    folder.mkdir(parents=True, exist_ok=True)
    partial = folder / f"{OUTPUTS_FILE}.partial"
    try:
        save_file({**kept, **added}, partial)
        partial.replace(folder / OUTPUTS_FILE)
    finally:
        partial.unlink(missing_ok=True)  # a full disk has other uses for the room


def read_outputs(folder: Path) -> dict[str, dict[str, Tensor]]:
    """The tensors in a run's folder by `before` and `after`; empty where there are none, or the file is damaged."""
    path = folder / OUTPUTS_FILE
    try:
        found = load_file(path) if path.is_file() else {}
    except SafetensorError:
        return {}
    split: dict[str, dict[str, Tensor]] = {}
    for name, value in found.items():
        when, _, rest = name.partition("/")
        split.setdefault(when, {})[rest] = value
    return split
