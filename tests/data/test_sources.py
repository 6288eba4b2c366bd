"""Files that datasets reads, YOLO exports, and several sources of different kinds in one pair."""

import io
import tarfile
from dataclasses import replace
from pathlib import Path

import datasets
import numpy as np
import pytest
from PIL import Image

from metaalign_hf import DomainConfig, UserError, load_detection_pair, load_domain, load_domain_pair
from metaalign_hf.data.detection_readers import read_detection_domain
from tests.data.test_domain_pair import make_dataset, one_line, picture


def webdataset(path: Path, rows: list[tuple[int, str]], ending_of_labels: str = "cls") -> None:
    """A tar of images of one shade and their class names."""
    with tarfile.open(path, "w") as tar:
        for number, (shade, label) in enumerate(rows):
            image = io.BytesIO()
            Image.new("RGB", (7, 6), (shade, 0, 0)).save(image, "PNG")
            for ending, content in (("png", image.getvalue()), (ending_of_labels, label.encode())):
                entry = tarfile.TarInfo(f"{number:03}.{ending}")
                entry.size = len(content)
                tar.addfile(entry, io.BytesIO(content))


def test_files_of_every_kind_are_domains(tmp_path):
    made = make_dataset(tmp_path / "disk", ["cat", "dog", "eel"])
    shards = tmp_path / "shards"
    for number in range(2):
        made.shard(2, number, contiguous=True).to_parquet(str(shards / f"train-{number}.parquet"))
    made.select(range(3)).to_parquet(str(tmp_path / "test.parquet"))
    (arrow,) = (tmp_path / "disk").glob("*.arrow")
    webdataset(tmp_path / "named.tar", [(10 * i, ["cat", "dog", "eel"][i % 3]) for i in range(12)], "txt")
    webdataset(tmp_path / "numbered.tar", [(10 * i, str(i % 3)) for i in range(12)])
    (tmp_path / "names.txt").write_text("cat\ndog\neel\n")
    for text, more in (
        (f"parquet:{shards}", {}),
        (f"parquet:{shards}/train-*.parquet", {}),
        (f"parquet:file://{shards}/train-*.parquet", {}),
        (f"arrow:{arrow}", {}),
        (f"webdataset:{tmp_path}/named.tar", {"label_column": "txt"}),
        (f"webdataset:{tmp_path}/numbered.tar", {"labels_file": str(tmp_path / "names.txt")}),
    ):
        domain = load_domain(replace(DomainConfig.parse(text), **more))
        assert domain.labels == ["cat", "dog", "eel"] and len(domain.train) + len(domain.test) == 12, text
        for view in (domain.train, domain.test):
            for index in range(len(view)):
                assert int(view[index][0, 0, 0]) // 10 % 3 == view.labels[index], text
    config = DomainConfig(kind="parquet", path=str(shards), test_path=str(tmp_path / "test.parquet"))
    domain = load_domain(config)
    assert (len(domain.train), len(domain.test)) == (12, 3) and domain.name == "shards"


def test_what_is_wrong_with_files_is_told(tmp_path):
    make_dataset(tmp_path / "disk", ["cat", "dog", "eel"]).to_parquet(str(tmp_path / "a.parquet"))
    webdataset(tmp_path / "a.tar", [(10 * i, str(i)) for i in range(3)])
    (tmp_path / "names.txt").write_text("cat\ndog\n")
    config = DomainConfig(kind="webdataset", path=str(tmp_path / "a.tar"), labels_file=str(tmp_path / "names.txt"))
    with pytest.raises(
        UserError, match=r"domain a\.tar: row 2: label '2' is neither a name in .* nor a number from 0 to 1"
    ):
        load_domain(config)
    with pytest.raises(UserError, match=r"label has names of its own; drop labels_file"):
        load_domain(replace(config, kind="parquet", path=str(tmp_path / "a.parquet")))
    with pytest.raises(UserError, match=r"domain no\.parquet: there is no file .*/no\.parquet$"):
        load_domain(f"parquet:{tmp_path}/no.parquet")
    (tmp_path / "bad.parquet").write_bytes(b"PAR1 not really")
    with pytest.raises(UserError, match=r"domain bad\.parquet: .* cannot be loaded") as caught:
        load_domain(f"parquet:{tmp_path}/bad.parquet")
    one_line(caught)
    with pytest.raises(UserError, match=r"revision is main: a domain of kind parquet does not read it"):
        DomainConfig(kind="parquet", path="x.parquet", revision="main")


def test_sources_of_different_kinds_and_labelled_target_images_make_a_pair(tmp_path):
    make_dataset(tmp_path / "disk", ["cat", "dog", "eel"]).to_parquet(str(tmp_path / "a.parquet"))
    webdataset(tmp_path / "b.tar", [(10 * i, ["eel", "dog", "cat"][i % 3]) for i in range(9)], "txt")
    for name in ("dog", "cat", "eel"):
        for number in range(5):
            picture(tmp_path / "photos" / name / f"{number}.png", 40)
        picture(tmp_path / "few" / name / "0.png", 50)
    tar = DomainConfig(kind="webdataset", path=str(tmp_path / "b.tar"), label_column="txt")
    sources = [f"parquet:{tmp_path}/a.parquet", tar]
    few = f"imagefolder:{tmp_path}/few"
    pair = load_domain_pair(sources, f"imagefolder:{tmp_path}/photos", "strict", few)
    assert pair.labels == ["cat", "dog", "eel"] and pair.source_name == "a.parquet + b.tar"
    assert pair.source_train.parts == (10, 7) and len(pair.target_labeled) == 3
    for index in range(10, 17):
        shade = int(pair.source_train[index][0, 0, 0]) // 10
        assert pair.labels[pair.source_train.labels[index]] == ["eel", "dog", "cat"][shade % 3]


def test_objects_in_parquet(tmp_path):
    box = datasets.Sequence(datasets.Value("float32"), length=4)
    objects = {"bbox": datasets.Sequence(box), "category": datasets.Sequence(datasets.ClassLabel(names=["cat", "dog"]))}
    rows = {
        "image": [Image.fromarray(np.zeros((20, 30, 3), np.uint8))] * 3,
        "objects": [{"bbox": [[2, 3, 10, 8]], "category": ["dog"]}] * 3,
    }
    features = datasets.Features({"image": datasets.Image(), "objects": objects})
    datasets.Dataset.from_dict(rows, features=features).to_parquet(str(tmp_path / "boxes.parquet"))
    found = read_detection_domain(DomainConfig.parse(f"parquet:{tmp_path}/boxes.parquet"))
    assert found.labels == ["cat", "dog"] and found.train.objects[2].boxes.tolist() == [[2, 3, 12, 11]]
    assert found.train.objects[2].labels.tolist() == [1]


def yolo(root: Path, names: str = "[cat, dog]", train: str = "images/train") -> Path:
    """Three training images, one of them without objects, and one of a validation split."""
    lines = {
        "train/0": "1 0.5 0.5 0.4 0.2\n0 0.1 0.1 0.1 0.1\n",
        "train/1": "0 0.1 0.2 0.5 0.2 0.5 0.6\n",
        "val/0": "0 0.5 0.5 1 1\n",
    }
    for image in ("train/0", "train/1", "train/2", "val/0"):
        picture(root / "images" / f"{image}.jpg", 40, (100, 50))
        if image in lines:
            (root / "labels" / image).parent.mkdir(parents=True, exist_ok=True)
            (root / "labels" / f"{image}.txt").write_text(lines[image])
    (root / "data.yaml").write_text(f"train: {train}\nval: images/val\nnames: {names}\n")
    return root / "data.yaml"


def test_a_yolo_export_is_a_domain(tmp_path):
    for export, train in (("a", "images/train"), ("b", "../images/train")):
        file = yolo(tmp_path / export, "{0: cat, 1: dog}", train)
        config = DomainConfig(kind="yolo", path=str(file), test_split="val")
        found = read_detection_domain(config)
        assert found.labels == ["cat", "dog"] and len(found.train) == 3 and len(found.test) == 1 and found.notes == []
        first, outline, nothing = found.train.objects
        assert first.labels.tolist() == [1, 0] and len(nothing) == 0
        np.testing.assert_allclose(first.boxes, [[30, 20, 70, 30], [5, 2.5, 15, 7.5]], rtol=1e-5)
        np.testing.assert_allclose(outline.boxes, [[10, 10, 50, 30]], rtol=1e-5)


def test_yolo_domains_pair_by_name_and_without_labels_too(tmp_path):
    files = yolo(tmp_path / "s"), yolo(tmp_path / "t", "[dog, cat]")
    source, target = (DomainConfig(kind="yolo", path=str(file), test_split="val") for file in files)
    pair = load_detection_pair(source, target)
    assert (
        pair.labels == ["cat", "dog"]
        and pair.target_train.objects is None
        and pair.labels[pair.target_evaluation.objects[0].labels[0]] == "dog"
    )
    for file in (tmp_path / "t" / "labels").rglob("*.txt"):
        file.unlink()
    assert load_detection_pair(source, target).target_evaluation is None


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda root: (root / "labels/train/0.txt").write_text("0 0.5 0.5 0.1\n"), "0.txt, line 1: must be `class x y"),
        (lambda root: (root / "labels/train/0.txt").write_text("0 a b c d\n"), "0.txt, line 1: must be `class x y"),
        (
            lambda root: (root / "data.yaml").write_text("train: images/none\nnames: [a]\n"),
            "images/none does not exist",
        ),
        (lambda root: (root / "data.yaml").write_text("val: images/val\nnames: [a]\n"), "no split 'train'; it has val"),
        (lambda root: (root / "data.yaml").write_text("train: images/train\nnames: 3\n"), "names must be a list"),
        (lambda root: (root / "data.yaml").write_text("- 1\n"), "must have names and splits"),
        (lambda root: (root / "data.yaml").write_text("train: [\n"), "is not valid YAML"),
    ],
)
def test_a_malformed_yolo_export_is_told(change, words, tmp_path):
    file = yolo(tmp_path)
    change(tmp_path)
    with pytest.raises(UserError) as caught:
        read_detection_domain(DomainConfig(kind="yolo", path=str(file)))
    assert words in one_line(caught)


def test_an_unknown_class_number_is_counted_or_refused(tmp_path):
    file = yolo(tmp_path)
    (tmp_path / "labels/train/0.txt").write_text("7 0.5 0.5 0.4 0.2\n")
    found = read_detection_domain(DomainConfig(kind="yolo", path=str(file)))
    assert found.notes == ["data.yaml: 1 annotations: unknown category."]
    with pytest.raises(UserError, match=r"0\.txt, line 1: unknown category; correct it, or set bad_boxes: drop"):
        read_detection_domain(DomainConfig(kind="yolo", path=str(file), bad_boxes="error"))
