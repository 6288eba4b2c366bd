"""Opens the splits of a domain with `streaming: true`: nothing of it is copied to this disk for good."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..configuration import DomainConfig
from ..errors import UserError, one_line
from .addresses import files_at
from .arrow_blocks import ArrowBlocks
from .block_files import BlockFormat, index_files
from .disk_cache import DiskCache
from .parquet_blocks import ParquetBlocks
from .streamed_rows import StreamedRows
from .tar_blocks import TarBlocks

__all__ = ["LazySplits", "open_streamed"]

_FORMATS: Mapping[str, tuple[type[BlockFormat], tuple[str, ...]]] = {
    "parquet": (ParquetBlocks, (".parquet",)),
    "arrow": (ArrowBlocks, (".arrow",)),
    "webdataset": (TarBlocks, (".tar",)),
}
"""How files of a kind are read, and their endings; the kinds are those of the modules of `datasets`, too."""


class LazySplits(Mapping[str, StreamedRows]):
    """Splits by name, each of which is listed when it is asked for.

    Args:
        files: Files of each split.
        kind: Their format.
        features: The columns, where they are known.
        config: The domain.
    """

    def __init__(self, files: Mapping[str, Sequence[str]], kind: str, features: Any, config: DomainConfig) -> None:
        self._files, self._format, self._features, self._config = dict(files), _FORMATS[kind][0](), features, config
        self._opened: dict[str, StreamedRows] = {}

    def __getitem__(self, split: str) -> StreamedRows:
        if split not in self._opened:
            config, name = self._config, self._config.describe()
            cache = DiskCache(f"{config.short_form()} {config.revision}", int(config.streaming_gigabytes * 1e9))
            found = index_files(self._files[split], self._format, self._features, name)
            self._opened[split] = StreamedRows(found, cache, config.shuffle_buffer)
        return self._opened[split]

    def __iter__(self) -> Any:
        return iter(self._files)

    def __len__(self) -> int:
        return len(self._files)


def open_streamed(config: DomainConfig) -> LazySplits:
    """The splits of a domain of kind `dataset`, `parquet`, `arrow` or `webdataset`.

    Raises:
        UserError: If there are no files, or files of another kind.
    """
    name = config.describe()
    assert config.path is not None
    if config.kind != "dataset":
        endings = _FORMATS[config.kind][1]
        files = {"train": files_at(config.path, endings, name)}
        if config.test_path is not None:
            files["test"] = files_at(config.test_path, endings, name)
        return LazySplits(files, config.kind, None, config)
    import datasets

    path = Path(config.path).expanduser()
    if (path / "dataset_dict.json").is_file() or (path / "state.json").is_file():
        raise UserError(
            f"domain {name}: {path} was saved by save_to_disk, and is read from where it lies anyway; drop streaming"
        )
    try:
        builder = datasets.load_dataset_builder(str(path), name=config.config_name, revision=config.revision)
    except Exception as error:
        reason = one_line(error.__cause__ or error)[:300]
        raise UserError(f"domain {name}: the data set {config.path} cannot be loaded: {reason}") from error
    kind = type(builder).__module__.rpartition(".")[2]
    if not type(builder).__module__.startswith("datasets.packaged_modules.") or kind not in _FORMATS:
        advice = "drop streaming" if path.exists() else "set revision: refs/convert/parquet, the Hub's copy in parquet"
        raise UserError(
            f"domain {name}: streaming reads {', '.join(_FORMATS)}, and this data set is stored as {kind}; {advice}"
        )
    files = {str(split): list(map(str, found)) for split, found in (builder.config.data_files or {}).items()}
    return LazySplits(files, kind, builder.info.features, config)
