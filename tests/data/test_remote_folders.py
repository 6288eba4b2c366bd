"""Images at addresses are those of this disk, whatever lists or describes them, and each is fetched once."""

import errno
import json
import shutil
import sys
from dataclasses import replace
from types import SimpleNamespace

import fsspec
import pytest
import torch

from metaalign_hf import DomainConfig, UserError, load_domain
from metaalign_hf.data import disk_cache, notes
from metaalign_hf.data.addresses import files_at
from metaalign_hf.data.detection_readers import read_detection_domain
from tests.data.test_detection_data import coco, good, voc
from tests.data.test_domain_pair import one_line, picture
from tests.data.test_sources import yolo


def test_a_folder_elsewhere_is_the_folder(tmp_path, monkeypatch):
    monkeypatch.setattr(disk_cache, "HF_HOME", str(tmp_path / "home"))
    folder = tmp_path / "photos"
    for name in ("cat", "dog"):
        for number in range(3):
            picture(folder / name / f"{number}.png", 40 * number + len(name) + (name == "dog"))
    picture(tmp_path / "bare" / "0.png", 40)
    here = load_domain(DomainConfig(kind="imagefolder", path=str(folder), test_path=str(folder)))
    memory = fsspec.filesystem("memory")
    memory.put(str(folder), "/remote_photos", recursive=True)
    shutil.make_archive(str(tmp_path / "all"), "zip", tmp_path, "photos")
    for place in ("memory://remote_photos", f"zip://photos::{tmp_path}/all.zip"):
        found = load_domain(DomainConfig(kind="imagefolder", path=place, test_path=place))
        assert found.labels == ["cat", "dog"] and found.train.labels == found.test.labels == here.train.labels
        for view, other in ((found.train, here.train), (found.test, here.test)):
            assert all(torch.equal(view[index], other[index]) for index in range(6))
    remote = load_domain(
        DomainConfig(kind="imagefolder", path="memory://remote_photos", test_path="memory://remote_photos")
    )
    memory.rm("/remote_photos", recursive=True)
    assert torch.equal(remote.train[5], here.train[5]), "it was fetched before"


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    """A function that puts a folder into memory and a zip file, and gives the address of each."""
    monkeypatch.setattr(disk_cache, "HF_HOME", str(tmp_path / "home"))
    memory = fsspec.filesystem("memory")

    def put(folder):
        memory.store.clear()
        memory.pseudo_dirs[:] = [""]
        memory.put(str(folder), "/there", recursive=True)
        shutil.make_archive(str(folder), "zip", folder.parent, folder.name)
        return "memory://there", f"zip://{folder.name}::{folder}.zip"

    return put


def assert_same_objects(found, here):
    assert found.labels == here.labels and found.notes == here.notes
    for view, other in ((found.train, here.train), (found.test, here.test)):
        assert (view is None) == (other is None)
        if other is not None:
            assert view.sizes == other.sizes and len(view) == len(other)
            for index in range(len(view)):
                assert torch.equal(view[index], other[index])
                mine, its = vars(view.objects[index]), vars(other.objects[index])
                assert all(torch.equal(mine[key], its[key]) for key in its)


def test_objects_elsewhere_are_those_here(tmp_path, elsewhere):
    size = "<size><width>10</width><height>12</height></size>"
    folder = tmp_path / "all"
    file = coco(folder / "coco", good())
    document = json.loads(file.read_text())
    del document["images"][1]["width"]
    file.write_text(json.dumps(document))
    (folder / "coco/ann").mkdir()
    (folder / "coco/ann/test.json").write_text(file.read_text())
    for year, kept in (("VOC2007", size.replace("10", "40").replace("12", "30")), ("VOC2012", "")):
        voc(folder / "voc" / year, {f"{year}a": [("dog", 1, 1, 40, 30, 0), ("cat", 11, 6, 20, 15, 1)]}, size=kept)
    yolo(folder / "yolo", train="../images/train")
    configs = [
        DomainConfig(kind="coco", annotations="coco/instances.json"),
        DomainConfig(
            kind="coco", annotations="coco/ann/test.json", path="coco", test_annotations="coco/instances.json"
        ),
        DomainConfig(kind="voc", path="voc", train_split="VOC2007/trainval,VOC2012/trainval"),
        DomainConfig(kind="yolo", path="yolo/data.yaml", test_split="val"),
    ]
    addresses = elsewhere(folder)
    for config in configs:
        here = read_detection_domain(moved(config, str(folder)))
        for address in addresses:
            inner, chained, rest = address.partition("::")
            found = read_detection_domain(moved(config, inner, chained + rest))
            assert_same_objects(found, here)
            assert str(found.train.images.paths[0]).startswith(inner)
    bare = f"{addresses[0]}/yolo/images/train"
    assert len(read_detection_domain(DomainConfig(kind="imagefolder", path=bare)).train) == 3


def moved(config: DomainConfig, folder: str, end: str = "") -> DomainConfig:
    keys = [key for key in ("path", "annotations", "test_annotations", "root") if getattr(config, key) is not None]
    return replace(config, **{key: f"{folder}/{getattr(config, key)}{end}" for key in keys})


def test_a_list_elsewhere_is_the_list(tmp_path, elsewhere):
    folder = tmp_path / "lists"
    for label, name in enumerate(("cat", "dog")):
        for number in range(5):
            picture(folder / "art" / name / f"{number}.png", 100 * label + number)
    rows = [f"art/{name}/{number}.png {label}" for label, name in enumerate(("cat", "dog")) for number in range(5)]
    (folder / "art.txt").write_text("\n".join(rows))
    (folder / "sub").mkdir()
    (folder / "sub/art.txt").write_text("\n".join([*rows, "art/cat/9.png 0"]))
    (folder / "sub/out.txt").write_text("../art/cat/0.png 0\n../art/dog/0.png 1")
    memory, _ = elsewhere(folder)
    here = load_domain(f"list:{folder}/art.txt")
    found = load_domain(f"list:{memory}/art.txt")
    assert found.labels == here.labels == ["cat", "dog"] and found.train.labels == here.train.labels
    assert all(torch.equal(found.train[index], here.train[index]) for index in range(len(here.train)))
    missing = DomainConfig(kind="list", path=f"{memory}/sub/art.txt", root=memory)
    leaving = DomainConfig(kind="list", path=f"{memory}/sub/out.txt")
    for config, words in (
        (missing, r"art\.txt, line 11: image memory://there/art/cat/9\.png does not exist"),
        (leaving, r"out\.txt, line 1: memory://there/art/cat/0\.png is outside of the folder memory://there/sub; "),
    ):
        with pytest.raises(UserError, match=words) as caught:
            load_domain(config)
        one_line(caught)
    assert len(load_domain(replace(leaving, outside_root="allow")).train) == 1


def test_hidden_files_are_left_out_everywhere(tmp_path, elsewhere):
    """Hidden is what is so within the folder that was named; that one may be hidden itself."""
    folder = tmp_path / ".hidden"
    for name in ("cat", "dog"):
        picture(folder / name / "0.png", 40)
        picture(folder / name / ".trash" / "deep" / "1.png", 40)
        picture(folder / name / ".2.png", 40)
    picture(folder / ".git" / "0.png", 40)
    for place in (str(folder), *elsewhere(folder)):
        found = load_domain(DomainConfig(kind="imagefolder", path=place, test_path=place))
        assert found.labels == ["cat", "dog"] and len(found.train) == 2, place
    for file in (".hidden/a.parquet", ".hidden/sub/b.parquet", ".hidden/.c/c.parquet"):
        (tmp_path / file).parent.mkdir(exist_ok=True)
        (tmp_path / file).write_bytes(b"")
    for place in (str(folder), *elsewhere(folder)):
        inner, chained, rest = place.partition("::")
        for path in (place, f"{inner}/**/*.parquet{chained}{rest}"):
            found = files_at(path, (".parquet",), "name")
            assert [file.partition("::")[0][-9:] for file in found] == ["a.parquet", "b.parquet"], path


def test_a_change_elsewhere_is_seen(tmp_path, elsewhere):
    folder = tmp_path / "coco"
    coco(folder, good())
    place = f"coco:{elsewhere(folder)[0]}/instances.json"
    assert read_detection_domain(DomainConfig.parse(place)).labels == ["cat", "dog"]
    coco(folder, good(), names=("cow", "dog"))
    picture(folder / "0.png", 77, (40, 30))
    elsewhere(folder)
    found = read_detection_domain(DomainConfig.parse(place))
    assert found.labels == ["cow", "dog"] and int(found.train[0][0, 0, 0]) == 77


def test_an_object_elsewhere_that_is_missing_is_told(tmp_path, elsewhere):
    folder = tmp_path / "coco"
    document = json.loads(coco(folder, good()).read_text())
    for name, words in (
        ("gone.png", "image memory://there/gone.png does not exist"),
        ("../0.png", "is outside of the"),
    ):
        document["images"][0]["file_name"] = name
        (folder / "instances.json").write_text(json.dumps(document))
        with pytest.raises(UserError, match=rf"instances\.json, images\[0\]: .*{words}") as caught:
            read_detection_domain(DomainConfig.parse(f"coco:{elsewhere(folder)[0]}/instances.json"))
        one_line(caught)
    with pytest.raises(UserError, match=r"memory://there/no\.json does not exist"):
        read_detection_domain(DomainConfig.parse("coco:memory://there/no.json"))


def test_what_is_wrong_elsewhere_is_told(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "s3fs", None)
    monkeypatch.setattr(disk_cache, "HF_HOME", str(tmp_path / "home"))
    memory = fsspec.filesystem("memory")
    memory.pipe("/remote_odd/a/0.png", b"nothing")
    memory.pipe("/remote_odd/b/0.png", b"nothing")
    memory.pipe("/remote_none/0.txt", b"nothing")
    for place, words in (
        ("memory://remote_gone", r"the folder memory://remote_gone does not exist"),
        ("memory://remote_none", r"the folder memory://remote_none holds no images"),
        ("s3://bucket/photos", r"to read s3:// another package is needed: pip install 'metaalign-hf\[remote\]'"),
    ):
        with pytest.raises(UserError, match=words) as caught:
            load_domain(f"imagefolder:{place}")
        one_line(caught)
    odd = load_domain(DomainConfig(kind="imagefolder", path="memory://remote_odd", test_path="memory://remote_odd"))
    with pytest.raises(UserError, match=r"memory://.*/a/0\.png.* cannot be read: it is not an image"):
        odd.train[0]

    def refuse(*given, **named):
        raise PermissionError("denied")

    monkeypatch.setattr(type(memory), "ls", refuse)
    with pytest.raises(UserError, match=r"no permission to read memory://remote_odd \(denied\); log in"):
        load_domain("imagefolder:memory://remote_odd")


def test_what_does_not_fit_on_this_disk_is_told(tmp_path, elsewhere, monkeypatch):
    folder = tmp_path / "coco"
    coco(folder, good())
    place = DomainConfig.parse(f"coco:{elsewhere(folder)[0]}/instances.json")
    bytes_of_images = sum(file.stat().st_size for file in folder.glob("*.png"))
    free = [bytes_of_images]
    monkeypatch.setattr(notes.shutil, "disk_usage", lambda path: SimpleNamespace(free=free[0]))
    assert read_detection_domain(place).notes == []
    free[0] -= 1
    found = read_detection_domain(place)
    assert (
        len(found.notes) == 1
        and "home/metaalign_hf, where they stay and 0.0 GB are free: set HF_HOME to" in found.notes[0]
    )
    assert found.train[0].shape == (3, 30, 40)
    assert read_detection_domain(place).notes == [], "one is here already"

    def full(*given):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(disk_cache.os, "replace", full)
    with pytest.raises(UserError, match=r"metaalign_hf cannot be written to \(No space left on device\): make"):
        found.train[1]
    assert not [file for file in (tmp_path / "home").rglob("*.part-*")]
