"""Pictures of a run: what they show of it, and that nothing in them misleads or covers something else."""

from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest
import torch
from PIL import Image

from metaalign_hf.data import Objects
from metaalign_hf.evaluation import Detections
from metaalign_hf.reports import RunRecord, draw_before_after, draw_objects, write_figures
from metaalign_hf.reports.boxes import place_names
from metaalign_hf.reports.figures import running_mean
from metaalign_hf.reports.target_images import Prediction, draw_target_images, most_telling

EVALUATIONS = [
    {
        "step": step,
        "evaluation": str(step),
        "source_accuracy": 0.9,
        "target_accuracy": 0.05 * step,
        "validator_bnm": 0.1 * step,
        "validator_entropy": 1 / step,
    }
    for step in (4, 7, 10)
]
STEPS = [
    {
        "step": step,
        "phase": "source" if step <= 4 else "adaptation",
        "task_loss": 2.0 / step,
        **({"alignment_loss": 50.0 + step % 2, "cosine": 0.1} if step > 4 else {}),
    }
    for step in range(1, 11)
]
ROWS = [
    {"checkpoint": "last", "step": 10},
    {"checkpoint": "selected (label-free, bnm)", "step": 7},
    {"checkpoint": "oracle (target labels)", "step": 10},
]
RECORD = RunRecord(
    model={},
    training={"training": {"source_steps": 4, "max_steps": 6}},
    summary={"source": "art", "target": "photo", "checkpoints": ROWS},
    metrics=[*STEPS, *EVALUATIONS],
)


@pytest.fixture
def drawn(monkeypatch, tmp_path):
    """Draws a record, checks that the file is there, and returns the figure as matplotlib holds it."""
    from matplotlib.figure import Figure

    def draw(record: RunRecord) -> Figure:
        kept: list[Figure] = []
        save = Figure.savefig

        def keep(self, *arguments, **options):
            kept.append(self)
            return save(self, *arguments, **options)

        monkeypatch.setattr(Figure, "savefig", keep)
        (path,) = write_figures(record, tmp_path / "figures")
        with Image.open(path) as picture:
            assert picture.width > 300 and picture.height > 300
        return kept[-1]

    return draw


def panels(figure) -> dict:
    return {axes.get_title(): axes for axes in figure.axes}


def legend(figure) -> list[str]:
    return [text.get_text() for text in figure.legends[0].get_texts()]


def test_every_loss_and_validator_has_its_own_axis_and_the_marks_are_at_their_steps(drawn):
    figure = drawn(RECORD)
    assert list(panels(figure)) == [
        "test accuracy, %",
        "task loss",
        "alignment loss",
        "cosine of task and alignment gradient",
        "bnm (higher is better), selects",
        "entropy (lower is better)",
    ]
    assert panels(figure)["task loss"].get_ylim()[1] < 3, "the alignment loss is on another scale"
    assert "selected without target labels (step 7)" in legend(figure)
    assert "oracle: best by target labels (step 10)" in legend(figure)
    marks = {line.get_marker(): line for line in panels(figure)["entropy (lower is better)"].lines}
    assert marks["*"].get_xdata().tolist() == [7] and marks["D"].get_xdata().tolist() == [10]


def test_without_target_labels_the_validators_are_there(drawn):
    blind = [{k: v for k, v in line.items() if not k.startswith("target")} for line in RECORD.metrics]
    figure = drawn(replace(RECORD, metrics=blind, summary={"checkpoints": ROWS[:2]}))
    assert "bnm (higher is better), selects" in panels(figure) and "entropy (lower is better)" in panels(figure)
    assert not any("target " in text and "labels" not in text for text in legend(figure))
    assert not any("oracle" in text for text in legend(figure))


def test_without_alignment_the_target_losses_are_called_so(drawn):
    steps = [{key.replace("alignment", "target"): value for key, value in line.items()} for line in STEPS]
    titles = panels(drawn(replace(RECORD, metrics=steps, summary={})))
    assert {"target loss", "cosine of task and target-loss gradient"} <= set(titles)


@pytest.mark.parametrize("lines", [STEPS[:1], EVALUATIONS[:1], [*STEPS, EVALUATIONS[0], EVALUATIONS[2]]])
def test_a_short_run_is_drawn_too(drawn, lines):
    assert drawn(replace(RECORD, metrics=lines, summary={})).axes


def test_a_run_without_anything_to_draw_has_no_figure(tmp_path):
    assert write_figures(replace(RECORD, metrics=[]), tmp_path / "figures") == []
    assert not (tmp_path / "figures").exists()


def test_the_source_only_baseline_is_drawn_where_there_is_one(drawn):
    assert not any("baseline" in text for text in legend(drawn(RECORD)))
    baseline = [{**line, "target_accuracy": 0.2} for line in EVALUATIONS]
    figure = drawn(replace(RECORD, baseline=baseline))
    assert "target, source-only baseline" in legend(figure)
    assert any(np.allclose(line.get_ydata(), 20) for line in panels(figure)["test accuracy, %"].lines)
    assert any(line.get_marker() == "s" for line in panels(figure)["entropy (lower is better)"].lines)


def test_losses_are_smoothed_phase_by_phase_over_their_faint_values(drawn):
    noisy = [
        {"step": n, "phase": "source" if n <= 100 else "adaptation", "task_loss": (0.0 if n <= 100 else 9.0) + n % 2}
        for n in range(1, 201)
    ]
    axes = panels(drawn(replace(RECORD, metrics=noisy, training={"training": {"source_steps": 100}})))["task loss"]
    raw, mean, raw_after, mean_after = axes.lines[:4]
    assert raw.get_alpha() < 0.5 and raw_after.get_alpha() < 0.5 and mean.get_alpha() is None
    assert np.ptp(raw.get_ydata()) == 1 and np.ptp(mean.get_ydata()) < 0.3
    assert mean.get_ydata().max() <= 1 and mean_after.get_ydata().min() >= 9, "no mean reaches over both phases"


def test_the_running_mean_keeps_a_constant_and_short_series():
    assert np.allclose(running_mean(np.full(200, 3.0)), 3.0)
    assert running_mean(np.arange(5.0)).tolist() == [0, 1, 2, 3, 4]


def detections(*entries: tuple[list[float], float, int]) -> Detections:
    boxes, scores, labels = ([entry[n] for entry in entries] for n in range(3))
    return Detections(torch.tensor(boxes).reshape(-1, 4), torch.tensor(scores), torch.tensor(labels).long())


def colours(picture: Image.Image) -> np.ndarray:
    return np.asarray(picture).astype(int)


def test_boxes_of_every_class_look_alike_and_have_no_colour():
    grey = torch.full((3, 120, 160), 128, dtype=torch.uint8)
    first, second = (detections(([20, 30, 90, 100], 0.9, label)) for label in (0, 1))
    pictures = [colours(draw_objects(grey, found, ["red", "red"])) for found in (first, second)]
    assert np.array_equal(*pictures), "the name alone tells the class"
    assert (pictures[0].max(2) == pictures[0].min(2)).all() and (pictures[0] != 128).any()


@pytest.mark.parametrize("size", [(200, 150), (60, 400), (400, 60)])
def test_names_never_cover_each_other_and_stay_in_the_picture(size):
    boxes = [(10.0 + n, 10.0 + n, 50.0 + n, 40.0 + n) for n in range(12)] + [(0.0, 0.0, size[0] - 1, size[1] - 1)]
    places = place_names(boxes, [(55.0, 15.0)] * len(boxes), size)
    kept = [place for place in places if place is not None]
    assert places[0] is not None and len(kept) >= 6
    for a, b in combinations(kept, 2):
        assert a[2] < b[0] or b[2] < a[0] or a[3] < b[1] or b[3] < a[1], (a, b)
    assert all(x >= 0 and y >= 0 and right < size[0] and bottom < size[1] for x, y, right, bottom in kept)


def test_an_empty_picture_says_so_and_the_truth_is_a_row_of_its_own():
    images = [torch.full((3, 90, 60), 200, dtype=torch.uint8), torch.full((3, 60, 300), 200, dtype=torch.uint8)]
    nothing, one = detections(), detections(([5, 5, 50, 50], 0.8, 0))
    plain = draw_objects(images[0], nothing, ["a"], 200)
    assert len(np.unique(colours(plain))) > 1, "a word stands in it"
    without = draw_before_after(images, [nothing, one], [one, nothing], ["a"], None, 0.3)
    truth = [Objects.of([[5, 5, 50, 50]], [0]), Objects.of([], [])]
    with_truth = draw_before_after(images, [nothing, one], [one, nothing], ["a"], truth, 0.3)
    assert with_truth.width == without.width and with_truth.height > 1.4 * without.height
    assert np.array_equal(colours(with_truth)[: without.height - 6], colours(without)[:-6])


def predictions(*entries: tuple[int, float]) -> list[Prediction]:
    return [Prediction(*entry) for entry in entries]


def test_the_sheet_has_the_most_and_the_least_confident_and_those_that_changed():
    before = predictions((0, 0.9), (0, 0.6), (1, 0.5), (1, 0.8), (0, 0.7))
    after = predictions((0, 0.99), (1, 0.7), (1, 0.51), (0, 0.95), (0, 0.8))
    assert most_telling(before, after, most=2) == ([0, 3], [2, 1], [3, 1])
    surest, unsure, _ = most_telling(before, after)
    assert sorted(surest + unsure) == [0, 1, 2, 3, 4], "no image is on both sides"
    assert most_telling(before[:1], after[:1]) == ([0], [], [])


def test_the_sheet_takes_wide_tall_and_few_images_and_long_names():
    shapes = [(40, 400), (400, 40), (16, 16), (2, 900)]
    images = [torch.full((3, *shape), 90, dtype=torch.uint8) for shape in shapes]
    before = predictions((0, 0.6), (1, 0.7), (0, 0.8), (1, 0.9))
    labels = ["red", "a class with a name that is much longer than its picture is wide"]
    changed = draw_target_images(
        images.__getitem__, before, before[::-1], labels, [f"{'x' * 80}-{n}" for n in range(4)]
    )
    same = draw_target_images(images.__getitem__, before, before, labels)
    assert changed.width == same.width and changed.height > same.height > 300
    assert draw_target_images(images.__getitem__, before[:1], before[:1], labels).height > 200
