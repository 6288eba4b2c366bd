"""What may be published of a run: an allow-list of files, without local paths and tokens."""

from __future__ import annotations

import json
import re
from pathlib import Path

import yaml

from ..errors import UserError
from ..reports import (
    FIGURE_FILES,
    RunRecord,
    card_is_generated,
    model_card,
    read_record,
    without_local_paths,
    write_figures,
)
from ..run_folder import (
    ADAPTER_CONFIG_FILE,
    ADAPTER_HEADS_FILE,
    ADAPTER_MODEL_FILE,
    ADAPTER_WEIGHTS_FILE,
    CARD_FILE,
    DETECTIONS_FILE,
    FIGURES_FOLDER,
    MODEL_CONFIG_FILE,
    PROCESSOR_FILES,
    RECORD_FILES,
    TARGET_IMAGES_FILE,
    WEIGHT_FILES,
)

__all__ = ["curve_figures", "may_write_card", "public_files", "target_pictures", "write_card"]

_TOKEN = re.compile(r"hf_[A-Za-z0-9]{20,}")


def public_files(folder: Path, records: Path) -> dict[str, Path | bytes]:
    """What may be published of a folder: weights as they are, texts without local paths; card and figures not yet.

    Args:
        folder: Where weights or adapters, configuration and image processor are.
        records: Where the record of the run is.
    """
    files: dict[str, Path | bytes] = {}
    for path in folder.iterdir():
        if path.name in (ADAPTER_WEIGHTS_FILE, ADAPTER_HEADS_FILE) or WEIGHT_FILES.fullmatch(path.name):
            files[path.name] = path
    for place, names in (
        (folder, (MODEL_CONFIG_FILE, ADAPTER_CONFIG_FILE, ADAPTER_MODEL_FILE, *PROCESSOR_FILES)),
        (records, RECORD_FILES[1:]),
    ):
        for name in names:
            if (place / name).is_file():
                text = published(name, (place / name).read_text())
                if _TOKEN.search(text):
                    raise UserError(f"push: {place / name} holds what looks like an access token; remove it first")
                files[name] = text.encode()
    return files


def published(name: str, text: str) -> str:
    """A text without local paths; unchanged where it has none."""
    if name.endswith(".jsonl"):
        return "".join(f"{published('.json', line)}\n" for line in text.splitlines())
    values = yaml.safe_load(text) if name.endswith(".yaml") else json.loads(text)
    public = without_local_paths(values)
    if public == values:
        return text
    if name.endswith(".yaml"):
        return yaml.safe_dump(public, sort_keys=False)
    return json.dumps(public, indent=2) + "\n" if "\n" in text else json.dumps(public)


def write_card(folder: Path, repo_id: str | None = None, license: str | None = None) -> list[Path]:
    """Write the figures and the model card of a run into its folder; a card that somebody has edited stays.

    Args:
        folder: The run's folder, with the model saved in it.
        repo_id: Where it will be on the Hub.
        license: Licence for the card.

    Returns:
        The files written.
    """
    record = read_record(folder)
    written = write_figures(record, folder / FIGURES_FOLDER)
    if may_write_card(folder):
        names = [f"{FIGURES_FOLDER}/{path.name}" for path in written]
        (folder / CARD_FILE).write_text(model_card(record, repo_id=repo_id, figures=names, license=license))
        written.append(folder / CARD_FILE)
    return written


def curve_figures(record: RunRecord, folder: Path, scratch: Path) -> list[Path]:
    """The training curves in the folder, or newly drawn ones, without an image of any data set."""
    there = [path for name in FIGURE_FILES if (path := folder / FIGURES_FOLDER / name).is_file()]
    return there or write_figures(record, scratch)


def target_pictures(folder: Path) -> list[Path]:
    """The pictures of target images in a run's folder, which are published only where somebody asks for it."""
    return [path for name in (TARGET_IMAGES_FILE, DETECTIONS_FILE) if (path := folder / name).is_file()]


def may_write_card(folder: Path) -> bool:
    """Whether the folder's card may be written anew: there is none, or nobody has edited it."""
    card = folder / CARD_FILE
    return not card.is_file() or card_is_generated(card.read_text())
