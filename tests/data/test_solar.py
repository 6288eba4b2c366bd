"""The embedded photographs of solar cells, from the files that pip installed to a trained and evaluated model."""

import contextlib
import io
import itertools
import json
import sys
from collections import Counter

import pytest
import torch

from metaalign_hf import UserError, load_domain
from metaalign_hf.cli import run
from metaalign_hf.data import solar
from metaalign_hf.reports.record import _of_selected, read_record

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


@pytest.fixture(scope="module")
def adapted(tmp_path_factory):
    """A run on cells that is measured by balanced accuracy, and what it printed."""
    output = tmp_path_factory.mktemp("runs") / "cells"
    words = ["--data.source", "solar_mono", "--data.target", "solar_poly", "--data.image_size", "32"]
    words += ["--data.resize_size", "36", "--model.backbone", "timm/resnet10t", "--model.pretrained", "false"]
    words += ["--training.source_steps", "6", "--training.max_steps", "4", "--training.evaluate_every", "8"]
    words += ["--training.batch_size", "16", "--training.metric", "balanced_accuracy", "--optimizer.lr", "0.01"]
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        assert run(["train", *words, "--training.output_dir", str(output)]) == 0
    return output, printed.getvalue()


def test_a_run_on_cells_reports_every_figure_and_heads_its_tables_with_the_one_asked_for(adapted):
    output, printed = adapted
    summary = json.loads((output / "summary.json").read_text())
    assert (summary["source"], summary["target"], summary["target_test_images"]) == ("solar_mono", "solar_poly", 274)
    lines = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    logged = {line["evaluation"]: line for line in lines if "evaluation" in line}
    assert list(logged) == ["before", "step 8", "after"]
    for figure in ("accuracy", "balanced_accuracy", "average_precision"):
        assert summary[f"source_{figure}_before"] == logged["before"][f"source_{figure}"]
        assert summary[f"source_{figure}_after"] == logged["after"][f"source_{figure}"]
        for name in ("before", "after"):
            assert summary[f"target_{figure}_{name}"] == logged[name][f"target_{figure}"]
    by_step = {line["step"]: line for line in logged.values()}
    assert [row["checkpoint"].split()[0] for row in summary["checkpoints"]] == ["last", "selected", "oracle"]
    for row in summary["checkpoints"]:
        line = by_step[row["step"]]
        assert (row["source"], row["target"]) == (line["source_balanced_accuracy"], line["target_balanced_accuracy"])
    words = [line for line in printed.splitlines() if "test balanced accuracy source" in line]
    assert len(words) == 3 and f"{100 * summary['target_balanced_accuracy_after']:.1f} %" in words[-1]
    table = [line.split("│")[1].strip() for line in printed.splitlines() if line.startswith("│")]
    assert table[:4] == ["source solar_mono", "target solar_poly", "target accuracy", "target average precision"]
    assert "test balanced accuracy by checkpoint" in printed and "points of test balanced accuracy" in printed
    card = (output / "README.md").read_text()
    assert "CC-BY-NC-SA-4.0" in card and "blocks of neighbours" in card
    rows = [line.split("|")[1].strip() for line in card.splitlines() if line.startswith("| target solar_poly")]
    figures = ["balanced accuracy", "accuracy", "average precision"]
    assert rows == [f"target solar_poly, {figure}" for figure in figures]


def test_the_saved_model_is_evaluated_to_the_same_figures(adapted, tmp_path, capsys):
    output, _ = adapted
    summary = json.loads((output / "summary.json").read_text())
    figures = tmp_path / "figures.json"
    assert run(["evaluate", str(output), "--data", "solar_poly", "--output", str(figures)]) == 0
    printed = capsys.readouterr().out
    assert "274" in printed and f"balanced accuracy {100 * summary['target_balanced_accuracy_after']:.2f} %" in printed
    assert f"average precision of defective {100 * summary['target_average_precision_after']:.2f} %" in printed
    found = json.loads(figures.read_text())
    for figure in ("accuracy", "balanced_accuracy", "average_precision"):
        assert found[figure] == summary[f"target_{figure}_after"]
    assert run(["evaluate", str(output), "--data", "solar_pol"]) == 2
    assert "did you mean solar_poly" in capsys.readouterr().err


def test_a_selected_checkpoint_has_a_card_with_its_own_figures(adapted):
    output, _ = adapted
    lines = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    line = next(line for line in lines if line.get("evaluation") == "step 8")
    run_folder = read_record(output)
    row = {"checkpoint": "selected (label-free, bnm)", "step": 8}
    row |= {domain: line[f"{domain}_balanced_accuracy"] for domain in ("source", "target")}
    summary = _of_selected({**run_folder.summary, "checkpoints": [row]}, run_folder.metrics)
    for figure in ("accuracy", "balanced_accuracy", "average_precision"):
        assert summary[f"source_{figure}_after"] == line[f"source_{figure}"]
        assert summary[f"target_{figure}_after"] == line[f"target_{figure}"]


def test_average_precision_needs_images_of_the_positive_class(tmp_path, capsys):
    mono, poly = load_domain("solar_mono"), load_domain("solar_poly")
    for name, view in (("mono", mono), ("poly", poly)):
        rows = [f"{path} {label}\n" for path, label in zip(view.train.paths, view.train.labels, strict=True)]
        (tmp_path / f"{name}.txt").write_text("".join(rows))
        sound = [path for path, label in zip(view.test.paths, view.test.labels, strict=True) if not label]
        (tmp_path / f"{name}_test.txt").write_text("".join(f"{path} 0\n" for path in sound))
    words = ["--data.source", "solar_mono", "--data.target", f"list:{tmp_path / 'poly.txt'}"]
    words += ["--data.target.test_path", str(tmp_path / "poly_test.txt")]
    words += ["--data.target.outside_root", "allow"]
    (tmp_path / "names.txt").write_text("sound\ndefective\n")
    words += ["--data.target.labels_file", str(tmp_path / "names.txt"), "--training.metric", "average_precision"]
    words += ["--model.backbone", "timm/resnet10t", "--model.pretrained", "false", "--training.max_steps", "1"]
    assert run(["train", *words, "--training.output_dir", str(tmp_path / "run")]) == 2
    error = capsys.readouterr().err.strip()
    assert "training.metric: average_precision is that of the class defective" in error and "\n" not in error
    assert not (tmp_path / "run").exists()
