"""`metaalign app`: what a browser and a program get from it is what `metaalign predict` says."""

import os
import re
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from PIL import Image

from metaalign_hf import MetaAlignForImageClassification, MetaAlignForObjectDetection
from metaalign_hf.app import Served, interface, open_served
from metaalign_hf.app.page import answers_page, answers_table
from metaalign_hf.app.served import Side, ask
from metaalign_hf.cli import run
from metaalign_hf.models import build_image_processor
from metaalign_hf.models.detectors.processors import build_detector_processor
from metaalign_hf.tasks import OBJECT_DETECTION
from metaalign_hf.tasks.classification.task import ClassificationTask
from tests.helpers.browser import BROWSER, Browser
from tests.helpers.runs import ROOT, train
from tests.helpers.tiny_detectors import detector_settings

needs_gradio = pytest.mark.skipif(find_spec("gradio") is None, reason="the extra app is not installed")


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("app") / "run"
    train(folder, "--training.baseline", "true")
    return folder


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    pixels = torch.randint(256, (4, 20, 24, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    for name, image in zip(("a", "b", "c", "<i>d"), pixels, strict=True):
        Image.fromarray(image.numpy()).save(folder / f"{name}.png")
    (folder / "broken.png").write_text("no image")
    (folder / "notes.txt").write_text("no image either")
    return folder


@pytest.fixture(scope="module")
def address(trained):
    """Where the app of the run listens."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1"}
    command = [sys.executable, "-m", "metaalign_hf", "app", str(trained)]
    process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True)
    try:
        line = process.stdout.readline()
        assert line.startswith("App: http://127.0.0.1:"), line
        yield line.split()[1]
    finally:
        process.kill()
        process.wait()


def predicted(capsys, checkpoint: Path, image: Path) -> tuple[str, str]:
    """The class and its probability that `metaalign predict` prints."""
    capsys.readouterr()
    assert run(["predict", str(checkpoint), str(image)]) == 0
    _, label, share = capsys.readouterr().out.split("\t")
    return label, share.strip()


@needs_gradio
def test_a_program_gets_what_predict_prints(trained, photos, address, capsys):
    from gradio_client import Client, handle_file

    names = ["a.png", "b.png", "broken.png"]
    client = Client(address, verbose=False)
    page, table = client.predict([handle_file(str(photos / name)) for name in names], api_name="/predict")
    value = table["value"]
    rows = [dict(zip(value["headers"], row, strict=True)) for row in value["data"]]
    assert {(row["file"], row["model"]) for row in rows} == {
        (name, model) for name in names[:2] for model in ("Source only", "Adapted")
    }
    for row in rows:
        folder = trained if row["model"] == "Adapted" else trained / "baseline"
        assert (row["label"], f"{row['probability']:.3f}") == predicted(capsys, folder, photos / row["file"])
    assert page.count("<section") == 2 and "image broken.png cannot be read" in page and str(photos) not in page


@needs_gradio
@pytest.mark.skipif(BROWSER is None, reason="no chromium on PATH")
def test_a_browser_shows_both_models(trained, photos, address, tmp_path, capsys):
    with Browser(tmp_path / "profile") as browser:
        browser.call("Page.navigate", url=address)
        browser.wait("document.querySelector('input[type=file]')")
        browser.give_files("input[type=file]", [photos / "a.png"])
        browser.wait("document.querySelector('.answers .asked')")
        sides = browser.run("[...document.querySelectorAll('.answers .side')].map(side => side.innerText.split('\\n'))")
        for (title, label, share, *_), folder in zip(sides, (trained / "baseline", trained), strict=True):
            assert title == ("Adapted" if folder == trained else "Source only")
            name, probability = predicted(capsys, folder, photos / "a.png")
            assert label == name and float(share.removesuffix(" %")) == pytest.approx(
                100 * float(probability), abs=0.11
            )
        assert browser.run("document.querySelector('.answers img').naturalWidth") == 24
        text = browser.run("document.body.innerText")
        assert "uci_digits → mnist" in text and re.search(r"accuracy [\d.]+ %, and trained on the source alone", text)
        # A whole folder, by the other input.
        browser.give_files("input[webkitdirectory]", [photos])
        browser.wait("document.querySelectorAll('.answers .asked').length == 4")
        assert "broken.png cannot be read" in browser.run("document.querySelector('.answers').innerText")
        assert browser.run("document.querySelectorAll('.answers i').length") == 0, "names of files are no markup"
        assert browser.complaints == []
        assert all(url.startswith((address, "data:", "blob:")) for url in browser.asked), "nothing from elsewhere"


def test_images_on_which_two_models_disagree_come_first(photos, tmp_path):
    torch.manual_seed(0)
    options = {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1], "layer_type": "basic"}
    model = MetaAlignForImageClassification.from_backbone("resnet", ["x", "y"], "dann", pretrained=False, **options)
    build_image_processor(16, 18, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)).save_pretrained(tmp_path / "some")
    shutil.copytree(tmp_path / "some", tmp_path / "all")
    model.save_pretrained(tmp_path / "some")
    files, notes = sorted(photos.iterdir()), []
    answers = [image.answers[0] for image in ask(open_served(str(tmp_path / "some")), files, 0.5, lambda _: None)]
    shares = torch.tensor([dict(ClassificationTask.confidences(answer))["y"] for answer in answers])
    with torch.no_grad():  # one model says y of half of the images, the other one of none
        model.classifier.bias[1] -= shares.logit().sort().values[1:3].mean()
        model.save_pretrained(tmp_path / "some")
        model.classifier.bias[0] += 100
        model.save_pretrained(tmp_path / "all")
    served = open_served(str(tmp_path / "all"), str(tmp_path / "some"))
    assert [side.name for side in served.sides] == [str(tmp_path / name) for name in ("some", "all")]
    asked = ask(served, files, 0.5, notes.append)
    assert len(asked) == 4 and len(notes) == 2
    labels = [[answer.rows[0]["label"] for answer in image.answers] for image in asked]
    assert labels == [["y", "x"], ["y", "x"], ["x", "x"], ["x", "x"]]
    page = answers_page(served, asked, notes)
    assert "disagree on 2 of 4 images; these come first" in page
    assert page.count("asked differs") == 2 and "&lt;i&gt;d.png" in page


def test_boxes_of_a_detector_are_drawn(photos, tmp_path):
    torch.manual_seed(0)
    family, options = detector_settings()["d_fine"]
    model = MetaAlignForObjectDetection.from_detector(family, ["cat", "dog"], "detr", pretrained=False, **options)
    side = Side("one", model.eval(), build_detector_processor(family, size=64))
    served = Served("boxes", "", OBJECT_DETECTION, (side,))
    (image,) = ask(served, [photos / "a.png"], 0.0, print)
    found = image.answers[0].rows
    columns, rows = answers_table(served, [image])
    assert columns == ["file", "label", "score", "x_min", "y_min", "x_max", "y_max"]
    assert len(rows) == len(found) > 0 and rows[0][1] in ("cat", "dog")
    drawn = image.draw(image.answers[0])
    (bare,) = ask(served, [photos / "a.png"], 1.0, print)
    without = bare.draw(bare.answers[0])
    assert min(drawn.size) == 320 and drawn.size == without.size and drawn.tobytes() != without.tobytes()


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["nowhere/at/all"], ["nowhere/at/all", "no such folder"]),
        ([], ["checkpoint"]),
        (["run", "--port", "0"], ["--port", "1 to 65535"]),
        (["run", "--port", "70000"], ["--port", "1 to 65535"]),
    ],
    ids=str,
)
def test_bad_input(words, told, capsys, monkeypatch):
    monkeypatch.setattr(interface, "find_spec", lambda name: object())
    assert run(["app", *words]) == 2
    text = capsys.readouterr().err
    assert text.count("\n") == 1 and all(word in text for word in told), text


@needs_gradio
def test_a_port_that_is_taken_is_told(trained, address, capsys):
    port = address.rstrip("/").rpartition(":")[2]
    assert run(["app", str(trained), "--port", port]) == 2
    assert f"127.0.0.1:{port} cannot be listened on; choose another --port" in capsys.readouterr().err


def test_without_gradio_one_line_says_how_to_get_it(trained, capsys, monkeypatch):
    monkeypatch.setattr(interface, "find_spec", lambda name: None)
    assert run(["app", str(trained)]) == 2
    assert capsys.readouterr().err == "metaalign: app: it needs gradio; pip install 'metaalign-hf[app]'\n"
