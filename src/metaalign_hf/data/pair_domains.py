"""The domains that a pair was made of."""

from __future__ import annotations

from dataclasses import dataclass

from ..configuration import DomainConfig

__all__ = ["PairDomains"]


@dataclass(frozen=True)
class PairDomains:
    """The domains that a pair was loaded from, so that a run can record them and name them in commands.

    Attributes:
        source: The source, or all of them.
        target: The target.
        target_labeled: Where the labelled target images are; None without any.
    """

    source: tuple[DomainConfig, ...]
    target: DomainConfig
    target_labeled: DomainConfig | None = None
