"""A list or an annotation that names files elsewhere: refused in one line, or allowed by name."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from metaalign_hf import DomainConfig, UserError, load_domain
from metaalign_hf.data.detection_readers import read_detection_domain


@pytest.fixture
def house(tmp_path) -> Path:
    """A folder `mine` with three pictures, and `elsewhere` with one more."""
    for name in ("mine/images/0", "mine/images/1", "mine/images/2", "elsewhere/secret"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8)).save(tmp_path / f"{name}.png")
    return tmp_path


# How each way out is written in a file that lies in `mine`, and what the error says of it.
WAYS = {
    "parent": ("../elsewhere/secret.png", "elsewhere/secret.png is outside of the folder"),
    "absolute": ("{house}/elsewhere/secret.png", "elsewhere/secret.png is outside of the folder"),
    "link": (
        "images/link.png",
        "images/link.png leads to {house}/elsewhere/secret.png, which is outside of the folder",
    ),
    "linked folder": ("door/secret.png", "door/secret.png leads to {house}/elsewhere/secret.png, which is outside"),
}


@pytest.fixture(params=WAYS)
def way(request, house):
    written, said = (text.format(house=house) for text in WAYS[request.param])
    if request.param == "link":
        (house / "mine/images/link.png").symlink_to(house / "elsewhere/secret.png")
    if request.param == "linked folder":
        (house / "mine/door").symlink_to(house / "elsewhere")
    return written, said


def told(config: DomainConfig, read) -> str:
    with pytest.raises(UserError) as caught:
        read(config)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def names(folder: str, last: str) -> list[str]:
    return [f"{folder}0.png", f"{folder}1.png", f"{folder}2.png", last]


def test_a_list_stays_in_its_folder(house, way):
    written, said = way
    rows = [f"{name}\t{'ab'[i % 2]}\n" for i, name in enumerate(names("images/", written))]
    (house / "mine/list.txt").write_text("".join(rows))
    config = DomainConfig(kind="list", path=f"{house}/mine/list.txt", test_path=f"{house}/mine/list.txt")
    error = told(config, load_domain)
    assert error.startswith(f"{house}/mine/list.txt, line 4: ") and said in error
    assert error.endswith("set outside_root: allow if you trust this file")
    assert ("set root to a folder that holds all images" in error) == written.startswith("/")
    assert load_domain(replace(config, outside_root="allow")).train[3].shape == (3, 8, 8)


def test_absolute_paths_below_the_root_are_read(house):
    """Lists of absolute paths are common; root, which is not that of the list, says where they may lead."""
    rows = [f"{house}/{name} {'ab'[i % 2]}\n" for i, name in enumerate(names("mine/images/", "elsewhere/secret.png"))]
    (house / "mine/list.txt").write_text("".join(rows))
    config = DomainConfig(kind="list", path=f"{house}/mine/list.txt", test_path=f"{house}/mine/list.txt")
    assert "set root to a folder that holds all images" in told(config, load_domain)
    assert len(load_domain(replace(config, root=str(house))).train) == 4


def test_a_root_that_is_a_link_is_where_it_leads(house):
    (house / "short").symlink_to(house / "mine")
    (house / "mine/inner.png").symlink_to("images/0.png")
    (house / "list.txt").write_text("inner.png a\nimages/1.png b\nimages/2.png b\n")
    config = DomainConfig(kind="list", path=f"{house}/list.txt", root=f"{house}/short")
    assert len(load_domain(config).train) == 2


def test_coco_file_names_stay_in_the_folder(house, way):
    written, said = way
    images = [{"id": i, "file_name": name} for i, name in enumerate(names("images/", written))]
    boxes = [{"id": i, "image_id": i, "category_id": 1, "bbox": [1, 1, 4, 4]} for i in range(4)]
    document = {"images": images, "annotations": boxes, "categories": [{"id": 1, "name": "cat"}]}
    (house / "mine/boxes.json").write_text(json.dumps(document))
    config = DomainConfig(kind="coco", annotations=f"{house}/mine/boxes.json")
    error = told(config, read_detection_domain)
    assert error.startswith(f"{house}/mine/boxes.json, images[3]: ") and said in error
    assert ("set path to a folder that holds all images" in error) == written.startswith("/")
    assert len(read_detection_domain(replace(config, outside_root="allow")).train) == 4


def test_yolo_lists_and_folders_stay_beside_the_yaml_file(house, way):
    written, said = way
    (house / "mine/train.txt").write_text("\n".join(names("images/", written)))
    (house / "mine/data.yaml").write_text("names: [cat]\ntrain: train.txt\n")
    config = DomainConfig(kind="yolo", path=f"{house}/mine/data.yaml")
    error = told(config, read_detection_domain)
    assert error.startswith(f"{house}/mine/train.txt, line 4: ") and said in error
    assert len(read_detection_domain(replace(config, outside_root="allow")).train) == 4
    (house / "mine/data.yaml").write_text(f"path: {house}\nnames: [cat]\ntrain: elsewhere\n")
    error = told(config, read_detection_domain)
    assert error.startswith(f"{house}/mine/data.yaml, train: {house}/elsewhere is outside of the folder {house}/mine")
    assert len(read_detection_domain(replace(config, outside_root="allow")).train) == 1


@pytest.mark.parametrize("stem", ["../../elsewhere/secret", "link"])
def test_a_voc_list_stays_in_its_folder(house, stem):
    (house / "mine/images").rename(house / "mine/JPEGImages")
    (house / "mine/JPEGImages/link.png").symlink_to(house / "elsewhere/secret.png")
    (house / "mine/ImageSets/Main").mkdir(parents=True)
    (house / "mine/ImageSets/Main/train.txt").write_text(f"0\n{stem}\n")
    (house / "mine/Annotations").mkdir()
    box = "<bndbox><xmin>1</xmin><ymin>1</ymin><xmax>5</xmax><ymax>5</ymax></bndbox>"
    for place in ("mine/Annotations/0", "mine/Annotations/link", "elsewhere/secret"):
        (house / f"{place}.xml").write_text(f"<annotation><object><name>cat</name>{box}</object></annotation>")
    config = DomainConfig(kind="voc", path=f"{house}/mine")
    error = told(config, read_detection_domain)
    assert error.startswith(f"{house}/mine/ImageSets/Main/train.txt, line 2: ")
    assert f"is outside of the folder {house}/mine; set outside_root: allow" in error
    assert len(read_detection_domain(replace(config, outside_root="allow")).train) == 2


@pytest.mark.parametrize("written", ["../elsewhere/secret.png", "{house}/elsewhere/secret.png"])
def test_datasets_refuses_metadata_that_leaves_its_folder_and_the_line_says_so(house, written):
    rows = [{"file_name": f"images/{i}.png"} for i in range(3)] + [{"file_name": written.format(house=house)}]
    (house / "mine/metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    error = told(DomainConfig(kind="dataset", path=f"{house}/mine"), load_domain)
    assert f"cannot be loaded: Invalid metadata file_name '{written.format(house=house)}'" in error
