"""A Trainer that pushes as the package does."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from transformers import Trainer
from transformers.trainer_utils import HubStrategy
from transformers.utils import PushInProgress

from ..hub import push, write_card
from ..run_folder import MODEL_CONFIG_FILE, WEIGHT_FILES

__all__ = ["PushingTrainer"]


class PushingTrainer(Trainer):
    """Pushes weights, configuration, image processor and card, by an allow-list and without pickles."""

    # Trainer sets these; it is not typed.
    push_in_progress: Any
    processing_class: Any

    def create_model_card(self, *args: Any, license: str | None = None, **options: Any) -> None:
        """Write the card of the package into the output folder; a card that somebody has edited stays."""
        if self.is_world_process_zero():
            write_card(Path(self.args.output_dir), self.hub_model_id or self.args.hub_model_id, license)

    def push_to_hub(
        self,
        commit_message: str | None = "End of training",
        blocking: bool = True,
        token: str | None = None,
        revision: str | None = None,
        private: bool | None = None,
        **options: Any,
    ) -> Any:
        """Save the model and push it as `metaalign push` does: weights, configuration and card, in one commit.

        Args:
            commit_message: Message of the commit.
            blocking: Whether to wait; else a future comes back.
            token: By default `hub_token`, or that of the environment.
            revision: Branch; by default `hub_revision`, or main.
            private: Whether a new repository is private; by default `hub_private_repo`.
            **options: As `metaalign_hf.push` takes them, such as `license`.
        """
        self.callback_handler.on_push_begin(self.args, self.state, self.control)
        token = self.args.hub_token if token is None else token
        if self.hub_model_id is None:
            self.init_hf_repo(token=token, private=private)
        self.save_model(_internal_call=True)
        if not self.is_world_process_zero():
            return None
        self.create_model_card(license=options.get("license"))
        self._finish_current_push()
        return self._push(Path(self.args.output_dir), commit_message, blocking, token, revision, **options)

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        if not self.is_world_process_zero() or self.args.hub_strategy == HubStrategy.END:
            return
        if not self.args.hub_always_push and self.push_in_progress is not None and not self.push_in_progress.is_done():
            return
        self._finish_current_push()
        self.callback_handler.on_push_begin(self.args, self.state, self.control)
        # Checkpoints are deleted in time; the output folder stays.
        folder = Path(self.args.output_dir)
        for path in Path(checkpoint_folder).iterdir():
            if path.name == MODEL_CONFIG_FILE or WEIGHT_FILES.fullmatch(path.name):
                shutil.copy(path, folder / path.name)
        self.processing_class.save_pretrained(folder)
        self.create_model_card()
        message = f"Training in progress, step {self.state.global_step}"
        self.push_in_progress = PushInProgress([self._push(folder, message, False, self.args.hub_token, None)])

    def _push(
        self, folder: Path, message: str | None, blocking: bool, token: str | None, revision: str | None, **options: Any
    ) -> Any:
        from huggingface_hub import HfApi

        def once() -> str:
            branch = self.args.hub_revision if revision is None else revision
            given: dict[str, Any] = {"commit_message": message, "token": token, "revision": branch, **options}
            return push(folder, str(self.hub_model_id), **given)

        return once() if blocking else HfApi().run_as_future(once)

    def _finish_current_push(self) -> None:
        super()._finish_current_push()
        if (current := getattr(self, "push_in_progress", None)) is not None:
            for job in current.jobs:
                job.result()  # a push that failed in the background is told
