"""Sliced inference: windows cover an image, boxes come back in its pixels, and no object is said twice or in pieces."""

import itertools

import pytest
import torch
from torch import nn
from transformers import RTDetrImageProcessor

from metaalign_hf.data import DetectionSet, ImageSet, Objects
from metaalign_hf.data.images import TensorLoader
from metaalign_hf.evaluation import Detections, average_precision
from metaalign_hf.evaluation.tiles import Window, merged, predict_in_tiles, windows
from metaalign_hf.models.detectors import detector_adapter


@pytest.mark.parametrize(("height", "width"), [(64, 64), (30, 40), (65, 64), (200, 64), (150, 333)])
def test_windows_cover_the_image_and_overlap_by_a_quarter(height, width):
    whole, *tiles = windows(height, width, 64)
    assert whole == Window(0, 0, height, width)
    assert (not tiles) == (max(height, width) <= 64)
    seen = torch.zeros(height, width)
    for top, left, tall, wide in tiles:
        assert (tall, wide) == (min(64, height), min(64, width))
        seen[top : top + tall, left : left + wide] += 1
        assert 0 <= top <= height - tall and 0 <= left <= width - wide
    assert not tiles or seen.min() >= 1
    for starts, length in ((sorted({t.top for t in tiles}), height), (sorted({t.left for t in tiles}), width)):
        assert all(b - a <= 48 for a, b in itertools.pairwise(starts)), length


def found(*entries: tuple[list[float], float, int]) -> Detections:
    boxes, scores, labels = zip(*entries, strict=True)
    return Detections(torch.tensor(boxes), torch.tensor(scores), torch.tensor(labels))


def test_cut_boxes_are_left_out_and_others_said_once():
    parts = [
        (Window(0, 0, 64, 100), found(([10.0, 10, 90, 50], 0.6, 1))),  # longer than a tile
        (Window(0, 0, 64, 64), found(([10.0, 10, 64, 50], 0.9, 1), ([40.0, 20, 50, 30], 0.7, 0))),  # a piece of it
        (Window(0, 36, 64, 64), found(([4.0, 20, 14, 30], 0.8, 0), ([4.0, 20, 14, 30], 0.5, 1))),  # seen twice
        (Window(0, 36, 64, 64), found(([60.0, 40, 64, 64], 0.3, 0))),  # at the image's own edge: whole
    ]
    whole = merged(parts, 64, 100)
    assert whole.scores.tolist() == pytest.approx([0.8, 0.6, 0.5, 0.3])
    assert whole.boxes.tolist() == [[40, 20, 50, 30], [10, 10, 90, 50], [40, 20, 50, 30], [96, 40, 100, 64]]
    assert whole.labels.tolist() == [0, 1, 1, 0]
    assert merged(parts, 64, 100, most=2).scores.tolist() == pytest.approx([0.8, 0.6])


def test_a_detector_with_one_class_a_query_says_one_class_of_an_object_that_two_parts_see():
    parts = [
        (Window(0, 0, 64, 100), found(([39.0, 20, 51, 30], 0.6, 1), ([38.0, 20, 50, 30], 0.5, 2))),  # a pair, of two
        (Window(0, 0, 64, 64), found(([40.0, 20, 50, 30], 0.9, 0))),
        (Window(0, 36, 64, 64), found(([4.0, 20, 14, 30], 0.8, 1), ([30.0, 40, 40, 50], 0.7, 1))),
    ]
    assert merged(parts, 64, 100).labels.tolist() == [0, 1, 1, 2]
    one = merged(parts, 64, 100, one_class=True)
    assert one.labels.tolist() == [0, 1] and one.scores.tolist() == pytest.approx([0.9, 0.7])
    assert merged(parts, 64, 100, most=1, one_class=True).labels.tolist() == [0]
    assert merged(parts[:1], 64, 100, one_class=True).labels.tolist() == [1, 2]  # of one part both stay


class SaysAnotherClassInTiles(nn.Module):
    """Finds the one white square, as class 0 where it is small and, surer, as class 1 where it is large."""

    def __init__(self, one_class: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        self.one_class = one_class

    def forward(self, pixel_values: torch.Tensor) -> object:
        logits = torch.full((len(pixel_values), 1, 2 + self.one_class), -9.0)
        boxes = torch.full((len(pixel_values), 1, 4), 0.5)
        for row, image in enumerate(pixel_values):
            places = (image[0] > 0.99).nonzero()
            if len(places):
                (top, left), (bottom, right) = places.min(0).values.tolist(), (places.max(0).values + 1).tolist()
                boxes[row, 0] = torch.tensor([left + right, top + bottom, 2 * (right - left), 2 * (bottom - top)]) / 128
                large = len(places) > 200
                logits[row, 0, int(large)] = 12.0 if large else 3.0
        return type("Output", (), {"logits": logits, "pred_boxes": boxes})


@pytest.mark.parametrize(("family", "classes"), [("detr", [1]), ("rt_detr", [0, 1])])
def test_sliced_inference_follows_how_a_family_names_classes(family, classes):
    image = torch.zeros(1, 3, 96, 96, dtype=torch.uint8)
    image[:, :, 40:56, 40:56] = 255
    view = DetectionSet(ImageSet("square", 1, TensorLoader(image)))
    processor = RTDetrImageProcessor(size={"height": 64, "width": 64})
    shares = detector_adapter(family).probabilities
    model = SaysAnotherClassInTiles(shares.one_class)
    ((_, seen, _),) = predict_in_tiles(model, shares, view, processor, False, 8, 64, threshold=0.5)
    assert sorted(seen.labels.tolist()) == classes


class FindsWhite(nn.Module):
    """Finds the one white square of an image, if it is large enough in what it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))

    def forward(self, pixel_values: torch.Tensor) -> object:
        logits, boxes = torch.full((len(pixel_values), 1, 2), -9.0), torch.full((len(pixel_values), 1, 4), 0.5)
        for row, image in enumerate(pixel_values):
            places = (image[0] > 0.99).nonzero()
            if len(places) >= 50:
                (top, left), (bottom, right) = places.min(0).values.tolist(), (places.max(0).values + 1).tolist()
                boxes[row, 0] = torch.tensor([left + right, top + bottom, 2 * (right - left), 2 * (bottom - top)]) / 128
                logits[row, 0, 1] = 9.0
        return type("Output", (), {"logits": logits, "pred_boxes": boxes})


def test_small_objects_of_large_images_are_found_in_tiles_alone():
    squares = [[30, 40, 42, 52], [150, 20, 162, 32], [200, 180, 212, 192], [90, 100, 102, 112]]
    images = torch.zeros(len(squares), 3, 256, 256, dtype=torch.uint8)
    for image, (left, top, right, bottom) in zip(images, squares, strict=True):
        image[:, top:bottom, left:right] = 255
    view = DetectionSet(
        ImageSet("squares", len(squares), TensorLoader(images)),
        tuple(Objects.of([[float(v) for v in box]], [1]) for box in squares),
    )
    processor = RTDetrImageProcessor(size={"height": 64, "width": 64})
    shares = detector_adapter("rt_detr").probabilities
    precision = {}
    for tile in (64, 256):
        seen = list(predict_in_tiles(FindsWhite(), shares, view, processor, False, 3, tile, threshold=0.5))
        assert [index for index, _, _ in seen] == list(range(len(squares)))
        precision[tile] = average_precision([d for _, d, _ in seen], [o for _, _, o in seen], 2).map50
    assert precision[64] == pytest.approx(1.0) and precision[256] == 0.0
