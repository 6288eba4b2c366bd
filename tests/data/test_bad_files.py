"""Files that somebody else wrote: read as meant, or one line that names the file and says what would be right."""

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from transformers.image_utils import load_image

from metaalign_hf.configuration import DomainConfig
from metaalign_hf.data import load_domain, load_domain_pair
from metaalign_hf.data.detection_pair import load_detection_pair
from metaalign_hf.data.detection_readers import read_detection_domain
from metaalign_hf.errors import UserError


@pytest.fixture
def pictures(tmp_path) -> Path:
    """Ten pictures of each of two classes, in class folders."""
    folder = tmp_path / "photos"
    for number, name in enumerate(("cat", "dog")):
        (folder / name).mkdir(parents=True)
        for shade in range(10):
            Image.new("RGB", (8, 8), (shade, 50 * number, 50)).save(folder / name / f"{shade}.png")
    return folder


def rows(pictures: Path, separator: str) -> str:
    names = {"cat": "kätzchen", "dog": "hund"}
    return "".join(
        f"{path.relative_to(pictures)}{separator}{names[path.parent.name]}\n"
        for path in sorted(pictures.rglob("*.png"))
    )


def told(domain: DomainConfig | str) -> str:
    with pytest.raises(UserError) as caught:
        load_domain(domain)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("encoding", "found"),
    [("latin-1", "byte 0xe4 in line 1"), ("utf-16", "UTF-16"), ("utf-16-le", "byte 0xe4"), ("utf-32", "UTF-")],
)
def test_a_list_in_another_encoding_is_told(pictures, encoding, found):
    (pictures / "list.txt").write_bytes(rows(pictures, " ").encode(encoding))
    error = told(f"list:{pictures}/list.txt")
    assert "list.txt is not UTF-8 text (" in error and found in error and error.endswith("save it as UTF-8")


@pytest.mark.parametrize("content", [b"a\0b c\0d\n", bytes(range(256)), b"\x89PNG\r\n"])
def test_a_binary_list_is_told(pictures, content):
    (pictures / "list.txt").write_bytes(content)
    assert "list.txt is not UTF-8 text" in told(f"list:{pictures}/list.txt")


def test_a_file_of_class_names_in_another_encoding_is_told(pictures):
    (pictures / "list.txt").write_text(rows(pictures, " "))
    (pictures / "names.txt").write_bytes("kätzchen\nhund\n".encode("latin-1"))
    domain = DomainConfig(kind="list", path=f"{pictures}/list.txt", labels_file=f"{pictures}/names.txt")
    assert "names.txt is not UTF-8 text (byte 0xe4 in line 1)" in told(domain)


def test_a_voc_list_in_another_encoding_is_told(tmp_path):
    (tmp_path / "ImageSets" / "Main").mkdir(parents=True)
    (tmp_path / "ImageSets" / "Main" / "train.txt").write_bytes("kätzchen\n".encode("latin-1"))
    with pytest.raises(UserError, match="train.txt is not UTF-8 text"):
        read_detection_domain(DomainConfig(kind="voc", path=str(tmp_path)))


@pytest.mark.parametrize("separator", [" ", "\t", "\t "])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_lists_with_tabs_and_byte_order_marks_are_read(pictures, separator, encoding):
    (pictures / "list.txt").write_text(rows(pictures, separator), encoding=encoding)
    domain = load_domain(f"list:{pictures}/list.txt")
    assert domain.labels == ["hund", "kätzchen"] and len(domain.train) + len(domain.test) == 20


def test_after_a_tab_a_class_name_may_hold_spaces(pictures):
    (pictures / "list.txt").write_text(rows(pictures, "\t").replace("hund", "golden retriever"))
    assert load_domain(f"list:{pictures}/list.txt").labels == ["golden retriever", "kätzchen"]


@pytest.mark.parametrize("separator", [",", ", ", ";", "; "])
def test_a_list_with_commas_is_told_what_separates(pictures, separator):
    (pictures / "list.txt").write_text(rows(pictures, separator))
    error = told(f"list:{pictures}/list.txt")
    assert "line 1" in error and f"by a space or a tab, not by {separator[0]!r}" in error and "set root" not in error


@pytest.mark.parametrize(("content", "words"), [(b"[" * 100_000, "nested too deeply"), (b"\xff\xfe{", "UTF-16")])
def test_bad_annotations_are_told(tmp_path, content, words):
    (tmp_path / "boxes.json").write_bytes(content)
    with pytest.raises(UserError, match=f"annotations .*boxes.json is .*{words}") as caught:
        read_detection_domain(DomainConfig.parse(f"coco:{tmp_path}/boxes.json"))
    assert "\n" not in str(caught.value)


def test_a_broken_link_is_told(pictures):
    for name in ("gone.png", "lost.png"):
        (pictures / "cat" / name).symlink_to("/no/such.png")
    error = told(f"imagefolder:{pictures}")
    assert f"{pictures}/cat/gone.png is a link to /no/such.png, which does not exist (and 1 more)" in error
    with pytest.raises(UserError, match="gone.png is a link to /no/such.png"):
        read_detection_domain(DomainConfig.parse(f"imagefolder:{pictures}"))


def test_a_broken_link_in_the_place_of_a_class_is_told(pictures):
    (pictures / "fish").symlink_to("/no/such/folder")
    assert f"{pictures}/fish is a link to /no/such/folder, which does not exist" in told(f"imagefolder:{pictures}")


def test_images_beside_class_folders_are_noted(pictures):
    (pictures / "cat" / "0.png").rename(pictures / "loose.png")
    (pictures / "notes.txt").write_text("not an image")
    (note,) = load_domain(f"imagefolder:{pictures}").notes
    assert "1 images beside the class folders" in note and "loose.png" in note


def test_names_that_are_not_utf8_are_read_in_files_and_told_in_classes_and_folders(pictures):
    (pictures / "cat" / "0.png").rename(pictures / "cat" / os.fsdecode(b"\xff.png"))
    domain = load_domain(f"imagefolder:{pictures}")
    assert all(view[i].shape == (3, 8, 8) for view in (domain.train, domain.test) for i in range(len(view)))
    (pictures / "dog").rename(pictures / os.fsdecode(b"d\xf6g"))
    error = told(f"imagefolder:{pictures}")
    assert "d\\udcf6g' is not UTF-8; rename it" in error
    error.encode()
    with pytest.raises(UserError, match="path is .*its bytes are not UTF-8"):
        DomainConfig.parse(f"imagefolder:{pictures}{os.fsdecode(bytes([255]))}")


@pytest.mark.parametrize("mode", ["F", "I", "I;16"])
def test_an_image_that_would_be_read_as_black_is_told(pictures, mode):
    Image.new(mode, (8, 8), 1).save(pictures / "cat" / "0.tif")
    view = load_domain(f"imagefolder:{pictures}").train.join(load_domain(f"imagefolder:{pictures}").test)
    with pytest.raises(UserError, match=r"cat/0\.tif cannot be read: mode .* has more than 8 bits a channel"):
        [view[i] for i in range(len(view))]


def _palette(path: Path) -> None:
    image = Image.new("P", (8, 8), 1)
    image.putpalette([0, 0, 0, 200, 10, 20])
    image.save(path, transparency=1)


def _turned(path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # a camera that was held upright
    Image.new("RGB", (12, 8), (200, 10, 20)).save(path, exif=exif)


def _animated(path: Path) -> None:
    frames = [Image.new("RGB", (8, 8), color) for color in ((200, 10, 20), (0, 0, 255))]
    frames[0].save(path, save_all=True, append_images=frames[1:])


ODD = {
    "cmyk.jpg": lambda path: Image.new("CMYK", (8, 8), (55, 245, 235, 0)).save(path),
    "palette.png": _palette,
    "turned.png": _turned,
    "animated.gif": _animated,
    "animated.webp": _animated,
    "grey.png": lambda path: Image.new("LA", (8, 8), (90, 0)).save(path),
    "ink.png": lambda path: Image.new("1", (8, 8), 1).save(path),
}
SEEN = {"grey.png": [90, 90, 90], "ink.png": [255, 255, 255]}


@pytest.mark.parametrize("name", list(ODD))
def test_odd_images_are_read_as_transformers_serves_them(name, tmp_path):
    """The first frame, upright, without its alpha channel."""
    for number in range(2):
        (tmp_path / str(number)).mkdir()
        ODD[name](tmp_path / str(number) / name)
    domain = load_domain(f"imagefolder:{tmp_path}")
    image = domain.train[0]
    served = np.asarray(load_image(str(tmp_path / "0" / name)))
    assert (image.permute(1, 2, 0).numpy() == served).all()
    assert image.shape == ((3, 12, 8) if name == "turned.png" else (3, 8, 8))
    color = image.float().mean((1, 2)).tolist()
    assert color == pytest.approx(SEEN.get(name, [200, 10, 20]), abs=4)


@pytest.mark.parametrize("content", [b"", b"<html>404</html>", b"\x89PNG\r\n\x1a\n\0\0"])
def test_what_is_no_image_is_told(content, pictures):
    (pictures / "cat" / "0.png").write_bytes(content)
    parts = load_domain(f"imagefolder:{pictures}")
    with pytest.raises(UserError, match=r"cat/0\.png cannot be read"):
        [view[i] for view in (parts.train, parts.test) for i in range(len(view))]


def test_transparent_images_are_noted_and_opaque_ones_are_not(pictures):
    Image.new("RGBA", (8, 8), (9, 9, 9, 255)).save(pictures / "cat" / "opaque.png")
    assert load_domain(f"imagefolder:{pictures}").notes == []
    Image.new("RGBA", (8, 8), (9, 9, 9, 0)).save(pictures / "cat" / "clear.png")
    Image.new("LA", (8, 8), (9, 100)).save(pictures / "dog" / "half.png")
    (note,) = load_domain(f"imagefolder:{pictures}").notes
    assert "2 of 23 images looked at have transparent pixels, e.g. clear.png" in note
    (pictures / "list.txt").write_text("cat/clear.png 0\ncat/0.png 0\ndog/0.png 1\n")
    (note,) = load_domain(f"list:{pictures}/list.txt").notes
    assert "1 of 3 images" in note


@pytest.mark.parametrize("more", ["", "/", "/../photos"])
def test_a_target_that_is_the_source_is_told(pictures, more):
    with pytest.raises(UserError, match=r"data.target is the source \(imagefolder:.*\): name another domain"):
        load_domain_pair(f"imagefolder:{pictures}", f"imagefolder:{pictures}{more}")
    with pytest.raises(UserError, match="data.target is the source"):
        load_domain_pair(["mnist", "uci_digits"], "mnist")
    with pytest.raises(UserError, match=r"data.target is the source \(scenes_plain\)"):
        load_detection_pair("scenes_plain", "scenes_plain")


def test_two_parts_of_one_place_are_two_domains():
    parts = [DomainConfig(kind="dataset", path="a/b", domain_column="site", domain=name) for name in ("n", "s")]
    assert not parts[0].is_same_place(parts[1]) and parts[0].is_same_place(parts[0])
