"""Runs of a detector whose backbone is frozen, and its maps computed once."""

import pytest
import torch
from safetensors.torch import load_file

from metaalign_hf import UserError, adapt, load_config, load_detection_pair
from metaalign_hf.cli import run
from metaalign_hf.tasks.detection.task import build_detector
from tests.helpers.runs import TINY_DETECTION as TINY
from tests.helpers.tiny_detectors import detector_settings

FROZEN = {"model.freeze": "all"}


@pytest.fixture(scope="module")
def pair():
    whole = load_detection_pair("scenes_plain", "scenes_photo")
    views = ("source_train", "source_test", "target_train", "target_test_images", "target_evaluation")
    return type(whole)(**{**vars(whole), **{name: getattr(whole, name).subset(range(16)) for name in views}})


def weights(output):
    return load_file(output / "model.safetensors")


def test_the_backbone_stays_and_the_statistics_of_the_neck_move(pair, tmp_path):
    """Under AdaBN too, which estimates those of the neck alone anew."""
    options = {"training.output_dir": str(tmp_path / "run"), **FROZEN, "training.recalibrate_bn": "target"}
    config = load_config(TINY, {**options, "training.select_by": None})
    model = build_detector(config.model, pair.labels)
    start = {name: value.clone() for name, value in model.state_dict().items()}
    adapt(config, pair=pair, model=model)
    trained = weights(tmp_path / "run")
    backbone = {name for name in trained if name.startswith("detector.model.backbone.")}
    assert any(name.endswith("running_mean") for name in backbone)
    assert all(torch.equal(trained[name], start[name]) for name in backbone)
    for part in ("encoder.", "decoder."):
        moved = [
            name
            for name in trained.keys() & start.keys()
            if part in name and not torch.equal(trained[name], start[name])
        ]
        assert any(name.endswith("weight") for name in moved), part
    assert any(bool(trained[name].any()) for name in trained.keys() - backbone if name.endswith("running_mean"))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--model.freeze", "2"], "model.freeze is 2: a detector's backbone is frozen whole; set it to all or none"),
        (["--model.alignment", "swda"], "backbone_pixel and backbone_global aligns nothing that trains; add encoder"),
    ],
)
def test_bad_input(options, said, tmp_path, capsys):
    command = ["train", "--config", TINY, "--training.output_dir", str(tmp_path / "run"), "--model.freeze", "all"]
    assert run([*command, *options]) == 2
    error = capsys.readouterr().err
    assert said in error and len(error.splitlines()) == 1 and not (tmp_path / "run").exists()


def test_yolos_is_refused(pair, tmp_path):
    model_type, settings = detector_settings()["yolos"]
    config = load_config(TINY, {"training.output_dir": str(tmp_path / "run"), **FROZEN, "model.detector": model_type})
    config.model.detector_options = settings
    with pytest.raises(UserError, match="model.freeze: yolos has no backbone apart"):
        adapt(config, pair=pair)
