"""What is known of a file system at an address: its folders, each listed once."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any
from urllib.parse import quote, unquote

from .addresses import open_place, told_remote_errors

__all__ = ["RemoteTree"]

_VERSION = ("ETag", "etag", "blob_id", "CRC", "mtime", "LastModified", "Last-Modified", "created", "size")
"""What file systems say of a file that changes with it; of its size alone that is not certain."""


@dataclass
class RemoteTree:
    """The folders of a file system, each listed once.

    Attributes:
        address: An address in it, as it was given.
        name: Name of the domain, for errors.
        prefix: What addresses start with, before what the file system calls a file.
        chained: What they end with.
        web: Whether it is a web server, which may list no folder; files are then taken to be there.
        listed: By folder its entries, with the version of each file and None for each folder.
    """

    address: str
    name: str
    prefix: str
    chained: str
    web: bool
    listed: dict[str, dict[str, str | None]] = field(default_factory=dict, repr=False)
    searched: list[str] = field(default_factory=list, repr=False)

    @property
    def fs(self) -> Any:
        """The file system, of this process."""
        return _file_system(self.address, self.name, os.getpid())

    def text(self, inner: str) -> str:
        """The address of a file."""
        return f"{self.prefix}{inner.lstrip('/')}{self.chained}"

    def wire(self, inner: str) -> str:
        """What the file system calls a file."""
        return quote(inner, safe="/:?&=%+,;@!$'()*~") if self.web else inner

    def entries(self, folder: str) -> dict[str, str | None]:
        """What a folder holds; nothing where it does not exist, or is not listed."""
        if folder not in self.listed:
            with told_remote_errors(self.text(folder), self.name):
                found = self._ask(folder)
            plain = {self._plain(entry["name"]): _version(entry) for entry in found}
            self.listed[folder] = {
                name.rpartition("/")[2]: version for name, version in plain.items() if name != folder.rstrip("/")
            }
        return self.listed[folder]

    def _ask(self, folder: str) -> list[dict[str, Any]]:
        try:
            return list(self.fs.ls(self.wire(folder), detail=True))
        except (FileNotFoundError, NotADirectoryError):
            return []
        except Exception:
            if self.web:
                return []
            raise

    def search(self, folder: str) -> None:
        """List a folder and all that are below it, which asks less than one after another."""
        if any(folder == root or folder.startswith(f"{root}/") for root in self.searched):
            return
        with told_remote_errors(self.text(folder), self.name):
            found = self.fs.find(self.wire(folder), detail=True)
        self.listed.setdefault(folder, {})
        for file, info in found.items():
            above, _, name = self._plain(file).rpartition("/")
            version = _version(info)
            while name:
                known = above in self.listed
                self.listed.setdefault(above, {}).setdefault(name, version)
                if known or above == folder or not above.startswith(folder):
                    break
                (above, _, name), version = above.rpartition("/"), None
        self.searched.append(folder)

    def _plain(self, file: str) -> str:
        return (unquote(file) if self.web else file).rstrip("/")

    def version(self, inner: str) -> str:
        """What tells a file from what it may become; empty where nobody says."""
        above, _, name = inner.rpartition("/")
        if above in self.listed:
            return self.listed[above].get(name) or ""
        with told_remote_errors(self.text(inner), self.name):
            return _version(self.fs.info(self.wire(inner))) or ""

    def content(self, inner: str) -> bytes:
        """The bytes of a file."""
        with told_remote_errors(self.text(inner), self.name):
            found: bytes = self.fs.cat_file(self.wire(inner))
            return found


@lru_cache(maxsize=16)  # an archive is looked into once in every process
def _file_system(address: str, name: str, process: int) -> Any:
    return open_place(address, name)[0]


def _version(info: dict[str, Any]) -> str | None:
    """The version of a file; None of a folder."""
    if info.get("type") == "directory":
        return None
    return " ".join(f"{key}={info[key]}" for key in _VERSION if info.get(key) is not None)
