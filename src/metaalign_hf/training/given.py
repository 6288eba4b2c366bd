"""What a run records of a pair or a model that was given to `adapt` as an object.

The objects know what they are; a configuration beside them may describe others.
"""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import Any

from ..configuration import Config, DomainConfig

__all__ = ["recorded_config", "with_domains_of"]


def with_domains_of(config: Config, pair: Any) -> Config:
    """The configuration with the domains that the pair was loaded from; as it is where these are not known.

    Args:
        config: The configuration.
        pair: The pair that was given; None where the configuration describes it.
    """
    domains = getattr(pair, "domains", None)
    if domains is None:
        return config
    source = domains.source[0] if len(domains.source) == 1 else list(domains.source) or None
    data = replace(config.data, source=source, target=domains.target, target_labeled=domains.target_labeled)
    return replace(config, data=data)


def recorded_config(config: Config, pair: Any, model: Any) -> dict[str, Any]:
    """What `training_config.yaml` holds: null where only the caller knows what a run used.

    `metaalign train --config` refuses a file with these nulls, since it could not repeat the run.

    Args:
        config: The configuration, with the domains of the pair.
        pair: The pair that was given; None where the configuration describes it.
        model: The model that was given; None where the configuration describes it.
    """
    values = asdict(config)
    if model is not None:
        values["model"] = dict.fromkeys(values["model"])
    if pair is not None and pair.domains is None:
        values["data"] |= {"source": None, "target": None, "target_labeled": None}
        if getattr(pair, "target_labeled", None) is not None:
            values["data"]["target_labeled"] = dict.fromkeys(asdict(DomainConfig()))
    return values
