"""The Hub: pulling checkpoints, and pushing them without anything that does not belong there.

Pushed are weights (safetensors), configuration, image processor, model card, figures and the record of the run; nothing
else in the folder is looked at, and paths of the machine are shortened to their last part. One push is one commit, so
that a reader never sees half of it. A token comes from an argument, the environment (`HF_TOKEN`) or `hf auth login`,
and is never written.
"""

from ..configuration import HubConfig
from .background import BackgroundPusher
from .errors import HubError
from .fetch import fetch, load_checkpoint
from .public import write_card
from .pushing import push, push_command
from .space import push_space

__all__ = [
    "BackgroundPusher",
    "HubConfig",
    "HubError",
    "fetch",
    "load_checkpoint",
    "push",
    "push_command",
    "push_space",
    "write_card",
]
