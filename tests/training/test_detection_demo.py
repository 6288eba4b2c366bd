"""The detection demo works end to end: in thick fog the target gains what is promised over as many steps on the source.

One seed is run here; those of `benchmarks/detection.py`, which start from a source model of their own, are pinned.
"""

import json
from pathlib import Path
from statistics import fmean

import pytest

from metaalign_hf import load_config
from metaalign_hf.cli import run

ROOT = Path(__file__).parents[2]
CONFIG = ROOT / "examples" / "digit_scenes.yaml"
GAIN = 0.08


@pytest.mark.slow
def test_the_detection_demo_gains_on_source_only_and_draws(tmp_path):
    output = tmp_path / "run"
    assert run(["train", "--config", str(CONFIG), "--training.output_dir", str(output)]) == 0
    summary = json.loads((output / "summary.json").read_text())
    assert summary["baseline"]["source"] >= 0.8
    assert summary["baseline"]["steps"] == summary["adaptation_steps"]
    assert summary["target_map50_after"] >= summary["baseline"]["target"] + GAIN
    assert (output / "detections.png").exists()


def test_the_pinned_runs_of_the_demos_recipe_gain_on_source_only():
    config = load_config(CONFIG)
    assert (config.coordination.method, config.training.recalibrate_bn) == ("source_only", "target")
    gap = config.data.target.name
    rows = []
    for path in (ROOT / "benchmarks" / "results" / "detection").glob("*.jsonl"):
        rows += [json.loads(line) for line in path.read_text().splitlines()]
    gains = [row[f"{gap}, statistics"] - row[gap] for row in rows if row["run"][0] == "source only"]
    assert len(gains) >= 3
    assert fmean(gains) >= GAIN and min(gains) > 0, gains
