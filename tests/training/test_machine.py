"""What a run makes of the machine that it is on."""

import pytest
import torch
import yaml

from metaalign_hf.cli import run
from metaalign_hf.configuration import TrainingConfig
from metaalign_hf.training.machine import precision
from tests.helpers.runs import TINY, assert_same_run


@pytest.mark.parametrize(
    ("wanted", "device", "gpu", "bf16", "found"),
    [
        ("auto", "auto", True, True, "bf16"),
        ("auto", "auto", True, False, "no"),
        ("auto", "auto", False, True, "no"),
        ("auto", "cpu", True, True, "no"),
        ("fp16", "auto", True, True, "fp16"),
        ("no", "cuda", True, True, "no"),
    ],
)
def test_the_precision_that_the_device_likes(wanted, device, gpu, bf16, found, monkeypatch):
    """Bf16 that a GPU only emulates does not count."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: bf16 or including_emulation)
    assert precision(TrainingConfig(mixed_precision=wanted, device=device)) == found


def test_without_a_gpu_nothing_changes(tmp_path, capsys):
    """The record says what was used; a run that was begun with one is resumed with the other."""
    options = ["--training.device", "cpu", "--training.checkpoint_every", "5", "--training.output_dir"]
    assert run(["train", "--config", TINY, *options, str(tmp_path / "plain")]) == 0
    auto = ["train", "--config", TINY, "--training.mixed_precision", "auto", *options, str(tmp_path / "auto")]
    assert run(auto) == 0
    assert_same_run(tmp_path / "plain", tmp_path / "auto")
    recorded = yaml.safe_load((tmp_path / "auto" / "training_config.yaml").read_text())
    assert recorded["training"]["mixed_precision"] == "no"
    again = ["--training.mixed_precision", "auto", "--training.resume", "auto"]
    assert run(["train", "--config", TINY, *options, str(tmp_path / "plain"), *again]) == 2
    assert "plain is finished; there is nothing to resume" in capsys.readouterr().err
