"""Open-set adaptation from folders of pictures: unknown classes in the pair, in figures and in what is printed."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from metaalign_hf import UserError, load_domain_pair
from metaalign_hf.cli import run
from metaalign_hf.data import load_detection_pair, load_labelled_view, load_target
from metaalign_hf.evaluation import open_set
from tests.helpers.runs import assert_same_run, lines, stopped_at_a_checkpoint
from tests.helpers.squares import adapting, write_squares


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> Path:
    """Squares on the left and on the right, and in the target stripes too, in two classes."""
    root = write_squares(tmp_path_factory.mktemp("squares"))
    for domain in ("target", "tests"):
        for name, step in (("fine", 2), ("coarse", 4)):
            (root / domain / name).mkdir()
            for number in range(6):
                values = np.full((16, 16, 3), 90, np.uint8)
                values[number % step :: step] = 210
                Image.fromarray(values).save(root / domain / name / f"{number}.png")
    return root


def opening(folders: Path, output: Path, *options: str) -> list[str]:
    own = ("--data.label_policy", "open", "--data.resize_size", "16", "--data.augmentation", "none")
    return adapting(folders, output, *own, *options)


def test_classes_that_the_source_lacks_are_one_class(folders):
    source, target = f"imagefolder:{folders / 'source'}", f"imagefolder:{folders / 'tests'}"
    pair = load_domain_pair(source, target, "open")
    assert pair.labels == ["left", "right", "unknown"]
    assert set(pair.source_train.labels) == {0, 1}
    assert pair.target_train.labels is None, "their labels reach no training image"
    assert len(pair.target_train) + len(pair.target_evaluation) == 36
    shown = [Path(path).parent.name for path in pair.target_evaluation.paths]
    wanted = {"left": 0, "right": 1, "fine": 2, "coarse": 2}
    assert list(pair.target_evaluation.labels) == [wanted[name] for name in shown]
    assert 2 in pair.target_evaluation.labels
    (note,) = [note for note in pair.notes if "unknown" in note]
    assert "(coarse, fine) count as unknown" in note
    assert load_domain_pair(source, f"imagefolder:{folders / 'bare'}", "open").labels == pair.labels
    view = load_labelled_view(target, pair.labels, "all")
    assert [list(view.labels).count(number) for number in range(3)] == [12, 12, 12]
    with pytest.raises(UserError, match="or open to count tests's other classes as unknown"):
        load_domain_pair(source, target)
    assert 2 in load_target(target, pair.labels, "m", "open").target_evaluation.labels


@pytest.mark.parametrize(
    ("load", "told"),
    [
        (lambda source, tests: load_domain_pair(tests, source, "open"), "tests has a class of that name; rename it"),
        (lambda source, tests: load_target(tests, ["left", "right"], "m", "open"), "m has no class unknown"),
        (lambda source, tests: load_detection_pair("scenes_plain", "scenes_fog", "open"), "open is for classifiers"),
    ],
)
def test_what_does_not_fit_is_told(tmp_path, load, told):
    root = write_squares(tmp_path)
    (root / "tests" / "left").rename(root / "tests" / "unknown")
    with pytest.raises(UserError, match=told) as error:
        load(f"imagefolder:{root / 'source'}", f"imagefolder:{root / 'tests'}")
    assert "\n" not in str(error.value)


def test_figures_of_an_open_set():
    nan = float("nan")
    found = open_set([0.9, nan, 0.5, 0.35], [10, 0, 10, 20])
    assert found.known == pytest.approx(0.7) and found.unknown == 0.35
    assert found.hos == pytest.approx(2 * 0.7 * 0.35 / 1.05)
    assert str(found) == "known classes 70.0 % (OS*), unknown 35.0 % (UNK), their harmonic mean 46.7 % (HOS)"
    assert open_set([0.9, 0.0], [1, 1]).hos == 0
    assert all(math.isnan(open_set(shares, [1, 1]).hos) for shares in ([0.9, nan], [nan, 0.5]))


def test_from_pictures_to_the_word_unknown(folders, tmp_path, capsys):
    options = ("--model.alignment", "osbp", "--coordination.method", "joint", "--training.max_steps", "60")
    assert run(opening(folders, tmp_path / "run", *options)) == 0
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    last = [line for line in lines(tmp_path / "run") if "evaluation" in line][-1]
    assert last["target_hos"] == summary["target_hos_after"] > 0
    (note,) = [note for note in summary["notes"] if note.startswith("Open set")]
    assert f"their harmonic mean {100 * last['target_hos']:.1f} % (HOS)" in note
    capsys.readouterr()
    tests, native = f"imagefolder:{folders / 'tests'}", str(tmp_path / "native")
    assert run(["export", str(tmp_path / "run"), native]) == 0
    capsys.readouterr()
    for model in (str(tmp_path / "run"), native):
        assert run(["evaluate", model, "--data", tests, "--split", "all"]) == 0
        said = capsys.readouterr().out
        assert f"unknown {100 * last['target_unknown']:.1f} % (UNK)" in said
        assert run(["predict", model, str(folders / "tests" / "fine")]) == 0
        assert "\tunknown\t" in capsys.readouterr().out


def test_a_resumed_run_is_the_run_that_never_stopped(folders, tmp_path, monkeypatch):
    options = ("--model.alignment", "osbp", "--coordination.direction", "remembered", "--training.source_steps", "1")
    assert run(opening(folders, tmp_path / "whole", *options)) == 0
    parts = opening(folders, tmp_path / "parts", *options, "--training.checkpoint_every", "4")
    assert stopped_at_a_checkpoint(monkeypatch, parts) != 0
    assert run([*parts, "--training.resume", "auto"]) == 0
    assert_same_run(tmp_path / "whole", tmp_path / "parts")


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (
            ("--model.alignment", "osbp", "--data.label_policy", "source"),
            "alignment osbp: it needs unknown",
        ),
        (("--model.alignment", "{name: osbp, boundary: 1}"), "osbp"),
    ],
)
def test_bad_input_is_one_line(folders, tmp_path, capsys, options, told):
    assert run(opening(folders, tmp_path / "run", *options)) == 2
    error = capsys.readouterr().err
    assert told in error and len(error.strip().splitlines()) == 1, error
