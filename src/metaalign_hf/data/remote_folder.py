"""Folders of images at addresses that fsspec opens; each image is fetched once and kept on this disk."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from ..errors import UserError
from .addresses import open_place, told_remote_errors
from .disk_cache import DiskCache
from .images import IMAGE_SUFFIXES, ImageSet, read_image

__all__ = ["read_remote_folder"]

_VERSION = ("size", "ETag", "blob_id", "mtime", "LastModified", "created")
"""What the listings of file systems say of a file that changes with it."""


@dataclass(frozen=True)
class RemoteLoader:
    """Loads image files at addresses.

    Attributes:
        files: Address and version of each.
        cache: Keeps them.
        name: Name of the domain, for errors.
    """

    files: tuple[tuple[str, str], ...]
    cache: DiskCache
    name: str

    def __call__(self, index: int) -> Tensor:
        """The image with this index `(3, H, W)`, uint8."""
        address, version = self.files[index]

        def fetch(part: Path) -> None:
            fs, inner = open_place(address, self.name)
            with told_remote_errors(address, self.name):
                part.write_bytes(fs.cat_file(inner))

        return read_image(self.cache.file(f"{address} {version}", fetch), address)


def read_remote_folder(path: str, name: str, known: list[str] | None = None) -> tuple[list[str] | None, ImageSet]:
    """Images of a folder at an address: of its class folders, or, where it has none, unlabelled.

    Args:
        path: The address, such as `hf://datasets/ORG/NAME/FOLDER` or `zip://FOLDER::FILE.zip`.
        name: Name of the domain, for errors.
        known: Class names of the training folder, for a test folder.

    Returns:
        Class names and images.

    Raises:
        UserError: If the folder cannot be read or is empty, or a test folder has a class of its own.
    """
    fs, inner = open_place(path, name)
    root = inner.rstrip("/")
    with told_remote_errors(path, name):
        if not fs.isdir(inner):
            raise UserError(f"domain {name}: the folder {path} does not exist")
        listed = fs.find(inner, detail=True)
    _, chained, rest = path.partition("::")
    files: list[tuple[str, str]] = []
    folders: list[str] = []
    for file, info in sorted(listed.items()):
        below = file[len(root) :].lstrip("/").split("/")
        if not file.lower().endswith(IMAGE_SUFFIXES) or any(part.startswith(".") for part in below):
            continue
        version = " ".join(str(info[key]) for key in _VERSION if key in info)
        files.append((fs.unstrip_protocol(file) + chained + rest, version))
        folders.append(below[0] if len(below) > 1 else "")
    if not files:
        raise UserError(f"domain {name}: the folder {path} holds no images ({', '.join(IMAGE_SUFFIXES)})")
    labelled = any(folders)
    # As in a folder of this disk, images beside class folders are not used.
    kept = [n for n, folder in enumerate(folders) if folder or not labelled]
    classes = (known or sorted(set(folders) - {""})) if labelled else None
    for folder in folders:
        if classes is not None and folder and folder not in classes:
            raise UserError(f"domain {name}: the test folder {path}/{folder} is not a class of the training folder")
    load = RemoteLoader(tuple(files[n] for n in kept), DiskCache(f"imagefolder:{path}"), name)
    labels = None if classes is None else tuple(classes.index(folders[n]) for n in kept)
    return classes, ImageSet(name, len(kept), load, labels)
