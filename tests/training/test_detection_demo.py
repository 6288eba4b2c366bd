"""The detection demo works end to end: it learns, the target keeps what it has, it draws.

A gain is not promised: benchmarks/detection.py says how little more it is than that of as many steps on the source.
"""

import json
from pathlib import Path

import pytest

from metaalign_hf.cli import run

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_the_detection_demo_learns_and_draws(tmp_path):
    output = tmp_path / "run"
    config = str(ROOT / "examples" / "digit_scenes.yaml")
    assert run(["train", "--config", config, "--training.output_dir", str(output)]) == 0
    summary = json.loads((output / "summary.json").read_text())
    assert summary["source_map50_after"] >= 0.8
    assert summary["target_map50_after"] >= summary["target_map50_before"] - 0.01
    assert (output / "detections.png").exists()
