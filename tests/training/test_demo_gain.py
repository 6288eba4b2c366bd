"""The demo's promise: adaptation gains at least ten points over the source-only model trained with the same budget."""

import json
from pathlib import Path

import pytest

from metaalign_hf.cli import run

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_the_demo_gains_ten_points_over_source_only(tmp_path):
    gains = []
    for seed in (0, 1, 2):
        found = {}
        for method in ("source_only", "metaalign"):
            output = tmp_path / f"{method}-{seed}"
            options = ["--coordination.method", method, "--training.seed", str(seed)]
            options += ["--training.output_dir", str(output), "--training.evaluate_every", "0"]
            assert run(["train", "--config", str(ROOT / "examples" / "digits.yaml"), *options]) == 0
            found[method] = json.loads((output / "summary.json").read_text())["target_accuracy_after"]
        gains.append(found["metaalign"] - found["source_only"])
    assert sum(gains) / len(gains) >= 0.10, gains
