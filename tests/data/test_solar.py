"""The embedded photographs of solar cells, from the files that pip installed to a trained and evaluated model."""

import itertools
import json
import sys
from collections import Counter

import pytest
import torch

from metaalign_hf import UserError, load_domain
from metaalign_hf.cli import run
from metaalign_hf.data import solar

CELLS = {"solar_mono": (588, 313), "solar_poly": (920, 402)}


@pytest.mark.parametrize("name", CELLS)
def test_the_cells_are_those_with_certain_labels(name):
    domain = load_domain(name)
    assert domain.labels == ["sound", "defective"]
    found = Counter(domain.train.labels + domain.test.labels)
    assert (found[0], found[1]) == CELLS[name]
    image = domain.train[0]
    assert image.dtype == torch.uint8 and image.shape == (3, 300, 300)
    assert torch.equal(image[0], image[2]) and image.float().std() > 5, "grey, and a photograph"


@pytest.mark.parametrize("name", CELLS)
def test_test_images_are_whole_blocks_of_neighbours_with_both_classes(name):
    domain = load_domain(name)
    train, test = (set(view.paths) for view in (domain.train, domain.test))
    assert not train & test
    assert 0.15 < len(test) / len(train | test) < 0.25
    shares = [sum(view.labels) / len(view) for view in (domain.train, domain.test)]
    assert abs(shares[0] - shares[1]) < 0.05, "both classes, in about the same shares"
    in_order = [path in test for path in sorted(train | test)]
    changes = sum(a != b for a, b in itertools.pairwise(in_order))
    assert changes <= 12, "few places where a training image has a test image as its neighbour"
    assert load_domain(name).test.paths == domain.test.paths
    assert "elpv_dataset" not in sys.modules, "its files are read, it is not imported"


def test_a_missing_extra_is_told_in_one_line(monkeypatch):
    solar._cells.cache_clear()
    monkeypatch.setattr(solar, "find_spec", lambda name: None)
    with pytest.raises(UserError) as caught:
        load_domain("solar_poly")
    assert 'pip install "metaalign-hf[solar]"' in str(caught.value) and "\n" not in str(caught.value)


def test_train_and_evaluate_on_cells(tmp_path, capsys):
    words = ["--data.source", "solar_mono", "--data.target", "solar_poly", "--data.image_size", "32"]
    words += ["--data.resize_size", "36", "--model.backbone", "timm/resnet10t", "--model.pretrained", "false"]
    words += ["--training.max_steps", "2", "--training.batch_size", "8", "--training.output_dir", str(tmp_path / "run")]
    assert run(["train", *words]) == 0
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert (summary["source"], summary["target"], summary["target_test_images"]) == ("solar_mono", "solar_poly", 274)
    card = (tmp_path / "run" / "README.md").read_text()
    assert "CC-BY-NC-SA-4.0" in card and "blocks of neighbours" in card
    capsys.readouterr()
    assert run(["evaluate", str(tmp_path / "run"), "--data", "solar_poly"]) == 0
    assert "274" in capsys.readouterr().out
    assert run(["evaluate", str(tmp_path / "run"), "--data", "solar_pol"]) == 2
    assert "did you mean solar_poly" in capsys.readouterr().err
