"""Paths that a list or an annotation names must stay in one folder: whoever wrote the file is not trusted."""

from __future__ import annotations

import os
from pathlib import Path

from ..configuration import DomainConfig
from ..errors import UserError
from .remote_path import RemotePath

__all__ = ["Boundary"]


class Boundary:
    """The folder that the paths of a file must not leave, by `..`, as an absolute path, or by a link.

    The folder itself may be a link, and may be reached through links. Folders are looked up once each.

    Args:
        folder: The folder.
        config: The domain; `outside_root` lifts the restriction.
        other: The key that names another folder, for the error; empty where there is none.
    """

    def __init__(self, folder: str | Path, config: DomainConfig, other: str = "") -> None:
        self.remote = folder if isinstance(folder, RemotePath) else None
        self.folder = str(folder)
        self.other = other
        self.lifted = config.outside_root == "allow"
        self._real = "" if self.remote is not None else os.path.realpath(self.folder)
        self._inside: dict[str, bool] = {}

    def holds_folder(self, folder: str) -> bool:
        """Whether a folder is this one, or below it."""
        if folder not in self._inside:
            self._inside[folder] = self.lifted or self._holds(folder)
        return self._inside[folder]

    def _holds(self, path: str) -> bool:
        try:
            return os.path.commonpath([self._real, os.path.realpath(path)]) == self._real
        except ValueError:  # a name that no file can have, which is told as one that does not exist
            return True

    def holds(self, path: str | Path) -> bool:
        """Whether a file is below the folder; at an address there are no links."""
        if self.remote is not None:
            return self.lifted or (isinstance(path, RemotePath) and path.is_below(self.remote))
        folder, _ = os.path.split(path)
        return self.holds_folder(folder) and (self.lifted or not os.path.islink(path) or self._holds(str(path)))

    def error(self, path: str | Path, where: str) -> UserError:
        """The error for a path that leaves the folder.

        Args:
            path: The path.
            where: Where it is named: file and row.
        """
        real, plain = ("", "") if self.remote else (os.path.realpath(path), os.path.normpath(os.path.abspath(path)))
        found = f"{path} leads to {real}, which" if real != plain else str(path)
        # Another folder would move the relative paths, too.
        absolute = self.other and not str(path).startswith(self.folder.rstrip("/") + "/")
        advice = f"set {self.other} to a folder that holds all images, or " if absolute else ""
        return UserError(
            f"{where}: {found} is outside of the folder {self.folder}; {advice}set outside_root: allow if you trust "
            "this file"
        )

    def require(self, path: str | Path, where: str) -> None:
        """Refuse a path that leaves the folder.

        Args:
            path: The path.
            where: Where it is named: file and row.

        Raises:
            UserError: If it does.
        """
        if not self.holds(path):
            raise self.error(path, where)
