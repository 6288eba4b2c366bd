"""The detection demo works end to end: it learns, target mAP@50 rises from the end of the source phase, it draws.

The rise is no proof of alignment: as many more steps on the source alone raise it as much.
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
    assert summary["source_map50_after"] >= 0.7
    assert summary["target_map50_after"] >= summary["target_map50_before"] + 0.05
    assert (output / "detections.png").exists()
