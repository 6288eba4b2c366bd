"""What an alignment level of a detector takes and gives, the registry of levels and their presets."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor, nn

from ...errors import UserError
from ...registry import Registry
from ..base import AlignmentOutput, weighted_sum
from ..gradient_scale import scale_gradient
from ..registry import normalise_specs

__all__ = [
    "PRESETS",
    "AlignmentLevel",
    "DetectionAlignmentBatch",
    "DetectorWidths",
    "Level",
    "LevelSum",
    "build_levels",
    "domain_mean",
    "level_names",
    "normalise_levels",
    "register_level",
]

PRESETS: dict[str, list[dict[str, Any]]] = {
    # The published pair of SWDA and MetaAlign.
    "swda": [{"name": "backbone_pixel", "weight": 1.0}, {"name": "backbone_global", "weight": 1.0}],
    # Where DETRs are aligned today (SFA, AQT, MRT), at their common weight of 0.1 a level.
    "detr": [
        {"name": "backbone_global", "weight": 0.1},
        {"name": "encoder", "weight": 0.1},
        {"name": "query", "weight": 0.1},
    ],
}
"""Named sets of levels; a name stands for its entries wherever a level's name may stand."""


@dataclass
class Level:
    """Features with a mask of what is image and what is padding.

    Attributes:
        values: Maps `(B, C, H, W)` or tokens `(B, N, C)`.
        mask: `(B, H, W)` or `(B, N)`, boolean, True on the image; None where nothing is padded.
    """

    values: Tensor
    mask: Tensor | None = None

    def rows(self, kept: Tensor) -> Level:
        """Those of the images that a boolean mask `(B,)` keeps."""
        return Level(self.values[kept], None if self.mask is None else self.mask[kept])

    def scaled(self, scale: Tensor) -> Level:
        """The features, whose gradient is multiplied by a scalar."""
        return Level(scale_gradient(self.values, scale), self.mask)


@dataclass
class DetectorWidths:
    """Channel counts of a detector's features: one entry per map, one per encoder level, and the queries'."""

    maps: tuple[int, ...]
    encoder: tuple[int, ...]
    queries: int


@dataclass
class DetectionAlignmentBatch:
    """Features of a detector for images of both domains, without denoising queries and extra group queries.

    Attributes:
        maps: Backbone maps, from fine to coarse.
        encoder: Encoder tokens, one entry per feature level.
        queries: Decoder queries of the last layer `(B, Q, D)`.
        objectness: Highest class probability of each query `(B, Q)`, detached.
        domain_labels: `(B,)`, 0 for the source and 1.. for the target.
        progress: Training progress in 0..1.
    """

    maps: list[Level]
    encoder: list[Level]
    queries: Tensor
    objectness: Tensor
    domain_labels: Tensor
    progress: float = 1.0

    def scaled(self, scale: Tensor) -> DetectionAlignmentBatch:
        """The batch, whose gradient on its way into the network is multiplied by a scalar; see `scale_gradient`."""
        return replace(
            self,
            maps=[level.scaled(scale) for level in self.maps],
            encoder=[level.scaled(scale) for level in self.encoder],
            queries=scale_gradient(self.queries, scale),
        )


class AlignmentLevel(nn.Module):
    """A level of alignment; subclass it, implement `forward` and register it with `register_level`.

    Keyword-only arguments of the constructor are the level's options; their defaults must be JSON values.

    Args:
        widths: Channel counts of the detector's features.

    Attributes:
        uses_progress: Whether the loss depends on `DetectionAlignmentBatch.progress`; a run whose loss does not may be
            made longer.
        maps_suffice: Whether the loss reads the backbone's maps alone; a pass for it may then stop early, and the rest
            of the batch is empty.
    """

    uses_progress: ClassVar[bool] = True
    maps_suffice: ClassVar[bool] = False

    def __init__(self, widths: DetectorWidths) -> None:
        super().__init__()
        self.widths = widths

    def forward(self, batch: DetectionAlignmentBatch) -> AlignmentOutput:
        """The alignment loss of a batch."""
        raise NotImplementedError


def domain_mean(
    values: Tensor, mask: Tensor | None, domain_labels: Tensor, level: str, weights: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Mean of a quantity over the source images and over the target images, padding left out.

    The mean is over an image's positions first, then over a domain's images: an image counts the same however large or
    padded it is.

    Args:
        values: One number per position, `(B, ...)`.
        mask: True where the position is image; None where all are.
        domain_labels: `(B,)`, 0 for the source.
        level: Name of the level, for the error.
        weights: Weights of the positions, held constant; all 1 by default.

    Returns:
        The source's mean and the target's, scalars.

    Raises:
        UserError: If a domain has no image.
    """
    weight = torch.ones_like(values) if weights is None else weights.detach().to(values.dtype)
    if mask is not None:
        weight = weight * mask.to(values.dtype)
        values = values.masked_fill(~mask, 0.0)
    images = len(values)
    weighed, weight = (values * weight).reshape(images, -1), weight.reshape(images, -1)
    per_image = weighed.sum(1) / weight.sum(1).clamp_min(1e-6)
    is_source = domain_labels == 0
    for domain, rows in (("source", is_source), ("target", ~is_source)):
        if not bool(rows.any()):
            raise UserError(f"alignment {level}: the batch has no {domain} image, and it needs one of each domain")
    return per_image[is_source].mean(), per_image[~is_source].mean()


_LEVELS: Registry[type[AlignmentLevel]] = Registry(
    "alignment level", "alignment: unknown level {!r}", known="known for detectors", cited_as="level", others=PRESETS
)
T = TypeVar("T", bound=type[AlignmentLevel])


def register_level(name: str, *, citation: str | None = None) -> Callable[[T], T]:
    """Make a level known by name: a class decorator.

    Args:
        name: The name; it must be free.
        citation: BibTeX of the publication, which model cards of runs with the level then cite.

    Raises:
        ValueError: If another class or a preset has the name, or the citation is not BibTeX.
    """
    return _LEVELS.register(name, citation=citation)


def level_names() -> list[str]:
    """Names of all levels and presets."""
    return _LEVELS.names()


def normalise_levels(spec: Any) -> list[dict[str, Any]]:
    """Spell out which levels are aligned; presets are replaced by their entries.

    Args:
        spec: None, a name (`encoder`, or a preset: `swda`, `detr`), a dict with `name`, `weight` (default 1) and the
            level's options, or a list of those. A preset's weight multiplies those of its entries.

    Returns:
        One dict per level with `name`, `weight` and the options that were given.

    Raises:
        UserError: If a name or option is unknown, a weight is negative or not finite, or a level occurs twice.
    """
    if spec is None:
        return []
    entries: list[Any] = []
    for entry in spec if isinstance(spec, list | tuple) else [spec]:
        name = entry.get("name") if isinstance(entry, dict) else entry
        if not isinstance(name, str) or name not in PRESETS:
            entries.append(entry)
            continue
        given = entry if isinstance(entry, dict) else {}
        extra = sorted(set(given) - {"name", "weight"})
        if extra:
            raise UserError(f"alignment {name}: a preset takes a weight only, not {', '.join(extra)}; name its levels")
        factor = given.get("weight", 1.0)
        if not isinstance(factor, int | float):
            raise UserError(f"alignment {name}: weight is {factor!r}; it must be a finite number, 0 or more")
        entries += [{**level, "weight": level["weight"] * factor} for level in PRESETS[name]]
    return normalise_specs(_LEVELS, entries, ("name", "weight"))


class LevelSum(nn.Module):
    """The weighted sum of alignment levels.

    Args:
        specs: As `normalise_levels` returns them.
        widths: Channel counts of the detector's features.
    """

    def __init__(self, specs: list[dict[str, Any]], widths: DetectorWidths) -> None:
        super().__init__()
        self.weights = {spec["name"]: spec["weight"] for spec in specs}
        self.levels = nn.ModuleDict()
        for spec in specs:
            options = {key: value for key, value in spec.items() if key not in ("name", "weight")}
            try:
                self.levels[spec["name"]] = _LEVELS[spec["name"]](widths, **options)
            except (TypeError, ValueError) as error:
                raise UserError(f"alignment {spec['name']}: {error}") from error

    @property
    def maps_suffice(self) -> bool:
        """Whether no level reads more than the backbone's maps."""
        return all(level.maps_suffice for level in self.levels.values())

    def forward(self, batch: DetectionAlignmentBatch) -> AlignmentOutput:
        """The weighted sum; parts are prefixed with the level's name where there are several."""
        return weighted_sum(self.levels, self.weights, batch)


def build_levels(spec: Any, widths: DetectorWidths) -> LevelSum | None:
    """The levels that `spec` names, or None where it names none.

    Raises:
        UserError: If a name, an option or its value is wrong, or the detector has nothing at that level.
    """
    specs = normalise_levels(spec)
    return LevelSum(specs, widths) if specs else None
