"""What the summary says where the target has no labels, or the run no source phase."""

import json
import shlex

import pytest
from PIL import Image

from metaalign_hf import load_domain_pair
from metaalign_hf.cli import run
from tests.helpers.runs import TINY


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """A folder of pictures without labels."""
    folder = tmp_path_factory.mktemp("data") / "photos"
    folder.mkdir()
    images = load_domain_pair("uci_digits", "mnist").target_train
    for index in range(60):
        Image.fromarray(images[index].permute(1, 2, 0).numpy()).save(folder / f"{index}.png")
    return folder


def test_without_target_labels_the_validators_speak(photos, tmp_path, capsys):
    output = tmp_path / "run"
    options = ["--data.target", f"imagefolder:{photos}"]
    few = ["--training.selection_images", "40"]
    assert run(["train", "--config", TINY, "--training.output_dir", str(output), *options, *few]) == 0
    said = capsys.readouterr().out
    logged = {
        line["evaluation"]: line
        for line in map(json.loads, (output / "metrics.jsonl").read_text().splitlines())
        if "evaluation" in line
    }
    summary = json.loads((output / "summary.json").read_text())
    assert next(iter(summary["validators"])) == "bnm", "the selecting one is the first"
    (sentence,) = [line for line in said.splitlines() if line.startswith("The target has no labels;")]
    for name in ("bnm", "mutual_information", "entropy"):
        before, after = (logged[when][f"validator_{name}"] for when in ("before", "after"))
        assert summary["validators"][name] == [before, after]
        better = (after < before) if name == "entropy" else (after > before)
        assert f"{name} {before:.3f} -> {after:.3f} ({'better' if better else 'worse'}; " in sentence
    assert "bnm selects" in sentence and "Gain" not in said
    commands = said.partition("Next, try:")[2]
    assert "metaalign evaluate" not in commands and "metaalign predict" in commands
    assert summary["evaluate_command"] is None
    predict = shlex.split(commands.strip().splitlines()[0].replace("IMAGE_OR_FOLDER", str(photos)))
    assert run(predict[1:]) == 0

    without = [*options, "--training.select_by", "null", "--training.max_steps", "1"]
    assert run(["train", "--config", TINY, "--training.output_dir", str(tmp_path / "none"), *without]) == 0
    assert "no labels and no validator was computed" in capsys.readouterr().out


def test_no_gain_over_a_source_phase_that_was_not(tmp_path, capsys):
    options = ["--training.source_steps", "0", "--training.max_steps", "1", "--training.select_by", "null"]
    assert run(["train", "--config", TINY, "--training.output_dir", str(tmp_path / "run"), *options]) == 0
    said = capsys.readouterr().out
    assert "over the source phase" not in said and "Change on the target since the start: " in said
