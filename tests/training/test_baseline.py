"""The fair comparison: the same steps on the source alone, beside the run."""

import contextlib
import io
import json
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file

from metaalign_hf import load_config, load_domain_pair
from metaalign_hf.cli import run
from metaalign_hf.errors import UserError
from metaalign_hf.training import keeping, loop
from tests.helpers.runs import TINY


def train(output: Path, *options: str) -> dict:
    assert run(["train", "--config", TINY, "--training.output_dir", str(output), *options]) == 0
    return json.loads((output / "summary.json").read_text())


@pytest.fixture(scope="module")
def compared(tmp_path_factory):
    """A run with a baseline: its folder, its summary, and what it said."""
    output, said = tmp_path_factory.mktemp("runs") / "compared", io.StringIO()
    with contextlib.redirect_stdout(said):
        summary = train(output, "--training.baseline", "true", "--training.checkpoint_every", "3")
    return output, summary, said.getvalue()


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """The run that the baseline must be."""
    output = tmp_path_factory.mktemp("runs") / "alone"
    return output, train(output, "--coordination.method", "source_only")


@pytest.fixture(scope="module")
def interrupted(tmp_path_factory):
    """A run that is stopped after the baseline's second checkpoint."""
    output = tmp_path_factory.mktemp("runs") / "interrupted"
    save = keeping.Keeper.save

    def save_and_stop(self, step):
        save(self, step)
        if self.output_dir.name == "baseline" and step == 6:
            raise KeyboardInterrupt

    options = {"training.output_dir": str(output), "training.baseline": True, "training.checkpoint_every": 3}
    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(keeping.Keeper, "save", save_and_stop)
        loop.adapt(load_config(TINY, options))
    return output


def test_what_to_do_next_is_said_once(compared):
    output, _, said = compared
    assert said.count("Next, try:") == 1 and said.count("The adapted model") == 1
    assert f"The model of the source alone (last checkpoint) is in {output / 'baseline'}: " in said
    _, _, baseline = said.partition("The same steps on the source alone, for comparison:")
    assert "uci_digits -> mnist: 10 steps on the source alone, on " in baseline
    assert "6 steps on the source alone after the first 4, seed 0, " in baseline.partition("Next, try:")[0]


def test_the_baseline_is_the_source_only_run_of_the_same_budget(compared, alone):
    (output, summary, _), (folder, of_its_own) = compared, alone
    assert summary["baseline"] == {
        "source": of_its_own["source_accuracy_after"],
        "target": of_its_own["target_accuracy_after"],
        "steps": 6,
        "output_dir": str(output / "baseline"),
    }
    assert summary["method"] == "metaalign" and of_its_own["baseline"] is None
    assert json.loads((output / "baseline" / "summary.json").read_text())["method"] == "source_only"
    a, b = (load_file(place / "model.safetensors") for place in (output / "baseline", folder))
    assert all(torch.equal(a[name], b[name]) for name in b)


def test_a_baseline_that_was_interrupted_goes_on(compared, interrupted, tmp_path, capsys):
    """Both are resumed, and say what an uninterrupted run says, in the table too."""
    output = tmp_path / "again"
    shutil.copytree(interrupted, output)
    options = ["--training.baseline", "true", "--training.checkpoint_every", "3", "--training.resume", "true"]
    summary = train(output, *options)
    expected = compared[1]
    assert summary["baseline"] == {**expected["baseline"], "output_dir": str(output / "baseline")}
    assert summary["target_accuracy_after"] == expected["target_accuracy_after"]
    text = capsys.readouterr().out
    assert "baseline after step 6." in " ".join(text.split())
    target = summary["baseline"]["target"]
    gain = 100 * (summary["target_accuracy_after"] - target)
    assert "source only" in text and f"{100 * target:.1f} %" in text
    assert f"Gain on the target over the same steps on the source alone: {gain:+.1f} points." in text


def test_without_target_labels_the_baseline_has_a_source_figure_only(tmp_path, capsys):
    folder = tmp_path / "photos"
    folder.mkdir()
    images = load_domain_pair("uci_digits", "mnist").target_train
    for index in range(40):
        Image.fromarray(images[index].permute(1, 2, 0).numpy()).save(folder / f"{index}.png")
    options = ["--data.target", f"imagefolder:{folder}", "--training.selection_images", "20"]
    summary = train(tmp_path / "run", "--training.baseline", "true", *options)
    assert summary["baseline"]["target"] is None and summary["baseline"]["source"] > 0
    text = capsys.readouterr().out
    assert "source only" in text and "no labels" in text and "on the source alone: " not in text
    assert text.count("Note: Target photos has no labels: ") == 1, "neither the baseline nor a summary says it again"
    assert summary["notes"] == ["Target photos has no labels: its accuracy cannot be measured."]


def test_a_source_only_run_is_its_own_baseline():
    with pytest.raises(UserError, match="training.baseline: the run is a source-only one itself"):
        load_config(TINY, {"training.baseline": True, "coordination.method": "source_only"})


def test_a_source_only_run_with_statistics_of_the_target_is_compared_with_one_without(alone, tmp_path):
    options = ["--coordination.method", "source_only", "--training.recalibrate_bn", "target"]
    summary = train(tmp_path / "run", *options, "--training.baseline", "true")
    assert summary["baseline"]["target"] == alone[1]["target_accuracy_after"]
    run, baseline = (load_file(tmp_path / name / "model.safetensors") for name in ("run", "run/baseline"))
    differ = {name for name in run if not torch.equal(run[name], baseline[name])}
    assert differ and all("running" in name or "num_batches" in name for name in differ)


def test_a_run_recorded_before_a_key_existed_is_resumed(compared, interrupted, tmp_path, capsys):
    """Absent keys count as their defaults, and only as those."""
    output = tmp_path / "old"
    shutil.copytree(interrupted / "baseline", output)
    recorded = yaml.safe_load((output / "training_config.yaml").read_text())
    del (
        recorded["training"]["baseline"],
        recorded["training"]["select_tolerance"],
        recorded["data"]["target"]["split_seed"],
    )
    (output / "training_config.yaml").write_text(yaml.safe_dump(recorded))
    options = ["--coordination.method", "source_only"]
    options += ["--training.checkpoint_every", "3", "--training.resume", "true"]
    command = ["train", "--config", TINY, "--training.output_dir", str(output), *options]
    assert run([*command, "--training.select_tolerance", "0.1"]) == 2
    assert "holds a run with training.select_tolerance = 0.05, not 0.1" in capsys.readouterr().err
    assert train(output, *options)["target_accuracy_after"] == compared[1]["baseline"]["target"]
