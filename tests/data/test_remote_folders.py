"""Folders of images at addresses are the folders themselves, and each image is fetched once."""

import shutil
import sys

import fsspec
import pytest
import torch

from metaalign_hf import DomainConfig, UserError, load_domain
from metaalign_hf.data import disk_cache
from tests.data.test_domain_pair import one_line, picture


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

    monkeypatch.setattr(type(memory), "isdir", refuse)
    with pytest.raises(UserError, match=r"no permission to read memory://remote_odd \(denied\); log in"):
        load_domain("imagefolder:memory://remote_odd")
