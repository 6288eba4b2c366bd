"""The report: what it holds of a run, that it needs no other file, and what a browser makes of it."""

import base64
import io
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from PIL import Image

from metaalign_hf.cli import run
from metaalign_hf.evaluation import Collected, Detections, precision_curves, voc_precision
from metaalign_hf.evaluation.calibration import reliability
from metaalign_hf.evaluation.domain_distance import proxy_a_distance
from metaalign_hf.reports.outputs import add_outputs, read_outputs
from metaalign_hf.reports.page import features
from metaalign_hf.reports.page.classes import confusion_matrix
from tests.helpers.browser import BROWSER
from tests.helpers.runs import train


class Page(HTMLParser):
    """What a page holds, and every address that it names."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.headings, self.pictures, self.addresses, self.cells = [], [], [], []
        self.open: list[str] = []
        self.feed(path.read_text())
        assert self.open == [], "every element is closed"

    def handle_starttag(self, tag: str, attributes) -> None:
        given = dict(attributes)
        self.addresses += [given[name] for name in ("src", "href") if name in given]
        if tag == "img":
            self.pictures.append(given)
        if tag not in ("meta", "link", "img"):
            self.open.append(tag)
        if tag in ("h1", "h2", "h3"):
            self.headings.append("")
        if tag in ("td", "th"):
            self.cells.append("")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] in ("h1", "h2", "h3"):
            self.headings[-1] += data
        if self.open and self.open[-1] in ("td", "th"):
            self.cells[-1] += data


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    output = tmp_path_factory.mktemp("runs") / "a"
    train(output, "--training.baseline", "true")
    return output


@pytest.fixture(scope="module")
def reported(finished) -> Path:
    assert run(["report", str(finished)]) == 0
    return finished / "report"


def test_one_file_holds_every_figure_and_the_same_pictures_lie_beside_it(reported):
    page = Page(reported / "report.html")
    assert page.headings == [
        "uci_digits → mnist",
        "Result",
        "Course of the run",
        "By class",
        "Reliability",
        "Both domains",
        "Target images",
        "Losses and gradients",
        "Without target labels",
    ]
    assert all(address.startswith(("#", "data:")) for address in page.addresses), "nothing is loaded"
    beside = {path.read_bytes() for path in reported.glob("*.png")}
    inside = [base64.b64decode(picture["src"].partition("base64,")[2]) for picture in page.pictures]
    assert len(inside) == 9 and set(inside) == beside
    for content, picture in zip(inside, page.pictures, strict=True):
        with Image.open(io.BytesIO(content)) as image:
            assert min(image.size) > 100 and picture["alt"]


def test_figures_are_those_of_the_summary_and_the_markdown_says_the_same(finished, reported):
    summary = json.loads((finished / "summary.json").read_text())
    page, text = Page(reported / "report.html"), (reported / "report.md").read_text()
    shares = [summary["target_accuracy_before"], summary["baseline"]["target"], summary["target_accuracy_after"]]
    row = ["target, accuracy %", *(f"{100 * share:.1f}" for share in shares)]
    assert page.cells[page.cells.index(row[0]) :][:4] == row
    assert f"| {' | '.join(row)} |" in text
    assert "Dotted: the same steps on the source alone." in text
    linked = re.findall(r"!\[[^\]]+\]\(([^)]+)\)", text)
    assert len(linked) == 9 and all((reported / name).is_file() for name in linked)


def test_what_is_kept_for_the_report_is_what_the_run_measured(finished):
    summary, outputs = json.loads((finished / "summary.json").read_text()), read_outputs(finished)
    for when in ("before", "after"):
        there = outputs[when]
        for domain in ("source", "target"):
            right = there[f"{domain}_label"] == there[f"{domain}_predicted"]
            assert float(right.double().mean()) == pytest.approx(summary[f"{domain}_accuracy_{when}"])
            assert len(there[f"{domain}_features"]) == len(right)
    assert (finished / "outputs.safetensors").stat().st_size < 2_000_000


@pytest.fixture
def without_scikit_learn(monkeypatch):
    monkeypatch.setattr(features, "has_tsne", lambda: False)


def test_a_class_has_one_colour_before_and_after_though_none_of_it_is_predicted(without_scikit_learn):
    def outputs(predicted: list[int]) -> dict[str, torch.Tensor]:
        points = torch.arange(12.0).reshape(6, 2)
        known = {"source_label": torch.tensor([0, 0, 1, 1, 2, 2]), "target_predicted": torch.tensor(predicted)}
        return {"source_features": points, "target_features": points + 1, **known}

    labels = ["circle", "square", "triangle"]
    shown = SimpleNamespace(outputs={"before": outputs([1] * 6), "after": outputs([2] * 6)}, labels=labels)
    figure = features.embedding(shown).figure
    *_, before, after = figure.axes
    colours = [
        {part.get_label(): tuple(part.get_facecolor()[0]) for part in axes.collections if len(part.get_offsets())}
        for axes in (before, after)
    ]
    for name in labels:
        assert colours[0][name] == colours[1][name]
    assert [text.get_text() for text in after.get_legend().get_texts()] == labels


def test_several_runs_are_laid_over_each_other(finished, tmp_path, without_scikit_learn):
    assert run(["report", str(finished), str(finished / "baseline"), "--output", str(tmp_path / "both")]) == 0
    page = Page(tmp_path / "both" / "report.html")
    assert page.headings[:3] == ["uci_digits → mnist, 2 runs", "Runs beside each other", "Curves of all runs"]
    assert page.headings.count("Result") == 2 and {"Run a", "Run baseline"} <= set(page.headings)
    text = (tmp_path / "both" / "report.md").read_text()
    assert text.count("pip install 'metaalign-hf[report]'") == 4, "in two captions and their alternative texts"
    assert page.cells.count("metaalign, fresh with dann") == page.cells.count("source_only") == 1


def test_a_run_that_goes_on_has_a_report(finished, tmp_path, without_scikit_learn):
    going = tmp_path / "going"
    shutil.copytree(finished, going, ignore=shutil.ignore_patterns("report", "config.json", "summary.json"))
    with (going / "metrics.jsonl").open("a") as file:
        file.write('{"step": 11, "ph')  # a line that is being written
    assert run(["report", str(going)]) == 0
    text = (going / "report" / "report.md").read_text()
    assert "not finished: 10 of 10 steps" in text and "scores.png" in text


def test_without_target_labels_the_images_come_first(tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    for n in range(40):
        Image.new("L", (16, 16), 6 * n).save(folder / f"{n}.png")
    train(tmp_path / "run", "--data.target", f"imagefolder:{folder}", "--training.select_by", "null")
    assert run(["report", str(tmp_path / "run")]) == 0
    page = Page(tmp_path / "run" / "report" / "report.html")
    assert page.headings[1:3] == ["Result", "Target images"]
    assert not {"By class", "Reliability"} & set(page.headings) and "Both domains" in page.headings
    text = (tmp_path / "run" / "report" / "report.md").read_text()
    assert "cannot be measured" not in text, "it is said once"
    assert "The target has no labels" in text and "target test images changed their class" in text


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["nowhere"], ["nowhere", "no such folder"]),
        (["."], ["training_config.yaml", "`metaalign runs .` lists"]),
        (["a", "b"], ["--output"]),
        ([], ["RUN"]),
    ],
    ids=str,
)
def test_bad_input(words, told, capsys):
    assert run(["report", *words]) == 2
    text = capsys.readouterr().err
    assert text.count("\n") == 1 and all(word in text for word in told), text


def test_a_folder_with_something_else_is_left_alone(finished, tmp_path, capsys):
    (tmp_path / "thesis.tex").write_text("mine")
    assert run(["report", str(finished), "--output", str(tmp_path)]) == 2
    assert "holds no report" in capsys.readouterr().err and [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


PROBE = """<script>addEventListener("load", () => document.documentElement.setAttribute("data-probe", JSON.stringify({
widths: [...document.images].map(i => i.naturalWidth), shown: [...document.images].map(i => i.clientWidth),
over: document.documentElement.scrollWidth - innerWidth})))</script></body>"""


@pytest.mark.skipif(BROWSER is None, reason="no chromium on PATH")
@pytest.mark.parametrize("width", [1280, 500])
def test_a_browser_shows_every_figure_and_complains_of_nothing(reported, tmp_path, width):
    page = tmp_path / "page.html"
    page.write_text((reported / "report.html").read_text().replace("</body>", PROBE))
    command = [str(BROWSER), "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}"]
    command += ["--enable-logging=stderr", f"--window-size={width},900", "--dump-dom", page.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    found = json.loads(re.search(r"data-probe='?\"?([^>]*?)['\"]?>", done.stdout)[1].replace("&quot;", '"'))
    assert len(found["widths"]) == 9 and min(found["widths"]) > 400
    assert max(found["shown"]) <= width and min(found["shown"]) > 200 and found["over"] <= 0, "nothing is cut off"
    assert not [line for line in done.stderr.splitlines() if "CONSOLE" in line]


def test_calibration_error_is_the_weighted_gap():
    found = reliability(torch.tensor([0.95, 0.85, 0.95, 1.0]), torch.tensor([True, False, False, True]), bins=10)
    assert found.counts.tolist() == [0] * 8 + [1, 3]
    assert found.error == pytest.approx((0.85 + 3 * abs(2 / 3 - 2.9 / 3)) / 4)


def test_the_proxy_distance_is_0_for_one_domain_and_2_for_domains_apart():
    first, second = torch.randn(2, 400, 8, generator=torch.Generator().manual_seed(0))
    assert proxy_a_distance(first, second)[0] < 0.2
    assert proxy_a_distance(first, second + 8)[0] == 2
    # Means two deviations apart along one axis: a linear classifier is wrong for 16 % of them.
    second[:, 0] += 2
    assert proxy_a_distance(first, second)[0] == pytest.approx(2 * (1 - 2 * 0.1587), abs=0.15)


def test_chosen_features_come_in_the_order_asked_for_whatever_the_batches():
    features, logits = torch.arange(10.0)[:, None], torch.eye(10)
    collected = Collected([7, 0, 4])
    for start, end in ((0, 3), (3, 9), (9, 10)):
        collected.add(features[start:end], logits[start:end])
    assert collected.features().flatten().tolist() == [7, 0, 4]
    assert collected.predictions()[0].tolist() == list(range(10))


def test_rows_of_a_confusion_matrix_are_true_classes():
    matrix = confusion_matrix(torch.tensor([0, 0, 2]), torch.tensor([0, 1, 1]), 3)
    assert matrix.tolist() == [[1, 1, 0], [0, 0, 0], [0, 1, 0]]


def test_a_curve_has_the_area_that_is_reported(tmp_path):
    from metaalign_hf.data import Objects

    boxes = [[0.0, 0, 10, 10], [20, 20, 40, 40], [50, 50, 60, 60]]
    found = [Detections(torch.tensor(boxes), torch.tensor([0.9, 0.8, 0.7]), torch.tensor([0, 0, 0]))]
    there = [Objects.of([boxes[0], boxes[2]], [0, 0])]
    curves, areas = precision_curves(found, there, 2)
    assert float(areas[0]) == pytest.approx(0.5 + 0.5 * 2 / 3)
    assert float(areas[0]) == pytest.approx(voc_precision(found, there, 2)[0][0])
    assert curves[0, :51].tolist() == [1.0] * 51 and curves[0, 51:].tolist() == pytest.approx([2 / 3] * 50)
    assert bool(areas[1].isnan()) and bool(curves[1].isnan().all())
    add_outputs(tmp_path, "before", {"ap50": areas})
    add_outputs(tmp_path, "after", {"precision": curves})
    assert {when: set(there) for when, there in read_outputs(tmp_path).items()} == {
        "before": {"ap50"},
        "after": {"precision"},
    }
