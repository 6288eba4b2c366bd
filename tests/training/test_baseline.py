"""The fair comparison: the same steps on the source alone, beside the run."""

import json
import shutil
from pathlib import Path

import pytest

from metaalign_hf import load_config
from metaalign_hf.cli import run
from metaalign_hf.training.loop import adapt

TINY = str(Path(__file__).parent / "tiny.yaml")


@pytest.fixture(scope="module")
def compared(tmp_path_factory):
    output = tmp_path_factory.mktemp("runs") / "compared"
    adapt(load_config(TINY, {"training.output_dir": str(output), "training.baseline": True}))
    return output, json.loads((output / "summary.json").read_text())


def test_the_baseline_is_the_source_only_run_of_the_same_budget(compared, tmp_path):
    output, summary = compared
    alone = adapt(
        load_config(TINY, {"training.output_dir": str(tmp_path / "alone"), "coordination.method": "source_only"})
    )
    assert summary["baseline"]["target"] == alone.target_accuracy_after
    assert summary["baseline"]["source"] == alone.source_accuracy
    assert summary["baseline"]["steps"] == 6 and summary["method"] == "metaalign"
    assert json.loads((output / "baseline" / "summary.json").read_text())["method"] == "source_only"


def test_the_table_shows_the_baseline_and_states_the_gain_against_it(capsys, tmp_path):
    assert (
        run(["train", "--config", TINY, "--training.output_dir", str(tmp_path / "a"), "--training.baseline", "true"])
        == 0
    )
    text = capsys.readouterr().out
    assert "source only" in text and "Gain on the target over the same steps on the source alone: " in text


def test_a_baseline_that_was_interrupted_goes_on(compared, tmp_path):
    """Killed while the baseline ran: both are resumed, and say what an uninterrupted run says."""
    output = tmp_path / "again"
    options = {"training.output_dir": str(output), "training.baseline": True, "training.checkpoint_every": 3}
    adapt(load_config(TINY, options))
    (output / "summary.json").unlink()
    (output / "baseline" / "summary.json").unlink()
    shutil.rmtree(output / "baseline" / "checkpoints" / "step-000009")
    adapt(load_config(TINY, {**options, "training.resume": True}))
    summary = json.loads((output / "summary.json").read_text())
    assert {**summary["baseline"], "output_dir": ""} == {**compared[1]["baseline"], "output_dir": ""}
    assert summary["target_accuracy_after"] == compared[1]["target_accuracy_after"]
