"""Images of classes that a classifier does not know: the rule, the figures, and both commands on folders."""

import json
import math
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from metaalign_hf.cli import run
from metaalign_hf.data import load_labelled_view
from metaalign_hf.evaluation import evaluate_open_set, is_unknown
from tests.helpers.squares import adapting, write_squares

STRIPES = (("coarse", 4), ("fine", 2))


class Fixed(torch.nn.Module):
    """Gives what it is shown as logits."""

    def __init__(self) -> None:
        super().__init__()
        self.unused = torch.nn.Parameter(torch.zeros(1))

    def forward(self, pixel_values: torch.Tensor) -> SimpleNamespace:
        return SimpleNamespace(logits=pixel_values)


def test_unknown_is_an_entropy_above_half_of_the_largest():
    # Of two classes the entropy of (p, 1 - p) is log(2) / 2 at p = 0.88997.
    probabilities = torch.tensor([[0.9, 0.1], [0.88, 0.12], [0.5, 0.5], [0.0, 1.0]])
    assert is_unknown(probabilities).tolist() == [False, True, True, False]


def test_figures_by_hand():
    sure, unsure = torch.eye(3) * 50, torch.zeros(3)
    # Class 0: two of three right; class 1: does not occur; class 2: one of two; unknown: one of four found.
    shown = torch.stack([sure[0], sure[0], unsure, sure[2], sure[1], unsure, sure[0], sure[1], sure[2]])
    labels = torch.tensor([0, 0, 0, 2, 2, 3, 3, 3, 3])
    batches = [{"pixel_values": shown[rows], "labels": labels[rows]} for rows in (slice(0, 4), slice(4, 9))]
    found = evaluate_open_set(Fixed(), batches, 3)
    assert found.counts == [3, 0, 2, 4] and found.n == 9
    assert found.known == pytest.approx((2 / 3 + 1 / 2) / 2) and found.unknown == 0.25
    assert found.hos == pytest.approx(2 * found.known * 0.25 / (found.known + 0.25))
    assert math.isnan(found.per_class[1])
    known = evaluate_open_set(Fixed(), [{"pixel_values": sure[:1], "labels": labels[:1]}], 3)
    assert known.known == 1 and math.isnan(known.unknown) and math.isnan(known.hos)


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> Path:
    """Squares, and in the target also stripes, in two classes that the source lacks."""
    root = write_squares(tmp_path_factory.mktemp("squares"))
    for folder, step in ((root / domain / name, step) for domain in ("target", "tests") for name, step in STRIPES):
        folder.mkdir()
        for number in range(6):
            values = np.full((16, 16, 3), 90, np.uint8)
            values[number % step :: step] = 210
            Image.fromarray(values).save(folder / f"{number}.png")
    return root


def test_from_pictures_to_the_word_unknown(folders, tmp_path, capsys):
    model, tests = tmp_path / "run", f"imagefolder:{folders / 'tests'}"
    assert run(adapting(folders, model, "--data.label_policy", "source")) == 0
    view = load_labelled_view(tests, ["left", "right"], "all", opens=True)
    assert [list(view.labels).count(number) for number in range(3)] == [12, 12, 12]
    assert run(["export", str(model), str(tmp_path / "native")]) == 0
    capsys.readouterr()
    assert run(["predict", str(model), str(folders / "tests"), "--unknown"]) == 0
    said = [line.split("\t") for line in capsys.readouterr().out.splitlines()]
    assert len(said) == 36 and all(name in ("left", "right", "unknown") for _, name, _ in said)
    assert all((name == "unknown") == (float(share) < 0.88997) for _, name, share in said)
    stripes = [name for path, name, _ in said if Path(path).parent.name in ("coarse", "fine")]
    for number, checkpoint in enumerate((model, tmp_path / "native")):
        output = tmp_path / f"{number}.json"
        words = ["evaluate", str(checkpoint), "--data", tests, "--split", "all"]
        assert run([*words, "--unknown", "--output", str(output)]) == 0
        figures = json.loads(output.read_text())
        assert figures["unknown"] == figures["per_class"]["unknown"] == stripes.count("unknown") / 12
        assert f"unknown {100 * figures['unknown']:.1f} % (UNK)" in capsys.readouterr().out
    assert run(words) == 2
    error = capsys.readouterr().err
    assert "classes that the model does not know: coarse, fine" in error and len(error.strip().splitlines()) == 1


def test_a_class_of_that_name_is_refused(folders, tmp_path, capsys):
    for domain in ("source", "target", "tests"):
        (folders / domain / "left").rename(folders / domain / "unknown")
    short = ("--data.label_policy", "source", "--training.source_steps", "0", "--training.max_steps", "1")
    assert run(adapting(folders, tmp_path / "run", *short)) == 0
    capsys.readouterr()
    for words in (
        ["predict", str(tmp_path / "run"), str(folders / "tests")],
        ["evaluate", str(tmp_path / "run"), "--data", f"imagefolder:{folders / 'tests'}"],
    ):
        assert run([*words, "--unknown"]) == 2
        assert capsys.readouterr().err.strip() == (
            "metaalign: --unknown: the model has a class named unknown already; leave it out"
        )
