"""Predict, evaluate and export on pictures as they are found: damaged, oddly named, on full disks."""

import csv
import json
import math
import os
import resource
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pyarrow.parquet
import pytest
import torch
from PIL import Image
from transformers import pipeline

from metaalign_hf import MetaAlignForImageClassification
from metaalign_hf.cli import run
from metaalign_hf.evaluation.metrics import wilson_interval
from metaalign_hf.models import build_image_processor

LABELS = ["crane", "cat", "2", "zebra, striped"]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> str:
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("model")
    options = {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1], "layer_type": "basic"}
    model = MetaAlignForImageClassification.from_backbone("resnet", LABELS, "dann", pretrained=False, **options)
    with torch.no_grad():
        model.classifier.weight.normal_()  # answers that are sure of something
    model.save_pretrained(folder)
    build_image_processor(16, 18, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)).save_pretrained(folder)
    return str(folder)


@pytest.fixture
def photos(tmp_path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    random = np.random.default_rng(0)
    for name in ("a", "b", "c"):
        Image.fromarray(random.integers(256, size=(24, 30, 3), dtype=np.uint8)).save(folder / f"{name}.png")
    return folder


@contextmanager
def full_disk(limit: int = 200):
    """No file may grow beyond `limit` bytes: writing fails as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def read(path: Path) -> list[dict]:
    if path.suffix == ".csv":
        rows = list(csv.DictReader(path.read_text().splitlines()))
        return [{k: float(v) if k[:2] in ("pr", "p_") else v for k, v in row.items()} for row in rows]
    if path.suffix == ".json":
        return json.loads(path.read_text())
    if path.suffix == ".jsonl":
        return [json.loads(line) for line in path.read_text().splitlines()]
    return pyarrow.parquet.read_table(path).to_pylist()


def test_the_ending_says_the_format(checkpoint, photos, tmp_path, capsys):
    answers = pipeline("image-classification", model=checkpoint)(
        [str(path) for path in sorted(photos.iterdir())], top_k=4
    )
    capsys.readouterr()
    tables = {}
    for ending in ("csv", "json", "jsonl", "parquet"):
        path = tmp_path / f"p.{ending}"
        command = ["predict", checkpoint, str(photos), "--output", str(path), "--top-k", "2", "--all-probabilities"]
        assert run(command) == 0
        assert capsys.readouterr() == (f"3 images classified: {path}\n", "")
        tables[ending] = read(path)
    assert tables["csv"] == tables["json"] == tables["jsonl"] == tables["parquet"]
    for name, row, answer in zip("abc", tables["json"], answers, strict=True):
        columns = ["file", "label", "probability", "label_2", "probability_2", *(f"p_{label}" for label in LABELS)]
        assert list(row) == columns and row["file"] == str(photos / f"{name}.png")
        assert [row["label"], row["label_2"]] == [entry["label"] for entry in answer[:2]]
        for entry in answer:
            assert row[f"p_{entry['label']}"] == pytest.approx(entry["score"], abs=1e-5)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["p.csv", "p.json", "p.jsonl", "p.parquet", "photos"]


def test_printed_answers(checkpoint, photos, capsys):
    assert run(["predict", checkpoint, str(photos / "a.png"), "--all-probabilities"]) == 0
    (line,) = capsys.readouterr().out.splitlines()
    file, *answers = line.split("\t")
    assert file == str(photos / "a.png") and sorted(answers[::2]) == sorted(LABELS)
    shares = [float(share) for share in answers[1::2]]
    assert shares == sorted(shares, reverse=True) and sum(shares) == pytest.approx(1, abs=0.01)
    assert run(["predict", checkpoint, str(photos / "a.png")]) == 0
    assert capsys.readouterr().out.split("\t") == [file, answers[0], f"{answers[1]}\n"]


def test_an_unreadable_image_is_told_and_the_others_are_kept(checkpoint, photos, tmp_path, capsys):
    whole = (photos / "a.png").read_bytes()
    (photos / "broken.png").write_bytes(whole[: len(whole) // 2])
    (photos / "empty.jpg").touch()
    table = tmp_path / "p.jsonl"
    for batch_size in ("1", "64"):
        table.unlink(missing_ok=True)
        assert run(["predict", checkpoint, str(photos), "--output", str(table), "--batch-size", batch_size]) == 0
        out, errors = capsys.readouterr()
        assert out == f"3 images classified: {table}\n"
        assert [Path(row["file"]).name for row in read(table)] == ["a.png", "b.png", "c.png"]
        first, second, total = errors.splitlines()
        assert "broken.png cannot be read" in first and "empty.jpg cannot be read" in second
        assert total == "metaalign: 2 of 5 images could not be read"
    alone = tmp_path / "alone.csv"
    assert run(["predict", checkpoint, str(photos / "empty.jpg"), "--output", str(alone)]) == 1
    assert "none of the 1 images could be read" in capsys.readouterr().err and not alone.exists()


def test_pipes_are_refused(checkpoint, tmp_path, capsys):
    os.mkfifo(tmp_path / "pipe.png")
    assert run(["predict", checkpoint, str(tmp_path / "pipe.png")]) == 2
    assert "pipe.png is a pipe or a device" in capsys.readouterr().err


def test_names_that_are_not_utf_8(checkpoint, photos, tmp_path, capfdbinary):
    odd = os.fsencode(photos) + b"/caf\xe9.png"
    (photos / "a.png").rename(os.fsdecode(odd))
    try:
        assert run(["predict", checkpoint, os.fsdecode(odd)]) == 0
        assert b"caf\\xe9.png\t" in capfdbinary.readouterr().out
        for ending in ("csv", "json", "jsonl", "parquet"):
            assert run(["predict", checkpoint, str(photos), "--output", str(tmp_path / f"p.{ending}")]) == 0
            assert {Path(row["file"]).name for row in read(tmp_path / f"p.{ending}")} == {
                "b.png",
                "c.png",
                "caf\\xe9.png",
            }
        Path(os.fsdecode(odd)).write_bytes(b"broken")
        assert run(["predict", checkpoint, str(photos)]) == 0
        assert b"caf\\xe9.png cannot be read" in capfdbinary.readouterr().err
    finally:
        os.unlink(odd)  # pytest's own clean-up prints names


def test_full_and_unwritable_disks(checkpoint, photos, tmp_path, capsys):
    (tmp_path / "file").touch()
    outputs = [["predict", checkpoint, str(photos), "--output"], ["export", checkpoint]]
    for command in outputs:
        assert run([*command, str(tmp_path / "file" / "p.csv")]) == 2
        error = capsys.readouterr().err
        assert "p.csv cannot be written: Not a directory" in error and error.count("\n") == 1
        for ending in ("csv", "json", "jsonl", "parquet"):
            with full_disk():
                assert run([*command, str(tmp_path / f"p.{ending}")]) == 2
            error = capsys.readouterr().err
            assert f"p.{ending} cannot be written: " in error and error.count("\n") == 1, error
            assert "too large" in error
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "photos"], "nothing half-written is left"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_read_only_folder(checkpoint, photos, capsys):
    photos.chmod(0o500)
    assert run(["export", checkpoint, str(photos / "native")]) == 2
    assert "cannot be written: Permission denied" in capsys.readouterr().err


def test_push_without_room_for_its_files(checkpoint, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "none"))
    for more in ([], ["--native"]):
        assert run(["push", checkpoint, "lab/digits", *more]) == 2
        error = capsys.readouterr().err
        assert "No such file or directory" in error and error.count("\n") == 1


def test_an_export_may_go_into_an_empty_folder(checkpoint, tmp_path, capsys):
    (tmp_path / "native").mkdir()
    assert run(["export", checkpoint, str(tmp_path / "native")]) == 0
    assert capsys.readouterr().out.startswith("ResNetForImageClassification with its image processor: ")
    assert (tmp_path / "native" / "model.safetensors").exists() and len(list(tmp_path.iterdir())) == 1
    assert run(["export", checkpoint, str(tmp_path / "native")]) == 2


def test_evaluate_prints_classes_and_intervals(checkpoint, tmp_path, capsys):
    random = np.random.default_rng(1)
    for label, count in (("crane", 12), ("cat", 9), ("2", 3), ("zebra, striped", 6)):
        (tmp_path / "labelled" / label).mkdir(parents=True)
        for number in range(count):
            image = Image.fromarray(random.integers(256, size=(20, 20, 3), dtype=np.uint8))
            image.save(tmp_path / "labelled" / label / f"{number}.png")
    figures = tmp_path / "figures.json"
    command = ["evaluate", checkpoint, "--data", f"imagefolder:{tmp_path}/labelled", "--split", "all"]
    assert run([*command, "--output", str(figures)]) == 0
    found = json.loads(figures.read_text())
    out = capsys.readouterr().out
    assert run(["predict", checkpoint, str(tmp_path / "labelled"), "--output", str(tmp_path / "p.json")]) == 0
    said = [(Path(row["file"]).parent.name, row["label"]) for row in read(tmp_path / "p.json")]
    hits = sum(true == label for true, label in said)
    low, high = found["accuracy_interval"]
    assert found["accuracy"] == hits / 30 and low < hits / 30 < high
    assert f"(95 % interval {100 * low:.2f} to {100 * high:.2f}, Wilson)" in out
    assert found["per_class_n"] == {"crane": 12, "cat": 9, "2": 3, "zebra, striped": 6}
    for label in LABELS:
        right = sum(true == name == label for true, name in said)
        assert found["per_class"][label] == pytest.approx(right / found["per_class_n"][label])
        named = sum(name == label for _, name in said)
        assert found["per_class_precision"][label] == (pytest.approx(right / named) if named else None)
        assert any(label in line and f" {found['per_class_n'][label]} " in line for line in out.splitlines())


def test_the_wilson_interval():
    # Newcombe, Statistics in Medicine 17 (1998), table I, method 3.
    for hits, n, low, high in (
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ):
        assert wilson_interval(hits / n, n) == pytest.approx((low, high), abs=5e-5)
    assert wilson_interval(math.nan, 0) == (0, 1)
    assert wilson_interval(1.0, 20)[1] == 1
