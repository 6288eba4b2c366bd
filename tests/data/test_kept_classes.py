"""A source of which some classes are kept: those that the target is known to have."""

import json

import pytest

from metaalign_hf import DomainConfig, UserError, load_domain_pair
from metaalign_hf.cli import run
from metaalign_hf.data import load_labelled_view
from tests.helpers.runs import TINY
from tests.helpers.squares import write_squares

CHOSEN = ["7", "1", "4"]


def test_the_other_classes_are_left_out_and_the_split_stays():
    whole = load_domain_pair("uci_digits", "mnist")
    pair = load_domain_pair(DomainConfig(name="uci_digits", classes=CHOSEN), "mnist", "source")
    assert pair.labels == CHOSEN
    for view in ("source_train", "source_test"):
        before, kept = getattr(whole, view), getattr(pair, view)
        rows = [i for i, label in enumerate(before.labels) if str(label) in CHOSEN]
        assert [CHOSEN[label] for label in kept.labels] == [str(before.labels[i]) for i in rows]
        assert (kept[5] == before[rows[5]]).all()
    assert len(pair.target_train) == len(whole.target_train), "its labels choose nothing"
    assert {CHOSEN[label] for label in pair.target_evaluation.labels} == set(CHOSEN)
    assert "uci_digits: images of 0, 2, 3, 5, 6 and 2 more are left out, by classes." in pair.notes


def test_folders_are_chosen_before_test_images_are_held_out(tmp_path):
    folder = write_squares(tmp_path) / "source"
    chosen = DomainConfig(kind="imagefolder", path=str(folder), classes=["right"], test_fraction=0.25)
    views = [load_labelled_view(chosen, ["right"], split) for split in ("train", "test")]
    assert [len(view) for view in views] == [9, 3]
    assert all("right" in str(path) for view in views for path in view.paths)


@pytest.mark.parametrize(
    ("source", "target", "told"),
    [
        ({}, {"classes": CHOSEN}, "data.target.classes: to choose images of the target by their class would use"),
        ({"classes": ["1", "eleven"]}, {}, "domain uci_digits: classes names 'eleven', which the domain does not have"),
        ({"classes": ["1", "1"]}, {}, "domain uci_digits: classes must be different names, got ['1', '1']"),
    ],
)
def test_what_cannot_be_chosen_is_refused(source, target, told):
    with pytest.raises(UserError) as caught:
        load_domain_pair(DomainConfig(name="uci_digits", **source), DomainConfig(name="mnist", **target), "source")
    assert told in str(caught.value) and "\n" not in str(caught.value)


def test_a_domain_without_labels_has_no_classes(tmp_path):
    bare = write_squares(tmp_path) / "bare"
    with pytest.raises(UserError, match="has no labels, by which classes would choose its images; drop classes"):
        load_domain_pair(DomainConfig(kind="imagefolder", path=str(bare), classes=["left"]), "mnist")


def test_a_run_knows_the_chosen_classes_alone(tmp_path, capsys):
    words = ["train", "--config", TINY, "--data.label_policy", "source", "--training.output_dir", str(tmp_path / "run")]
    words += ["--training.source_steps", "1", "--training.max_steps", "1"]
    assert run([*words, "--data.source.classes", "['7','1','4']"]) == 0
    assert json.loads((tmp_path / "run" / "config.json").read_text())["id2label"] == dict(
        zip("012", CHOSEN, strict=True)
    )
    assert "images of 0, 2, 3, 5, 6 and 2 more are left out, by classes." in " ".join(capsys.readouterr().out.split())


def test_a_class_that_is_no_text_is_told(capsys):
    assert run(["train", "--config", TINY, "--data.source.classes", "[1, 7]"]) == 2
    told = "data.source.classes is [1, 7]: it must be a list of text (numbers in quotes) or null"
    assert told in capsys.readouterr().err
