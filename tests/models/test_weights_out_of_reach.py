"""Pretrained weights that cannot be had are told quickly, with what to do."""

import json
import os
import socket
import subprocess
import sys

import pytest

from metaalign_hf import MetaAlignForImageClassification, MetaAlignForObjectDetection, ModelConfig, UserError

# One process for all cases: the client reads its settings at import, which takes longest.
SCRIPT = """
import contextlib, io, json, sys, time
from metaalign_hf import UserError, MetaAlignForImageClassification, MetaAlignForObjectDetection
from metaalign_hf.cli import run
import metaalign_hf.training
found = []
train = ["train", "--data.source", "uci_digits", "--data.target", "mnist", "--training.output_dir", sys.argv[1]]
for words in json.loads(sys.argv[2]):
    errors, start = io.StringIO(), time.monotonic()
    with contextlib.redirect_stderr(errors):
        code = run([*train, *words])
    found.append((code, errors.getvalue(), time.monotonic() - start))
print("ANSWER" + json.dumps(found))
"""
CASES = [
    (["--model.backbone", "timm/resnet10t.c3_in1k"], "timm/resnet10t.c3_in1k"),
    (["--model.backbone", "resnet10t"], "timm/resnet10t.c3_in1k"),
    (["--model.backbone", "facebook/dinov2-small"], "facebook/dinov2-small"),
    (["--model.backbone", "resnet10t", "--model.pretrained", "lab/weights"], "lab/weights"),
]


@pytest.mark.parametrize("offline", [False, True])
def test_no_network_is_told_at_once(tmp_path, offline):
    with socket.socket() as free:  # a port that nobody listens on once this is closed
        free.bind(("127.0.0.1", 0))
        endpoint = f"http://127.0.0.1:{free.getsockname()[1]}"
    environment = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
    environment |= {"HF_ENDPOINT": endpoint, "HF_HOME": str(tmp_path / "home"), "HF_HUB_DISABLE_TELEMETRY": "1"}
    environment |= {"HF_HUB_OFFLINE": "1"} if offline else {}
    words = json.dumps([words for words, _ in CASES])
    command = [sys.executable, "-c", SCRIPT, str(tmp_path / "run"), words]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    for (_, place), (code, errors, seconds) in zip(CASES, json.loads(done.stdout.rpartition("ANSWER")[2]), strict=True):
        assert code == 2 and errors.count("\n") == 1, errors
        assert f"{place} is not in the local cache" in errors and "is not a timm name" not in errors
        assert ("HF_HUB_OFFLINE is set" if offline else "cannot be reached") in errors
        assert "pretrained: false" in errors and "local folder" in errors and "HF_HUB_OFFLINE=1" in errors
        assert seconds < 5
    assert not (tmp_path / "run").exists()


def test_a_pretrained_that_is_no_place_is_refused():
    words = "'maybe': it must be true, false, a local folder or .safetensors file, or a Hub id"
    with pytest.raises(UserError, match=f"model.pretrained is {words}"):
        ModelConfig(pretrained="maybe")
    with pytest.raises(UserError, match=words):
        MetaAlignForImageClassification.from_backbone("resnet10t", ["a", "b"], pretrained="maybe")
    with pytest.raises(UserError, match=words):
        MetaAlignForObjectDetection.from_detector("d_fine", ["a", "b"], pretrained="maybe")
