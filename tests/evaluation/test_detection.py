"""Average precision against hand-made cases and an independent library; what is found lies on the original image."""

import math

import pytest
import torch
from torch import nn
from transformers import DetrImageProcessor, RTDetrImageProcessor

from metaalign_hf.data import DetectionSet, ImageSet, Objects, detection_batches
from metaalign_hf.data.images import TensorLoader
from metaalign_hf.evaluation import Detections, average_precision, evaluate_detector, predict_objects, voc_precision
from metaalign_hf.models.detectors import Probabilities

BOX = [10.0, 10.0, 30.0, 30.0]
FAR = [50.0, 50.0, 70.0, 70.0]


def found(*entries: tuple[list[float], float, int]) -> Detections:
    boxes, scores, labels = zip(*entries, strict=True) if entries else ([], [], [])
    return Detections(torch.tensor(boxes).reshape(-1, 4), torch.tensor(scores), torch.tensor(labels, dtype=torch.long))


def test_perfect_boxes_have_precision_one():
    result = average_precision([found((BOX, 0.9, 0), (FAR, 0.8, 1))], [Objects.of([BOX, FAR], [0, 1])], 3)
    assert result.map == pytest.approx(1.0) and result.map50 == pytest.approx(1.0)
    assert result.voc_area == pytest.approx(1.0) and result.voc_11_point == pytest.approx(1.0)
    assert result.per_class[:2] == pytest.approx([1.0, 1.0]) and math.isnan(result.per_class[2])
    assert result.n == 1 and result.objects == 2


def test_the_voc_measures_by_hand():
    """Ranked: right, wrong, right; three objects. Precision 1, 1/2, 2/3 at recall 1/3, 1/3, 2/3."""
    images = [
        found((BOX, 0.9, 0), (FAR, 0.8, 0)),
        found((BOX, 0.7, 0)),
        found(),
    ]
    objects = [Objects.of([BOX], [0]), Objects.of([BOX], [0]), Objects.of([BOX], [0])]
    area, eleven = voc_precision(images, objects, 1)
    assert area[0] == pytest.approx(1 / 3 * 1 + 1 / 3 * 2 / 3)
    assert eleven[0] == pytest.approx((4 * 1 + 3 * 2 / 3) / 11)  # recalls 0, .1, .2, .3 | .4, .5, .6


def test_a_second_box_on_one_object_is_wrong_and_a_difficult_object_does_not_count():
    twice = voc_precision([found((BOX, 0.9, 0), (BOX, 0.8, 0))], [Objects.of([BOX, FAR], [0, 0])], 1)[0][0]
    assert twice == pytest.approx(0.5)
    objects = [Objects.of([BOX, FAR], [0, 0], [False, True])]
    assert voc_precision([found((FAR, 0.9, 0), (BOX, 0.8, 0))], objects, 1)[0][0] == pytest.approx(1.0)
    result = average_precision([found((FAR, 0.9, 0), (BOX, 0.8, 0))], objects, 1)
    assert result.map50 == pytest.approx(1.0) and result.objects == 1


def test_one_class_and_empty_images_and_nothing_found():
    result = average_precision([found(), found((BOX, 0.5, 0))], [Objects.of([], []), Objects.of([BOX], [0])], 1)
    assert result.map50 == pytest.approx(1.0) and result.per_class == pytest.approx([1.0])
    nothing = average_precision([found()], [Objects.of([BOX], [0])], 1)
    assert nothing.map50 == 0.0 and nothing.voc_area == 0.0 and nothing.voc_11_point == 0.0
    assert math.isnan(average_precision([found()], [Objects.of([], [])], 1).map50)


def test_map50_agrees_with_the_area_on_random_boxes():
    """COCO's 101 points approximate the area; both come from different code."""
    generator = torch.Generator().manual_seed(0)
    images, objects = [], []
    for _ in range(40):
        corners = torch.rand(4, 2, generator=generator) * 60
        boxes = torch.cat([corners, corners + 20], 1)
        labels = torch.randint(0, 3, (4,), generator=generator)
        noise = torch.randn(4, 4, generator=generator) * 3
        scores = torch.rand(4, generator=generator)
        objects.append(Objects(boxes, labels, torch.zeros(4, dtype=torch.bool)))
        images.append(Detections(boxes + noise, scores, labels))
    result = average_precision(images, objects, 3)
    assert 0.2 < result.map50 < 0.95
    assert result.map50 == pytest.approx(result.voc_area, abs=0.02)


class Oracle(nn.Module):
    """Says for every image the boxes it is given, in the numbers that a detector would use."""

    def __init__(self, answers, one_class):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        self.answers, self.one_class, self.next = answers, one_class, 0

    def forward(self, pixel_values, pixel_mask=None):
        boxes, logits = [], []
        for _ in pixel_values:
            box, label = self.answers(self.next, pixel_values, pixel_mask)
            self.next += 1
            boxes.append(torch.stack([box, box * 0.5]))
            row = torch.full((2, 3 if self.one_class else 2), -8.0)
            row[0, label] = 8.0
            if self.one_class:
                row[1, 2] = 8.0
            logits.append(row)
        return type("Output", (), {"logits": torch.stack(logits), "pred_boxes": torch.stack(boxes)})()


def view() -> DetectionSet:
    images = torch.zeros(4, 3, 60, 80, dtype=torch.uint8)
    objects = tuple(Objects.of([[10.0 + i, 12.0, 40.0, 42.0]], [i % 2]) for i in range(4))
    return DetectionSet(ImageSet("toy", 4, TensorLoader(images)), objects)


@pytest.mark.parametrize("one_class", [True, False])
def test_boxes_come_back_to_the_original_image(one_class):
    data = view()

    def answer(index, pixel_values, pixel_mask):
        left, top, right, bottom = data.objects[index].boxes[0].tolist()
        box = torch.tensor([(left + right) / 160, (top + bottom) / 120, (right - left) / 80, (bottom - top) / 60])
        return box, int(data.objects[index].labels[0])

    processor = RTDetrImageProcessor(size={"height": 32, "width": 32})
    if one_class:
        processor = DetrImageProcessor(size={"shortest_edge": 32, "longest_edge": 64})
    batches = list(detection_batches(data, processor, True, 3))
    probabilities = Probabilities("softmax" if one_class else "sigmoid")
    model = Oracle(answer, one_class).train()
    result = evaluate_detector(model, probabilities, batches, 2)
    assert result.map == pytest.approx(1.0) and result.n == 4 and model.training
    sure = list(predict_objects(Oracle(answer, one_class), probabilities, batches, threshold=0.5))
    assert [index for index, _, _ in sure] == [0, 1, 2, 3]
    for index, detections, objects in sure:
        assert len(detections.scores) == 1
        torch.testing.assert_close(detections.boxes, objects.boxes)
        assert torch.equal(objects.boxes, data.objects[index].boxes)
