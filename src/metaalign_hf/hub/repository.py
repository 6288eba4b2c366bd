"""A Hub repository to commit to."""

from __future__ import annotations

import re
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi

from ..errors import UserError
from ..run_folder import ADAPTER_CONFIG_FILE, ADAPTER_FILES, MODEL_CONFIG_FILE, WEIGHT_FILES
from .errors import HubError, explained

__all__ = ["TAG", "Repository"]

TAG = "metaalign"
"""What marks a repository as one of ours."""

_CONFIGS = {MODEL_CONFIG_FILE, ADAPTER_CONFIG_FILE}
_MAIN_FILES = {"model": _CONFIGS, "space": {"app.py"}}


class Repository:
    """A repository to commit to.

    Args:
        repo_id: `organisation/name`, or `name` in the user's namespace.
        private: Whether a new one is private; None takes the Hub's default.
        revision: Branch, made when missing; None is main.
        create_pr: Open a pull request instead of committing.
        overwrite: Replace what is not of metaalign-hf.
        token: Access token; None takes that of the environment or login.
        kind: What it holds: a model or a gradio Space.
    """

    def __init__(
        self,
        repo_id: str,
        private: bool | None,
        revision: str | None,
        create_pr: bool,
        overwrite: bool,
        token: str | None,
        kind: Literal["model", "space"] = "model",
    ) -> None:
        if not re.fullmatch(r"([\w.-]+/)?[\w.-]+", repo_id):
            raise UserError(f"push: {repo_id!r} is not a repository id; write organisation/name")
        self.repo_id, self.private, self.revision = repo_id, private, revision
        self.create_pr, self.overwrite, self.token, self.kind = create_pr, overwrite, token, kind
        self.ready = False
        self.api = HfApi(token=token, library_name="metaalign-hf", library_version=version("metaalign-hf"))

    def full_id(self) -> str:
        """The id with its namespace; asks the Hub who the token's user is."""
        with explained(f"push to {self.repo_id}"):
            user = self.api.whoami()["name"]
        if "/" not in self.repo_id:
            self.repo_id = f"{user}/{self.repo_id}"
        return self.repo_id

    def prepare(self) -> None:
        """Check the token and create the repository and branch if they are missing; done once."""
        if self.ready:
            return
        self.full_id()
        with explained(f"push to {self.repo_id}"):
            if not self.create_pr:
                sdk = "gradio" if self.kind == "space" else None
                self.api.create_repo(
                    self.repo_id, private=self.private, exist_ok=True, repo_type=self.kind, space_sdk=sdk
                )
            if self.revision is not None:
                self.api.create_branch(self.repo_id, branch=self.revision, exist_ok=True, repo_type=self.kind)
        self.ready = True

    def commit(self, files: Mapping[str, Path | bytes], message: str) -> str:
        """Commit the files on top of the inspected revision, and delete the model or adapters that they replace."""
        with explained(f"push to {self.repo_id}"):
            info: Any = self.api.repo_info(self.repo_id, revision=self.revision, repo_type=self.kind)
            there = [sibling.rfilename for sibling in info.siblings or []]
            if _MAIN_FILES[self.kind] & set(there) and TAG not in (info.tags or []) and not self.overwrite:
                raise HubError(
                    f"push to {self.repo_id}: it holds another {self.kind}, which is not of metaalign-hf; choose "
                    "another name, or replace it with --overwrite"
                )
            operations: list[CommitOperationAdd | CommitOperationDelete] = [
                CommitOperationAdd(name, content if isinstance(content, bytes) else str(content))
                for name, content in sorted(files.items())
            ]
            outdated = [name for name in there if _is_of_a_model(name) and name not in files]
            operations += [CommitOperationDelete(name) for name in outdated]
            done = self.api.create_commit(
                self.repo_id,
                operations,
                commit_message=message,
                revision=self.revision,
                create_pr=self.create_pr,
                parent_commit=info.sha,
                repo_type=self.kind,
            )
        return str(done.pr_url or done.commit_url)


def _is_of_a_model(name: str) -> bool:
    """Whether a file would say, beside other weights, that they are another model's."""
    return name in (MODEL_CONFIG_FILE, *ADAPTER_FILES) or WEIGHT_FILES.fullmatch(name) is not None
