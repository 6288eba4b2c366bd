"""Detection data: every format, label agreement, bad annotations, law 9, augmentation and the padding trap."""

import json
from dataclasses import replace
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoImageProcessor, DetrImageProcessor, RTDetrImageProcessor, YolosImageProcessor

from metaalign_hf import DomainConfig, UserError, load_config, load_detection_pair
from metaalign_hf.configuration import SCENES
from metaalign_hf.data import (
    DetectionSet,
    ImageSet,
    Objects,
    augment_objects,
    detection_batch,
    detection_batches,
    detection_stream,
    digit_scenes,
    load_detection_view,
    load_digit_scenes,
    load_domain,
)
from metaalign_hf.data.detection_readers import read_detection_domain
from metaalign_hf.data.digit_scenes import draw_scene
from metaalign_hf.data.images import KeptLoader, TensorLoader
from metaalign_hf.data.object_augmentation import DETECTION_AUGMENTATIONS, weak_augmentation
from metaalign_hf.tasks.building import build_task
from tests.helpers.runs import TINY_DETECTION


def picture(path: Path, width: int = 40, height: int = 30, shade: int = 90) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (width, height), (shade, 0, 255 - shade)).save(path)
    return path


def coco(folder: Path, annotations: list[dict], images: int = 5, names: tuple[str, ...] = ("cat", "dog")) -> Path:
    """A COCO file over images of 40 x 30 pixels; category ids start at 7."""
    for number in range(images):
        picture(folder / f"{number}.png", shade=number)
    document = {
        "images": [{"id": 10 + i, "file_name": f"{i}.png", "width": 40, "height": 30} for i in range(images)],
        "annotations": [{"id": n, "iscrowd": 0, **entry} for n, entry in enumerate(annotations)],
        "categories": [{"id": 7 + n, "name": name} for n, name in enumerate(names)],
    }
    path = folder / "instances.json"
    path.write_text(json.dumps(document))
    return path


def good() -> list[dict]:
    return [
        {"image_id": 10, "category_id": 8, "bbox": [1, 2, 10, 12]},
        {"image_id": 10, "category_id": 7, "bbox": [20, 5, 15, 20]},
        {"image_id": 12, "category_id": 7, "bbox": [0, 0, 40, 30], "iscrowd": 1},
        {"image_id": 13, "category_id": 7, "bbox": [5, 5, 5, 5]},
        {"image_id": 14, "category_id": 7, "bbox": [5, 5, 5, 5]},
    ]


def scored() -> list[dict]:
    """`good()`, and an object that counts on the image that is held out."""
    return [*good(), {"image_id": 12, "category_id": 7, "bbox": [3, 4, 6, 6]}]


def voc(root: Path, objects: dict[str, list[tuple]], split: str = "trainval", size: str = "") -> Path:
    lines = []
    for stem, entries in objects.items():
        picture(root / "JPEGImages" / f"{stem}.jpg")
        xml = "".join(
            f"<object><name>{name}</name><difficult>{difficult}</difficult><bndbox><xmin>{a}</xmin><ymin>{b}</ymin>"
            f"<xmax>{c}</xmax><ymax>{d}</ymax></bndbox></object>"
            for name, a, b, c, d, difficult in entries
        )
        (root / "Annotations").mkdir(parents=True, exist_ok=True)
        (root / "Annotations" / f"{stem}.xml").write_text(f"<annotation>{size}{xml}</annotation>")
        lines.append(stem)
    (root / "ImageSets" / "Main").mkdir(parents=True, exist_ok=True)
    (root / "ImageSets" / "Main" / f"{split}.txt").write_text("\n".join(lines) + "\n")
    return root


def one_line(caught) -> str:
    message = str(caught.value)
    assert "\n" not in message and len(message) < 500
    return message


def test_coco_is_read_with_ids_that_are_no_indices(tmp_path):
    raw = read_detection_domain(DomainConfig.parse(f"coco:{coco(tmp_path, good())}"))
    assert raw.labels == ["cat", "dog"] and len(raw.train) == 5 and raw.notes == []
    first = raw.train.objects[0]
    assert first.labels.tolist() == [1, 0]
    assert first.boxes.tolist() == [[1, 2, 11, 14], [20, 5, 35, 25]]
    assert len(raw.train.objects[1]) == 0, "an image without objects stays"
    assert raw.train.objects[2].ignored.tolist() == [True]
    assert raw.train[0].shape == (3, 30, 40)


def test_voc_counts_from_one_and_joins_lists(tmp_path):
    voc(tmp_path / "VOC2007", {"a": [("dog", 1, 1, 40, 30, 0), ("cat", 11, 6, 20, 15, 1)], "b": []})
    voc(tmp_path / "VOC2012", {"c": [("bird", 3, 3, 8, 8, 0)]})
    voc(tmp_path / "VOC2007", {"t": [("dog", 1, 1, 9, 9, 0)]}, "test")
    config = DomainConfig(
        kind="voc",
        path=str(tmp_path),
        train_split="VOC2007/trainval,VOC2012/trainval",
        test_split="VOC2007/test",
    )
    raw = read_detection_domain(config)
    assert raw.labels == ["bird", "cat", "dog"] and len(raw.train) == 3 and len(raw.test) == 1
    first = raw.train.objects[0]
    assert first.boxes.tolist() == [[0, 0, 40, 30], [10, 5, 20, 15]], "VOC includes its last pixel"
    assert first.labels.tolist() == [2, 1] and first.ignored.tolist() == [False, True]
    chosen = read_detection_domain(DomainConfig(**{**vars(config), "classes": ["dog", "bird"]}))
    assert chosen.labels == ["dog", "bird"] and chosen.train.objects[0].labels.tolist() == [0]


@pytest.mark.parametrize("layout", ["dict of lists", "list of dicts"])
@pytest.mark.parametrize("named", [True, False])
def test_datasets_of_both_layouts(layout, named, tmp_path):
    category = datasets.ClassLabel(names=["cat", "dog"]) if named else datasets.Value("string")
    values = [[1, 0], [], [0]] if named else [["dog", "cat"], [], ["cat"]]
    boxes = [[[1, 2, 10, 12], [20, 5, 15, 20]], [], [[5, 5, 5, 5]]]
    if layout == "dict of lists":
        rows = [{"bbox": b, "category": c} for b, c in zip(boxes, values, strict=True)]
        inner = {"bbox": datasets.List(datasets.List(datasets.Value("float32"))), "category": datasets.List(category)}
    else:
        pairs = [zip(*pair, strict=True) for pair in zip(boxes, values, strict=True)]
        rows = [[{"bbox": b, "category": c} for b, c in pair] for pair in pairs]
        inner = datasets.List({"bbox": datasets.List(datasets.Value("float32")), "category": category})
    features = datasets.Features({"image": datasets.Image(), "objects": inner})
    images = [Image.new("RGB", (40, 30), (i, 0, 0)) for i in range(3)]
    data = datasets.Dataset.from_dict({"image": images, "objects": rows}, features=features)
    datasets.DatasetDict({"train": data, "test": data}).save_to_disk(str(tmp_path))
    raw = read_detection_domain(DomainConfig(kind="dataset", path=str(tmp_path), test_split="test"))
    assert raw.labels == ["cat", "dog"] and len(raw.train) == len(raw.test) == 3
    assert raw.train.objects[0].labels.tolist() == [1, 0]
    assert raw.train.objects[0].boxes.tolist() == [[1, 2, 11, 14], [20, 5, 35, 25]]
    assert len(raw.train.objects[1]) == 0
    corners = DomainConfig(kind="dataset", path=str(tmp_path), box_format="xyxy")
    assert read_detection_domain(corners).train.objects[0].boxes[0].tolist() == [1, 2, 10, 12]


BAD = {
    "zero area": ({"image_id": 11, "category_id": 7, "bbox": [5, 5, 0, 9]}, "box without area"),
    "negative": ({"image_id": 11, "category_id": 7, "bbox": [5, 5, 4, -1]}, "box without area"),
    "outside": ({"image_id": 11, "category_id": 7, "bbox": [50, 5, 4, 4]}, "box outside the image"),
    "not finite": ({"image_id": 11, "category_id": 7, "bbox": [float("nan"), 5, 4, 4]}, "not finite"),
    "unknown category": ({"image_id": 11, "category_id": 99, "bbox": [5, 5, 4, 4]}, "unknown category"),
    "unknown image": ({"image_id": 99, "category_id": 7, "bbox": [5, 5, 4, 4]}, "annotation of an unknown image"),
    "repeated id": ({"id": 0, "image_id": 11, "category_id": 7, "bbox": [5, 5, 4, 4]}, "annotation with the same id"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_annotations_are_dropped_and_counted_or_refused(case, tmp_path):
    entry, reason = BAD[case]
    path = coco(tmp_path, [*good(), entry])
    raw = read_detection_domain(DomainConfig.parse(f"coco:{path}"))
    assert len(raw.train.objects[1]) == 0
    assert len(raw.notes) == 1 and reason in raw.notes[0] and ": 1 annotations" in raw.notes[0]
    with pytest.raises(UserError, match=reason) as caught:
        read_detection_domain(DomainConfig(kind="coco", annotations=str(path), bad_boxes="error"))
    assert "annotations[5]" in one_line(caught)


def test_boxes_over_the_edge_are_clipped_and_counted(tmp_path):
    entries = [{"image_id": 10, "category_id": 7, "bbox": [-5, 20, 20, 50]}, *good()[3:]]
    entries[1] = {"image_id": 13, "category_id": 7, "bbox": [30, 20, 10.5, 10.2]}
    raw = read_detection_domain(DomainConfig(kind="coco", annotations=str(coco(tmp_path, entries)), bad_boxes="error"))
    assert raw.train.objects[0].boxes.tolist() == [[0, 20, 15, 30]]
    assert raw.train.objects[3].boxes.tolist() == [[30, 20, 40, 30]]
    assert len(raw.notes) == 1 and "1 annotations" in raw.notes[0] and "clipped" in raw.notes[0]


def _broken(change):
    def make(folder: Path) -> DomainConfig:
        path = coco(folder, good())
        document = json.loads(path.read_text())
        change(document)
        path.write_text(json.dumps(document))
        return DomainConfig.parse(f"coco:{path}")

    return make


REFUSED = {
    "no json": (lambda f: (f / "a.json").write_text("{") and DomainConfig.parse(f"coco:{f / 'a.json'}"), "valid json"),
    "no file": (lambda f: DomainConfig.parse(f"coco:{f / 'no.json'}"), "cannot be read"),
    "no annotations": (lambda f: DomainConfig(kind="coco", path=str(f)), "needs annotations"),
    "no list": (_broken(lambda d: d.pop("categories")), "no list 'categories'"),
    "image ids": (_broken(lambda d: d["images"][1].update(id=10)), r"images\[1\]: id 10 is that of images\[0\]"),
    "no image": (_broken(lambda d: d["images"][1].update(file_name="x.png")), "x.png does not exist"),
    "names": (_broken(lambda d: d["categories"][1].update(name="cat")), "different names"),
    "no bbox": (_broken(lambda d: d["annotations"][1].pop("bbox")), r"annotations\[1\]: has no 'bbox'"),
    "short bbox": (_broken(lambda d: d["annotations"][1].update(bbox=[1, 2])), "four numbers"),
    "size": (_broken(lambda d: d["images"][1].update(width=0)), "whole numbers above 0"),
    "kind": (lambda f: DomainConfig(kind="list", path=str(f)), "kind list has no boxes"),
    "voc folder": (lambda f: DomainConfig.parse(f"voc:{f / 'none'}"), "does not exist"),
    "voc list": (lambda f: DomainConfig.parse(f"voc:{f}"), "train.txt cannot be read"),
    "voc classes": (
        lambda f: DomainConfig(kind="voc", path=str(voc(f, {"a": []}, "train"))),
        "no annotation in .* has an object",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_malformed_domains_are_told_in_one_line(case, tmp_path):
    make, message = REFUSED[case]
    with pytest.raises(UserError, match=message) as caught:
        read_detection_domain(make(tmp_path))
    one_line(caught)


def test_hostile_or_broken_xml_is_refused(tmp_path):
    root = voc(tmp_path, {"a": [("dog", 1, 1, 9, 9, 0)]}, "train")
    bomb = '<!DOCTYPE a [<!ENTITY x "y">]><annotation>&x;</annotation>'
    for text in (bomb, "<annotation>", "not xml"):
        (root / "Annotations" / "a.xml").write_text(text)
        with pytest.raises(UserError, match=r"a\.xml is not valid VOC xml"):
            read_detection_domain(DomainConfig.parse(f"voc:{root}"))


def test_an_image_of_another_size_than_annotated_is_refused(tmp_path):
    path = coco(tmp_path, good())
    picture(tmp_path / "3.png", 30, 40)
    raw = read_detection_domain(DomainConfig.parse(f"coco:{path}"))
    with pytest.raises(UserError, match=r"3\.png is 30x40 pixels, but its annotations are for 40x30"):
        raw.train[3]


def test_classes_agree_by_name_and_target_objects_reach_no_training_view(tmp_path):
    source = coco(tmp_path / "s", scored(), names=("cat", "dog"))
    target = coco(tmp_path / "t", scored(), names=("dog", "cat"))
    pair = load_detection_pair(f"coco:{source}", f"coco:{target}")
    assert pair.labels == ["cat", "dog"]
    assert pair.target_train.objects is None and pair.target_test_images.objects is None
    assert len(pair.source_train) == 4 and len(pair.target_evaluation) == 1
    names = [pair.labels[i] for entry in pair.target_evaluation.objects for i in entry.labels.tolist()]
    assert set(names) <= {"dog", "cat"}

    other = coco(tmp_path / "o", scored(), names=("cat", "bus"))
    with pytest.raises(UserError, match=".* lacks 'dog'; .* lacks 'bus'; use data.label_policy: shared"):
        load_detection_pair(f"coco:{source}", f"coco:{other}")
    shared = load_detection_pair(f"coco:{source}", f"coco:{other}", "shared")
    assert shared.labels == ["cat"] and len(shared.source_train) == 4, "no image is dropped"
    assert len(shared.notes) == 2


def test_test_images_without_an_object_that_counts_are_refused(tmp_path):
    whole = [DomainConfig.parse(f"coco:{coco(tmp_path / name, good())}") for name in ("s", "t")]
    crowd = coco(tmp_path / "c", [entry for entry in good() if entry.get("iscrowd")])
    for number, who in enumerate(("source", "target")):
        pair = [replace(domain, test_annotations=domain.annotations) for domain in whole]
        pair[number] = replace(whole[number], test_annotations=str(crowd))
        with pytest.raises(UserError, match=f"^{who} .*: no test image has an object of the classes cat, dog"):
            load_detection_pair(*pair)


def test_several_sources_and_labelled_target_images_agree_by_name(tmp_path):
    places = [
        coco(tmp_path / name, scored(), names=names) for name, names in (("a", ("cat", "dog")), ("b", ("dog", "cat")))
    ]
    target, few = (coco(tmp_path / name, scored(), names=("dog", "cat")) for name in ("t", "few"))
    pair = load_detection_pair([f"coco:{place}" for place in places], f"coco:{target}", target_labeled=f"coco:{few}")
    assert pair.labels == ["cat", "dog"] and pair.source_train.parts == (4, 4) and len(pair.source_test) == 2
    assert len(pair.target_labeled) == 5 and pair.target_labeled.parts == () and pair.target_train.objects is None
    singles = [load_detection_view(f"coco:{place}", pair.labels, "train") for place in places]
    objects = [entry for view in singles for entry in view.objects]
    for index, entry in enumerate(pair.source_train.objects):
        assert torch.equal(entry.labels, objects[index].labels)
        assert torch.equal(pair.source_train[index], singles[index // 4][index % 4])
    turned = pair.in_order(["dog", "cat"])
    for view in ("source_train", "source_test", "target_evaluation", "target_labeled"):
        for old, new in zip(getattr(pair, view).objects, getattr(turned, view).objects, strict=True):
            assert torch.equal(old.labels, 1 - new.labels)


def test_an_unlabelled_folder_can_be_a_target_only(tmp_path):
    source = coco(tmp_path / "s", scored())
    for i in range(5):
        picture(tmp_path / "photos" / f"{i}.jpg")
    pair = load_detection_pair(f"coco:{source}", f"imagefolder:{tmp_path / 'photos'}")
    assert pair.target_evaluation is None and "cannot be measured" in pair.notes[0]
    with pytest.raises(UserError, match="has no boxes"):
        load_detection_pair(f"imagefolder:{tmp_path / 'photos'}", f"coco:{source}")
    with pytest.raises(UserError, match="has no boxes"):
        load_detection_view(f"imagefolder:{tmp_path / 'photos'}", ["cat"])


def test_a_view_is_numbered_as_the_model_is(tmp_path):
    path = coco(tmp_path, good())
    view = load_detection_view(f"coco:{path}", ["eel", "dog", "cat"], "all")
    assert len(view) == 5 and sorted(i for o in view.objects for i in o.labels.tolist()) == [1, 2, 2, 2, 2]
    with pytest.raises(UserError, match="none of the model's classes"):
        load_detection_view(f"coco:{path}", ["eel"])


def test_classification_refuses_detection_domains_and_the_other_way_round():
    with pytest.raises(UserError, match="is for detectors"):
        load_domain("scenes_plain")
    with pytest.raises(UserError, match="kind digits has no boxes"):
        load_detection_pair("mnist", "uci_digits")


@pytest.mark.parametrize("name", SCENES)
def test_digit_scenes_are_real_digits_from_a_seed(name):
    image, boxes, classes = draw_scene(name, "train", 3)
    again = draw_scene(name, "train", 3)
    assert torch.equal(image, again[0]) and boxes == again[1] and classes == again[2]
    assert not torch.equal(image, draw_scene(name, "train", 3, seed=1)[0])
    data = load_digit_scenes(name, "test", count=4)
    assert len(data) == 4 and data.features["objects"]["category"].feature.names == ["zero", "one", "two"]
    row = data[2]
    drawn = draw_scene(name, "test", 2)
    assert np.array_equal(np.asarray(row["image"]), drawn[0].permute(1, 2, 0).numpy())
    assert row["objects"]["bbox"] == drawn[1] and row["objects"]["category"] == drawn[2]
    for index in range(20):
        for x, y, width, height in draw_scene(name, "train", index)[1]:
            assert x >= 0 and y >= 0 and x + width <= 96 and y + height <= 96 and min(width, height) >= 4


def test_each_gap_is_what_its_name_says():
    drawn = {n: torch.stack([draw_scene(n, "train", i)[0] for i in range(30)]).float() / 255 for n in SCENES}
    contrast = {name: float(images.std((2, 3)).mean()) for name, images in drawn.items()}
    means = {name: images.mean((0, 2, 3)) for name, images in drawn.items()}
    rough = {name: float((images[..., 1:] - images[..., :-1]).abs().median()) for name, images in drawn.items()}
    assert contrast["scenes_fog"] < 0.65 * contrast["scenes_plain"] and means["scenes_fog"].min() > 0.6
    night = means["scenes_night"]
    assert contrast["scenes_night"] < 0.3 * contrast["scenes_plain"] and night[0] > 1.3 * night[1] > 1.5 * night[2]
    # A photo has texture; an even ground and a gradient have none.
    assert rough["scenes_noise"] > 0.1 > 0.01 > rough["scenes_ground"] > 0.005 > 0.001 > rough["scenes_plain"]
    assert rough["scenes_writers"] < 0.001
    slim = {name: _width_by_height(name) for name in SCENES}
    mnist = ("scenes_plain", "scenes_fog", "scenes_night", "scenes_noise", "scenes_ground")
    assert max(slim["scenes_writers"], slim["scenes_photo"]) < 0.7 < min(slim[name] for name in mnist)


def _width_by_height(name):
    """Mean over the digits of a domain."""
    boxes = [box for index in range(60) for box in draw_scene(name, "train", index)[1]]
    return float(np.mean([width / height for _, _, width, height in boxes]))


def test_scenes_that_are_drawn_otherwise_are_not_read_from_the_cache(monkeypatch):
    before = load_digit_scenes("scenes_fog", "test", count=1)[0]
    domain = digit_scenes._DOMAINS["scenes_fog"]
    monkeypatch.setitem(digit_scenes._DOMAINS, "scenes_fog", replace(domain, seen=None))
    after = load_digit_scenes("scenes_fog", "test", count=1)[0]
    assert before["objects"] == after["objects"]
    assert not np.array_equal(np.asarray(before["image"]), np.asarray(after["image"]))


def test_digit_scenes_refuse_unknown_names():
    with pytest.raises(UserError, match="scenes_plain, scenes_photo"):
        load_digit_scenes("scenes")
    with pytest.raises(UserError, match="did you mean scenes_photo"):
        DomainConfig.parse("scenes_phto")


def scene() -> tuple[torch.Tensor, Objects]:
    """A black image with two white objects, so that boxes can be checked against pixels."""
    image = torch.zeros(3, 60, 80, dtype=torch.uint8)
    boxes = [[10.0, 10.0, 30.0, 25.0], [40.0, 30.0, 70.0, 50.0]]
    for left, top, right, bottom in boxes:
        image[:, int(top) : int(bottom), int(left) : int(right)] = 255
    return image, Objects.of(boxes, [0, 1])


@pytest.mark.parametrize("augmentation", DETECTION_AUGMENTATIONS)
def test_boxes_stay_on_their_objects(augmentation):
    sizes, counts = set(), set()
    for seed in range(30):
        image, objects = augment_objects(*scene(), augmentation, seed)
        again = augment_objects(*scene(), augmentation, seed)
        assert torch.equal(image, again[0]) and torch.equal(objects.boxes, again[1].boxes)
        sizes.add(tuple(image.shape))
        counts.add(len(objects))
        for left, top, right, bottom in objects.boxes.round().int().tolist():
            inside = image[:, top:bottom, left:right].float()
            assert inside.shape[1] >= 2 and inside.shape[2] >= 2
            if "color" not in augmentation and "strong" not in augmentation:
                assert inside.min() == 255
    assert (len(sizes) > 3) == ("crop" in augmentation)
    assert max(counts) == 2 and min(counts) >= 1


def test_target_images_are_cropped_without_their_objects():
    image, _ = scene()
    for seed in range(10):
        blind, nothing = augment_objects(image, None, "crop_flip_color", seed)
        empty, none = augment_objects(image, Objects.of([], []), "crop_flip_color", seed)
        assert nothing is None and len(none) == 0 and torch.equal(blind, empty)


def test_strong_augmentation_blurs_adds_noise_and_cuts_out_but_leaves_objects_in_place():
    image, objects = scene()
    made = [augment_objects(image, objects, "strong", seed) for seed in range(40)]
    assert all(changed.shape == image.shape and changed.dtype == torch.uint8 for changed, _ in made)
    assert all(torch.equal(kept.boxes, objects.boxes) for _, kept in made)
    shades = [len(changed.unique()) for changed, _ in made]
    assert sum(count > 100 for count in shades) > 20, "colours alone leave one shade of ground and one of objects"
    assert any(bool((changed[:, 10:25, 10:30] < 128).any()) for changed, _ in made), "something is cut out of an object"


def test_a_teacher_sees_target_images_without_what_is_strong():
    overrides = {"data.augmentation": "strong"}
    strong = build_task(load_config(TINY_DETECTION, overrides))
    plain = build_task(load_config(TINY_DETECTION, {"data.augmentation": "none"}), strong.pair)
    (source, target), (as_it_is, same) = ([next(s) for s in task.streams(0, 0, 0, 1)] for task in (strong, plain))
    assert torch.equal(target["pixel_values"], same["pixel_values"])
    assert not torch.equal(source["pixel_values"], as_it_is["pixel_values"])
    assert (
        weak_augmentation("crop_flip_strong") == "crop_flip"
        and weak_augmentation("crop_flip_color") == "crop_flip_color"
    )


RELATIVE = {"detr": (DetrImageProcessor, True), "yolos": (YolosImageProcessor, False)}


@pytest.mark.parametrize("family", RELATIVE)
def test_boxes_mean_the_same_however_the_batch_is_padded(family):
    """The padding trap: the processor's own boxes depend on the other images of the batch."""
    kind, relative = RELATIVE[family]
    processor = kind(size={"shortest_edge": 48, "longest_edge": 96})
    image, objects = scene()
    tall = torch.zeros(3, 90, 60, dtype=torch.uint8)
    batch = detection_batch([image, tall], [objects, Objects.of([], [])], processor, relative)
    assert batch["pixel_mask"].shape == batch["pixel_values"].shape[:1] + batch["pixel_values"].shape[2:]
    assert not batch["pixel_mask"].bool().all()
    labels, frame = batch["labels"][0], batch["frames"][0]
    centre, size = labels["boxes"][:, :2] * frame.flip(0), labels["boxes"][:, 2:] * frame.flip(0)
    torch.testing.assert_close(torch.cat([centre - size / 2, centre + size / 2], 1), objects.boxes)
    height, width = batch["pixel_mask"][0].any(1).sum(), batch["pixel_mask"][0].any(0).sum()
    canvas = batch["pixel_values"].shape[-2:] if not relative else (int(height), int(width))
    for box in labels["boxes"]:
        x, y = int(box[0] * canvas[1]), int(box[1] * canvas[0])
        assert batch["pixel_values"][0, 0, y, x] > 1, "the centre of the box lies on the white object"
    alone = detection_batch([image], [objects], processor, relative)
    assert "pixel_mask" not in alone
    assert torch.equal(alone["labels"][0]["boxes"], labels["boxes"]) == relative
    assert len(batch["labels"][1]["class_labels"]) == 0


def test_ignored_objects_are_not_trained_on():
    image, _ = scene()
    objects = Objects.of([[0, 0, 40, 30], [10, 10, 20, 20]], [0, 1], [True, False])
    batch = detection_batch([image], [objects], RTDetrImageProcessor(size={"height": 48, "width": 48}), False)
    assert batch["labels"][0]["class_labels"].tolist() == [1]
    torch.testing.assert_close(batch["labels"][0]["boxes"], torch.tensor([[15 / 80, 15 / 60, 10 / 80, 10 / 60]]))


def toy(objects: bool = True) -> DetectionSet:
    images = torch.arange(10, dtype=torch.uint8).view(10, 1, 1, 1).expand(10, 3, 16, 16).contiguous()
    boxes = tuple(Objects.of([[2, 2, 10, 10]], [i % 2]) for i in range(10))
    return DetectionSet(ImageSet("toy", 10, TensorLoader(images)), boxes if objects else None)


def test_the_stream_is_a_function_of_seed_and_batch(tmp_path):
    processor = RTDetrImageProcessor(size={"height": 16, "width": 16})

    def take(count, **options):
        stream = detection_stream(toy(), processor, False, batch_size=4, seed=3, augmentation="crop_flip", **options)
        return [next(stream) for _ in range(count)]

    whole, late = take(5), take(2, start_batch=3)
    for a, b in zip(whole[3:], late, strict=True):
        assert torch.equal(a["pixel_values"], b["pixel_values"])
        assert all(torch.equal(x["boxes"], y["boxes"]) for x, y in zip(a["labels"], b["labels"], strict=True))
    worked = take(2, num_workers=1)
    assert all(torch.equal(a["pixel_values"], b["pixel_values"]) for a, b in zip(whole, worked, strict=False))
    blind = next(detection_stream(toy(objects=False), processor, False, batch_size=4, seed=3))
    assert "labels" not in blind
    processor.save_pretrained(tmp_path)
    assert AutoImageProcessor.from_pretrained(tmp_path).size == processor.size
    with pytest.raises(UserError, match="fewer than a batch of 11"):
        detection_stream(toy(), processor, False, batch_size=11, seed=0)
    with pytest.raises(UserError, match="not for detectors"):
        detection_stream(toy(), processor, False, batch_size=2, seed=0, augmentation="cutmix")


def test_every_image_is_evaluated_once():
    processor = RTDetrImageProcessor(size={"height": 16, "width": 16})
    shares = [list(detection_batches(toy(), processor, False, 3, rank=r, world_size=2)) for r in range(2)]
    indices = [i for share in shares for batch in share for i in batch["index"]]
    assert sorted(indices) == list(range(10))
    assert shares[0][0]["objects"][1].labels.tolist() == [0] and "labels" not in shares[0][0]


def test_a_drawn_scene_is_decoded_once():
    asked = []
    loader = KeptLoader(lambda index: asked.append(index) or torch.full((3, 2, 2), index))
    assert [int(loader(index).max()) for index in (1, 0, 1, 1)] == [1, 0, 1, 1] and asked == [1, 0]
    drawn = read_detection_domain(DomainConfig(kind="digit_scenes", name="scenes_plain")).train
    assert drawn[3] is drawn[3]
