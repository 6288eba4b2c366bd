"""Domains of a run are named by what tells them apart."""

import json

import pytest
from PIL import Image

from metaalign_hf import DomainConfig, load_domain_pair
from metaalign_hf.data import load_detection_pair
from metaalign_hf.data.names import named_apart


@pytest.mark.parametrize(
    ("domains", "names"),
    [
        (["coco:day/ann.json", "coco:night/ann.json"], ["day", "night"]),
        (["coco:/x/day/coco/ann.json", "coco:/x/night/coco/ann.json"], ["day", "night"]),
        (["coco:/a/day/1/ann.json", "coco:/b/night/2/ann.json"], ["1", "2"]),
        (["imagefolder:art", "imagefolder:../clipart"], ["art", "clipart"]),
        (
            ["imagefolder:a/x/photos", "imagefolder:b/x/photos", "imagefolder:b/y/photos"],
            ["a/x/photos", "b/x/photos", "b/y/photos"],
        ),
        (
            ["imagefolder:/one/photos", "imagefolder:/two/photos", "imagefolder:one"],
            ["one/photos", "two/photos", "one"],
        ),
        (["dataset:one/digits", "dataset:two/digits"], ["one/digits", "two/digits"]),
        (["mnist", "uci_digits"], ["mnist", "uci_digits"]),
    ],
)
def test_what_differs_names_a_domain(domains, names):
    found = named_apart([DomainConfig.parse(text) for text in domains])
    assert [domain.describe() for domain in found] == names


def test_settings_name_domains_of_one_place_and_given_names_stay():
    splits = [DomainConfig(kind="voc", path="VOC", train_split=split) for split in ("sunny", "foggy")]
    assert [domain.describe() for domain in named_apart(splits)] == ["VOC (sunny)", "VOC (foggy)"]
    given = [
        DomainConfig(kind="coco", name="ann.json", annotations="a/ann.json"),
        DomainConfig.parse("coco:b/ann.json"),
    ]
    assert [domain.describe() for domain in named_apart(given)] == ["ann.json", "b"]


def test_a_pair_of_equal_file_names_is_told_apart(tmp_path):
    for place in ("day", "night"):
        images = []
        (tmp_path / place).mkdir()
        for number in range(10):
            Image.new("RGB", (8, 8)).save(tmp_path / place / f"{number}.png")
            images.append({"id": number, "file_name": f"{number}.png", "width": 8, "height": 8})
        boxes = [{"id": n, "image_id": n, "category_id": 1, "bbox": [1, 1, 4, 4]} for n in range(10)]
        document = {"images": images, "annotations": boxes, "categories": [{"id": 1, "name": "car"}]}
        (tmp_path / place / "ann.json").write_text(json.dumps(document))
        (tmp_path / place / "ann.txt").write_text("".join(f"{n}.png {'ab'[n % 2]}\n" for n in range(10)))
    pair = load_detection_pair(f"coco:{tmp_path}/day/ann.json", f"coco:{tmp_path}/night/ann.json")
    assert (pair.source_name, pair.target_name) == ("day", "night")
    labelled = load_domain_pair(f"list:{tmp_path}/day/ann.txt", f"list:{tmp_path}/night/ann.txt")
    assert (labelled.source_name, labelled.target_name) == ("day", "night")
