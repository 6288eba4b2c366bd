"""`metaalign data check` on folders of pictures."""

import json
import shutil

import pytest
from PIL import Image

from metaalign_hf.cli import run
from tests.helpers.runs import TINY, TINY_DETECTION
from tests.helpers.squares import write_squares

SMALL = ["--data.image_size", "16", "--data.resize_size", "18", "--training.batch_size", "4"]


def check(capsys, tmp_path, *options: str, code: int) -> tuple[str, dict]:
    out = tmp_path / "check"
    found = run(["data", "check", TINY, *SMALL, *options, "--output", str(out)])
    text = capsys.readouterr().out
    assert found == code, text
    return text, json.loads((out / "data_check.json").read_text())


def test_a_sound_pair(capsys, tmp_path):
    root = write_squares(tmp_path)
    text, found = check(
        capsys, tmp_path, "--data.source", f"imagefolder:{root}/source", "--data.target", f"imagefolder:{root}/target",
        "--training.output_dir", str(tmp_path / "run"), code=0,
    )  # fmt: skip
    assert "Nothing speaks against a run." in text and found["problems"] == []
    assert "source source: 19 + 5 images to train and to test on, 2 classes, 16 x 16 pixels." in text
    source, target = found["domains"]
    assert {name: c["train"] + c["test"] for name, c in source["classes"].items()} == {"left": 12, "right": 12}
    assert target["read"] == 24 and target["unreadable"] == []
    # Bright on black against pale on grey: nothing is easier to tell apart, whatever the weights are.
    assert found["shift"]["a_distance"] > 1.5 and 0 <= found["shift"]["target_score"] <= 1
    assert found["cost"]["adaptation_step"] > 0 and found["cost"]["source_step"] > 0
    steps = 4 * found["cost"]["source_step"] + 6 * found["cost"]["adaptation_step"]
    assert found["cost"]["training_seconds"] == pytest.approx(steps)
    with Image.open(tmp_path / "check" / "contact_sheet.png") as sheet:
        assert sheet.width > 300 and sheet.height > 100
    assert not (tmp_path / "run").exists(), "a check starts no run"


def test_a_leak_a_damaged_file_and_an_unlabelled_target(capsys, tmp_path):
    root = write_squares(tmp_path)
    shutil.copy(root / "source" / "left" / "0.png", root / "bare" / "stray.png")
    (root / "bare" / "damaged.png").write_bytes(b"no image")
    options = ["--data.source", f"imagefolder:{root}/source", "--data.target", f"imagefolder:{root}/bare", "--no-model"]
    text, found = check(capsys, tmp_path, *options, code=1)
    assert "1 target image (4.0 %) with a copy in the source" in text
    assert "damaged.png cannot be read" in text and "data.on_bad_image: skip" in text
    assert "The target has no labels; the source's 2 classes are taken for its own." in text
    assert found["copies"]["groups"][0] == [
        f"source source: {root}/source/left/0.png", f"target bare: {root}/bare/stray.png"
    ]  # fmt: skip
    assert found["shift"] is None and found["cost"] is None
    text, _ = check(capsys, tmp_path, *options, "--data.on_bad_image", "skip", code=1)
    assert "Remark: target bare: 1 image cannot be read." in text and "1 problem: see above." in text


def test_class_names_that_differ_are_a_problem_among_the_other_findings(capsys, tmp_path):
    root = write_squares(tmp_path)
    (root / "target" / "left").rename(root / "target" / "Left")
    text, found = check(
        capsys, tmp_path, "--data.source", f"imagefolder:{root}/source", "--data.target", f"imagefolder:{root}/target",
        code=1,
    )  # fmt: skip
    assert "'left' and 'Left'" in text and len(found["domains"]) == 2 and found["cost"] is None


def test_labelled_target_images_among_the_test_images(capsys, tmp_path):
    root = write_squares(tmp_path)
    text, _ = check(
        capsys, tmp_path, "--data.source", f"imagefolder:{root}/source", "--data.target", f"imagefolder:{root}/target",
        "--data.target.test_path", f"{root}/tests", "--data.target_labeled", f"imagefolder:{root}/tests", "--no-model",
        code=1,
    )  # fmt: skip
    assert "24 labelled target images among the target's test images" in text


def test_what_is_wrong_with_the_command_is_told(capsys, tmp_path):
    assert run(["data", "chek", TINY]) == 2 and "did you mean check?" in capsys.readouterr().err
    assert run(["data", "check"]) == 2 and "--data.source and --data.target" in capsys.readouterr().err
    (tmp_path / "thesis.txt").write_text("mine")
    assert run(["data", "check", TINY, "--output", str(tmp_path)]) == 2
    assert "holds something else than an earlier check" in capsys.readouterr().err


def test_a_frozen_backbone_whose_features_are_computed_once(capsys, tmp_path):
    root = write_squares(tmp_path)
    text, found = check(
        capsys, tmp_path, "--data.source", f"imagefolder:{root}/source", "--data.target", f"imagefolder:{root}/target",
        "--model.freeze", "all", "--model.bottleneck_dim", "4", "--data.views", "2", code=0,
    )  # fmt: skip
    # Two views and the image itself of 19 training images, and 5 test images, of each domain.
    assert "computed once, for about 124 images and views" in text
    assert found["cost"] is None and found["shift"]["a_distance"] > 1.5


def test_a_detection_pair(capsys, tmp_path):
    out = tmp_path / "check"
    assert run(["data", "check", TINY_DETECTION, "--images", "60", "--output", str(out)]) == 0
    found = json.loads((out / "data_check.json").read_text())
    source = found["domains"][0]
    assert (
        source["counted"] == "objects"
        and source["read"] == 60
        and sum(c["train"] for c in source["classes"].values()) > 300
    )
    assert found["shift"]["a_distance"] > 0.4 and found["shift"]["source_score"] is None
    assert found["cost"]["adaptation_step"] > 0
    assert "objects of class" in capsys.readouterr().out
