"""A mode of one's own: a registered class, and nothing else."""

from copy import deepcopy

import pytest
import torch
from torch import nn

from metaalign_hf import MetaAlignForImageClassification, adapt, load_config
from metaalign_hf.batch_norm import MODES, Mixed, register_batch_norm, running_statistics
from metaalign_hf.tasks.building import build_task
from tests.helpers.runs import TINY


class Source(Mixed):
    """Statistics move in the source phase alone."""

    adapting = False

    def begin_adaptation(self) -> None:
        self.adapting = True

    def train_mode(self, model: nn.Module) -> None:
        model.train()
        for layer in model.modules():
            if self.adapting and isinstance(layer, nn.modules.batchnorm._BatchNorm):
                layer.eval()

    def notes(self) -> list[str]:
        return ["Statistics are those of the source phase."]


@pytest.fixture
def registered():
    register_batch_norm("source")(Source)
    yield
    del MODES["source"]


def test_a_mode_is_registered_trained_with_and_told(registered, tmp_path):
    found = {}
    for steps in (1, 3):
        options = {"training.batch_norm": "source", "training.output_dir": str(tmp_path / str(steps))}
        options |= {"training.max_steps": steps, "training.select_by": None, "optimizer.lr": 1e-30}
        config = load_config(TINY, options)
        torch.manual_seed(0)
        task = build_task(config)
        summary = adapt(config, pair=task.pair, model=deepcopy(task.model))
        assert summary.batch_norm == "source" and "Statistics are those of the source phase." in summary.notes
        found[steps] = running_statistics(MetaAlignForImageClassification.from_pretrained(tmp_path / str(steps)))
    counts = {steps: {int(v) for k, v in values.items() if "tracked" in k} for steps, values in found.items()}
    assert counts == {1: {4}, 3: {4}}, "the four steps of the source phase"
