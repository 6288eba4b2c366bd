"""Pseudo-labels of a mean teacher: which boxes count, what the student sees, what it is taught."""

import json
from copy import deepcopy
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from transformers import DetrImageProcessor, RTDetrImageProcessor

from metaalign_hf import UserError, adapt, load_config, load_detection_pair
from metaalign_hf.coordination import Joint, MetaAlign
from metaalign_hf.target_losses import MeanTeacher, TargetContext, TargetLoss, TargetStep, with_target_losses
from metaalign_hf.target_losses.counts import CountThresholds, normalised_by_batch
from metaalign_hf.target_losses.pseudo_labels import strong_view
from metaalign_hf.tasks.building import build_task
from metaalign_hf.training.weights import WeightAverage
from tests.helpers.runs import TINY_DETECTION as TINY
from tests.helpers.tiny_detectors import tiny_detector

LABELS = ["cat", "dog"]


class Says(nn.Module):
    """A detector that finds the same in every batch."""

    def __init__(self, probabilities: list, boxes: list) -> None:
        super().__init__()
        self.found = SimpleNamespace(logits=torch.tensor(probabilities).logit(), pred_boxes=torch.tensor(boxes))

    def forward(self, pixel_values: torch.Tensor) -> SimpleNamespace:
        return self.found


LEFT, NEARLY_LEFT, RIGHT = [0.2, 0.2, 0.2, 0.2], [0.21, 0.2, 0.2, 0.2], [0.7, 0.7, 0.2, 0.2]
FOUND = Says(
    [[[0.5, 0.1], [0.1, 0.5], [0.6, 0.2]], [[0.2, 0.1], [0.1, 0.2], [0.1, 0.2]]],
    [[LEFT, RIGHT, NEARLY_LEFT], [LEFT, RIGHT, RIGHT]],
)


@pytest.mark.parametrize(
    ("threshold", "expected"),
    [
        (0.3, [([0, 1], [NEARLY_LEFT, RIGHT]), None]),
        ({"dog": 0.3, "cat": 0.7}, [([1], [RIGHT]), None]),
        ({"dog": 0.7, "cat": 0.15}, [([0], [NEARLY_LEFT]), ([0], [LEFT])]),
        (0.7, [None, None]),
    ],
)
def test_boxes_count_from_the_threshold_of_their_class_on(threshold, expected):
    teacher = MeanTeacher(TargetContext(LABELS, RTDetrImageProcessor(), torch.sigmoid), threshold=threshold)
    (batch,), figures = teacher.label(FOUND, [{"pixel_values": torch.rand(2, 3, 16, 16)}])
    counts = [0 if entry is None else len(entry[0]) for entry in expected]
    assert figures == {"pseudo_boxes": sum(counts) / 2, "pseudo_images": sum(c > 0 for c in counts) / 2}
    for found, entry in zip(batch["labels"], expected, strict=True):
        assert (found is None) == (entry is None), "an unsure teacher says nothing, not that nothing is there"
        if found is not None:
            assert found["class_labels"].tolist() == entry[0]
            torch.testing.assert_close(found["boxes"], torch.tensor(entry[1]))


@pytest.mark.parametrize(
    ("threshold", "words"),
    [({"cat": 0.5, "dgo": 0.5}, "dgo is not a class.*cat, dog"), ({"cat": 0.5}, "dog has none.*cat, dog")],
)
def test_thresholds_are_those_of_the_classes(threshold, words):
    with pytest.raises(UserError, match=words):
        MeanTeacher(TargetContext(LABELS, RTDetrImageProcessor(), torch.sigmoid), threshold=threshold)


def test_the_strong_view_changes_colours_alone():
    processor = DetrImageProcessor()
    images = [torch.full((3, 24, 24), 60, dtype=torch.uint8), torch.full((3, 24, 16), 60, dtype=torch.uint8)]
    for image in images:
        image[0, 6:18, 4:12] = 220  # a box, reddish
    made = processor(images=images, size={"shortest_edge": 24, "longest_edge": 24}, return_tensors="pt")
    pixels, mask = made["pixel_values"], made["pixel_mask"]
    assert not mask.bool().all()

    def view(seed: int) -> torch.Tensor:
        torch.manual_seed(seed)
        return strong_view(pixels, mask, processor.image_mean, processor.image_std)

    views = torch.stack([view(seed) for seed in range(20)])
    assert torch.equal(views[3], view(3)) and not torch.equal(views[3], views[4])
    assert torch.equal(views[:, 1, :, :, 16:], pixels[1, :, :, 16:].expand(20, -1, -1, -1)), "padding stays"
    colours = views * torch.tensor(processor.image_std).view(3, 1, 1) + torch.tensor(processor.image_mean).view(3, 1, 1)
    assert colours.min() > -1e-5 and colours.max() < 1 + 1e-5
    inside, outside = colours[:, 0, :, 12, 8], colours[:, 0, :, 12, 20]
    assert ((inside - outside).abs().amax(1) > 0.01).all(), "the box stays where it was"


class OnViews(TargetLoss):
    """The task loss on views that are given."""

    name = "on_views"

    def __init__(self, weight: float, views: list) -> None:
        super().__init__(weight)
        self.views = views

    def passes(self, step: TargetStep) -> tuple[list, dict]:
        return [step.task_pass(source, view) for source, view in zip(step.source, self.views, strict=True)], {}


@pytest.mark.parametrize("live", [False, True])
def test_the_task_loss_is_the_sources_plus_the_weighted_one_on_pseudo_labels(live):
    """Against the model's own losses on hand-made batches; dropout and denoising off, so that passes repeat."""
    options = {"pseudo_label_weight": 0.3, "pseudo_label_threshold": 0.0, "ema_decay": 0.9}
    config = load_config(TINY, {f"training.{key}": value for key, value in options.items()})
    config.model.detector_options["num_denoising"] = 0
    torch.manual_seed(0)
    task = build_task(config, load_detection_pair("scenes_plain", "scenes_photo"))
    model, average = task.model.train(live), deepcopy(task.model).eval()
    for layer in model.modules():
        if isinstance(layer, nn.Dropout):
            layer.eval()
    streams = task.streams(0, 0, 0, 1)
    source, target = ([next(stream) for _ in range(2)] for stream in streams)
    (teacher,) = task.target_losses
    labelled, figures = teacher.label(average, target)
    assert figures["pseudo_images"] == 1 and figures["pseudo_boxes"] > 1
    with torch.no_grad():
        whole = average(pixel_values=target[1]["pixel_values"]).pred_boxes[2]
    view = labelled[1]
    assert all((box == whole).all(1).any() for box in view["labels"][2]["boxes"])
    # The second micro-batch has none: it counts as a loss of 0.
    view["labels"] = [None] * 4
    step = TargetStep(model, average, source, target, 0.5, lambda s, v: task.target_pass(model, s, v))
    closures, _ = with_target_losses(task.closures(model, source, target, 0.5), [OnViews(0.3, labelled)], step)

    def loss(batch: dict, other: torch.Tensor) -> torch.Tensor:
        pixels, labels = batch["pixel_values"], list(batch["labels"])
        if live:
            pixels, labels = torch.cat([pixels, other]), [*labels, *[None] * len(other)]
        return model(pixel_values=pixels, labels=labels, objective="task").task_loss

    parameters = [p for p in model.parameters() if p.requires_grad]
    view = labelled[0]
    supervised = sum(loss(s, t["pixel_values"]) for s, t in zip(source, target, strict=True)) / 2
    expected = supervised + 0.3 * loss(view, source[0]["pixel_values"]) / 2
    gradients = torch.autograd.grad(expected, parameters, allow_unused=True)
    aligned = torch.autograd.grad(sum(run() for run in closures.alignment) / 2, parameters, allow_unused=True)
    optimizer = torch.optim.SGD(parameters, lr=0.1)
    for coordinator in (Joint(optimizer), MetaAlign(optimizer, inner_lr=0.0)):
        if isinstance(coordinator, MetaAlign):
            report = coordinator.backward(closures.task, closures.alignment)
        else:
            report = coordinator.backward(both=closures.both)
        torch.testing.assert_close(report.task_loss, expected.detach(), rtol=1e-4, atol=1e-5)
        for p, *parts in zip(parameters, gradients, aligned, strict=True):
            total = sum((g for g in parts if g is not None), torch.zeros_like(p))
            found = torch.zeros_like(p) if p.grad is None else p.grad
            torch.testing.assert_close(found, total, rtol=1e-3, atol=1e-4)


def test_tied_tensors_are_averaged_once():
    model = tiny_detector("d_fine")
    average = WeightAverage(model, 0.9)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    trained = {name: parameter.requires_grad for name, parameter in model.named_parameters(remove_duplicate=False)}
    assert set(trained.values()) == {True, False}
    with torch.no_grad():
        for tensor in [*model.parameters(), *(b for b in model.buffers() if b.is_floating_point())]:
            tensor.add_(1.0)
    average.update(model)
    for name, value in average.module.state_dict().items():
        if value.is_floating_point():
            frozen = name in trained and not trained[name]
            torch.testing.assert_close(value, before[name] + (0.0 if frozen else 0.1), msg=name)


def test_a_detector_without_alignment_trains_on_its_own_labels(tmp_path):
    options = {
        "model.alignment": None,
        "training.target_losses": [{"name": "mean_teacher", "threshold": 0.0}],
        "training.output_dir": str(tmp_path / "run"),
        "training.max_steps": 2,
        "training.select_by": None,
        "training.evaluate_every": 0,
    }
    adapt(load_config(TINY, options))
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert sum(line.get("pseudo_images", 0) for line in lines) > 0


def of_source(*images: list[int]) -> dict:
    return {"labels": [{"class_labels": torch.tensor(image, dtype=torch.long)} for image in images]}


def test_thresholds_by_counts_find_as_many_objects_as_the_source_has():
    """The source has a cat and half a dog an image: in two images of the target two cats and a dog count."""
    loss = MeanTeacher(TargetContext(LABELS, RTDetrImageProcessor(), torch.sigmoid), threshold="counts")
    loss.counts.count([of_source([0, 1], [0])])
    (batch,), figures = loss.label(FOUND, [{"pixel_values": torch.rand(2, 3, 16, 16)}])
    cats, dogs = [0.6, 0.2], [0.5]
    assert loss.counts.values().tolist() == pytest.approx([min(cats), min(dogs)])
    first, second = batch["labels"]
    assert first["class_labels"].tolist() == [0, 1] and second["class_labels"].tolist() == [0]
    torch.testing.assert_close(first["boxes"], torch.tensor([NEARLY_LEFT, RIGHT]))
    assert figures == {"pseudo_boxes": 1.5, "pseudo_images": 1.0}


def test_a_class_that_the_source_lacks_is_never_taught():
    loss = MeanTeacher(TargetContext(LABELS, RTDetrImageProcessor(), torch.sigmoid), threshold="counts")
    loss.counts.count([of_source([0, 0, 0], [])])
    (batch,), _ = loss.label(FOUND, [{"pixel_values": torch.rand(2, 3, 16, 16)}])
    assert {int(label) for entry in batch["labels"] if entry for label in entry["class_labels"]} == {0}


def test_thresholds_by_counts_look_at_recent_images_and_go_on_where_they_were():
    counts = CountThresholds(2)
    counts.count([of_source([0], [0, 1])])
    sure, unsure = (torch.tensor([0.9]), torch.tensor([0])), (torch.tensor([0.3, 0.004]), torch.tensor([0, 0]))
    counts.see([sure] * 200)
    counts.see([unsure] * 100)
    assert len(counts.seen) == 256 and counts.values().tolist() == pytest.approx([0.3, 2.0])
    other = CountThresholds(2)
    other.load_state_dict(json.loads(json.dumps(counts.state_dict())))
    for one in (counts, other):
        one.see([sure] * 256)
    assert other.values().tolist() == counts.values().tolist() == pytest.approx([0.9, 2.0])
    assert counts.state_dict() == other.state_dict()


def test_the_teacher_normalises_by_its_batch_where_the_student_does():
    torch.manual_seed(0)
    student = nn.Sequential(nn.BatchNorm2d(3), nn.BatchNorm2d(3)).train()
    student[1].eval()
    teacher = deepcopy(student).eval()
    images, before = torch.rand(4, 3, 8, 8) + 5, {n: v.clone() for n, v in teacher.state_dict().items()}
    with normalised_by_batch(teacher, student), torch.no_grad():
        inside = teacher(images)
    assert inside.mean().abs() < 1e-4 and teacher(images).mean() > 4
    assert not any(layer.training for layer in teacher.modules())
    assert all(torch.equal(value, before[name]) for name, value in teacher.state_dict().items())
