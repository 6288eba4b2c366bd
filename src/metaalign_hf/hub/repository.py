"""A Hub repository to commit to."""

from __future__ import annotations

import re
from importlib.metadata import version
from pathlib import Path

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi

from ..errors import UserError
from ..run_folder import ADAPTER_CONFIG_FILE, ADAPTER_WEIGHTS_FILE, MODEL_CONFIG_FILE, WEIGHT_FILES
from .errors import HubError, explained

__all__ = ["Repository"]

_TAG = "metaalign"
_CONFIGS = {MODEL_CONFIG_FILE, ADAPTER_CONFIG_FILE}


class Repository:
    """A repository to commit to."""

    def __init__(
        self,
        repo_id: str,
        private: bool | None,
        revision: str | None,
        create_pr: bool,
        overwrite: bool,
        token: str | None,
    ) -> None:
        if not re.fullmatch(r"([\w.-]+/)?[\w.-]+", repo_id):
            raise UserError(f"push: {repo_id!r} is not a repository id; write organisation/name")
        self.repo_id, self.private, self.revision = repo_id, private, revision
        self.create_pr, self.overwrite, self.token = create_pr, overwrite, token
        self.ready = False
        self.api = HfApi(token=token, library_name="metaalign-hf", library_version=version("metaalign-hf"))

    def prepare(self) -> None:
        """Check the token and create the repository and branch if they are missing; done once."""
        if self.ready:
            return
        with explained(f"push to {self.repo_id}"):
            user = self.api.whoami()["name"]
            if "/" not in self.repo_id:
                self.repo_id = f"{user}/{self.repo_id}"
            if not self.create_pr:
                self.api.create_repo(self.repo_id, private=self.private, exist_ok=True)
            if self.revision is not None:
                self.api.create_branch(self.repo_id, branch=self.revision, exist_ok=True)
        self.ready = True

    def commit(self, files: dict[str, Path | bytes], message: str) -> str:
        """Commit the files on top of the inspected revision, and delete the model or adapters that they replace."""
        with explained(f"push to {self.repo_id}"):
            info = self.api.model_info(self.repo_id, revision=self.revision)
            there = [sibling.rfilename for sibling in info.siblings or []]
            if _CONFIGS & set(there) and _TAG not in (info.tags or []) and not self.overwrite:
                raise HubError(
                    f"push to {self.repo_id}: it holds another model, which is not of metaalign-hf; choose another "
                    "name, or replace it with --overwrite"
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
            )
        return str(done.pr_url or done.commit_url)


def _is_of_a_model(name: str) -> bool:
    """Whether a file would say, beside other weights, that they are another model's."""
    return name in (*_CONFIGS, ADAPTER_WEIGHTS_FILE) or WEIGHT_FILES.fullmatch(name) is not None
