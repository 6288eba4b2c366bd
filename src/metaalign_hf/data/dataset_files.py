"""Data sets of the Hub, of a folder, or in files that `datasets` reads: parquet, arrow and webdataset."""

from __future__ import annotations

import glob
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..configuration import DomainConfig
from ..configuration.data import FILE_KINDS
from ..errors import UserError, one_line
from .addresses import is_address, open_place
from .images import IMAGE_SUFFIXES
from .streaming import open_streamed

__all__ = ["dataset_split", "open_dataset", "required_path"]

_ENDINGS = {"parquet": "*.parquet", "arrow": "*.arrow", "webdataset": "*.tar"}


def required_path(config: DomainConfig) -> str:
    """The domain's path.

    Raises:
        UserError: If it has none.
    """
    if not config.path:
        raise UserError(f"a domain of kind {config.kind} needs a path")
    return config.path


def open_dataset(config: DomainConfig) -> tuple[Any, DomainConfig]:
    """All splits of a data set, and the configuration of a domain of kind `dataset` that reads them.

    `datasets` maps what it reads into memory, so that a data set may be larger than it. Of files, `path` is the split
    `train` and `test_path` the split `test`; each is a file, a folder, a pattern (`shards/train-*.tar`), or an address
    that fsspec opens (`s3://...`, `https://...`). The columns of a webdataset are named after the endings of its
    files: where `image_column` and `label_column` are not set, they are its images and `cls`.

    Raises:
        UserError: If it cannot be loaded.
    """
    name = config.describe()
    if config.streaming:
        return _of_files(open_streamed(config), config)
    if config.kind not in FILE_KINDS:
        return _load_splits(config, name), config
    import datasets

    files = {"train": _files(required_path(config), config, name)}
    if config.test_path is not None:
        files["test"] = _files(config.test_path, config, name)
    try:
        splits = datasets.load_dataset(config.kind, data_files=files)
    except Exception as error:
        raise UserError(f"domain {name}: {config.path} cannot be loaded: {_reason(error)}") from error
    return _of_files(splits, config)


def _of_files(splits: Any, config: DomainConfig) -> tuple[Any, DomainConfig]:
    """The splits of files, and the configuration of a domain of kind `dataset` that reads them."""
    if config.kind not in FILE_KINDS:
        return splits, config
    name, test = config.describe(), "test" if config.test_path is not None else None
    config = replace(config, kind="dataset", name=name, test_path=None, test_split=test)
    columns = splits["train"].column_names
    if config.image_column not in columns and config.image_column == "image":
        found = [column for column in columns if f".{column.lower()}" in IMAGE_SUFFIXES]
        config = replace(config, image_column=found[0]) if len(found) == 1 else config
    if config.label_column not in columns and config.label_column == "label" and "cls" in columns:
        config = replace(config, label_column="cls")
    return splits, config


def _files(path: str, config: DomainConfig, name: str) -> str:
    """The files that a path stands for, as `datasets` takes them."""
    if is_address(path):
        open_place(path, name)  # what is not installed is told here, in one line
        return path
    path = os.path.expanduser(path)
    if os.path.isdir(path):
        path = os.path.join(path, "**", _ENDINGS[config.kind])
    if not os.path.isfile(path) and not glob.glob(path, recursive=True):
        raise UserError(f"domain {name}: there is no file {path}")
    return path


def _load_splits(config: DomainConfig, name: str) -> Any:
    import datasets

    path = Path(required_path(config)).expanduser()
    try:
        if (path / "dataset_dict.json").is_file() or (path / "state.json").is_file():
            found = datasets.load_from_disk(str(path))
            return found if isinstance(found, datasets.DatasetDict) else datasets.DatasetDict({"train": found})
        return datasets.load_dataset(str(path), name=config.config_name, revision=config.revision)
    except Exception as error:
        raise UserError(f"domain {name}: the data set {config.path} cannot be loaded: {_reason(error)}") from error


def _reason(error: Exception) -> str:
    """What went wrong: `datasets` says of some errors only that one occurred, and what it was is its cause."""
    return one_line(error.__cause__ or error)[:300]


def dataset_split(splits: Any, split: str, config: DomainConfig, name: str) -> Any:
    """One split, reduced to the rows of the domain.

    Raises:
        UserError: If a split or column is missing, or no row is of the domain.
    """
    if split not in splits:
        raise UserError(f"domain {name}: there is no split {split!r}; the data set has {', '.join(splits)}")
    data = splits[split]
    for key, column in (("image_column", config.image_column), ("domain_column", config.domain_column)):
        if column is not None and column not in data.column_names:
            raise UserError(f"domain {name}: {key} {column!r} does not exist; columns: {', '.join(data.column_names)}")
    if len(data) == 0:
        raise UserError(f"domain {name}: split {split} has no rows")
    if config.domain_column is None:
        return data
    if config.domain is None:
        raise UserError(f"domain {name}: domain_column is {config.domain_column}; name the domain to keep as well")
    feature = data.features[config.domain_column]
    values = data[config.domain_column]
    if hasattr(feature, "int2str"):
        values = [feature.int2str(value) for value in values]
    texts = [str(value) for value in values]
    kept = [index for index, text in enumerate(texts) if text == config.domain]
    if not kept:
        known = ", ".join(sorted(set(texts))[:20])
        raise UserError(
            f"domain {name}: no row of {split} has {config.domain_column} = {config.domain}; it has {known}"
        )
    return data.select(kept)
