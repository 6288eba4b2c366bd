"""The fast way to decode JPEG gives Pillow's pixels, and leaves to Pillow what only Pillow knows."""

from io import BytesIO

import datasets
import numpy as np
import pytest
import torch
import torchvision.io
from PIL import Image
from torchvision.transforms.v2 import functional as F
from transformers.image_utils import load_image

from metaalign_hf import DomainConfig, UserError, load_domain
from metaalign_hf.data import augment, jpeg
from metaalign_hf.data.dataset_images import dataset_loader
from metaalign_hf.data.images import read_image
from metaalign_hf.models import build_image_processor


def drawing(width: int = 123, height: int = 97, seed: int = 0) -> Image.Image:
    """Soft blots of all colours."""
    pixels = np.random.default_rng(seed).integers(256, size=(9, 12, 3), dtype=np.uint8)
    return Image.fromarray(pixels).resize((width, height), Image.Resampling.BICUBIC)


def jpeg_file(picture: Image.Image, **options) -> bytes:
    file = BytesIO()
    picture.save(file, "JPEG", **options)
    return file.getvalue()


def turned(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


FAST = {
    "subsampled": jpeg_file(drawing(), quality=75),
    "full colours": jpeg_file(drawing(), quality=95, subsampling=0),
    "progressive": jpeg_file(drawing(), quality=60, progressive=True),
    "coarse": jpeg_file(drawing(), quality=5),
    "grey": jpeg_file(drawing().convert("L")),
    "one pixel": jpeg_file(drawing(1, 1)),
    "upright by EXIF": jpeg_file(drawing(), exif=turned(1)),
    "bytes after its end": jpeg_file(drawing()) + b"more",
}
BY_PILLOW = {
    "cmyk": jpeg_file(drawing().convert("CMYK")),
    **{f"turned {way}": jpeg_file(drawing(), exif=turned(way)) for way in range(2, 9)},
}


@pytest.mark.parametrize("name", [*FAST, *BY_PILLOW])
def test_the_pixels_are_those_that_are_served(name, tmp_path):
    (tmp_path / "a.jpg").write_bytes((FAST | BY_PILLOW)[name])
    with Image.open(tmp_path / "a.jpg") as opened:
        assert (jpeg.decoded_jpeg(opened) is not None) == (name in FAST)
    served = torch.from_numpy(np.array(load_image(str(tmp_path / "a.jpg")))).permute(2, 0, 1)
    assert torch.equal(read_image(tmp_path / "a.jpg"), served)


@pytest.fixture
def rows() -> datasets.Dataset:
    """All of these files in a column."""
    return datasets.Dataset.from_dict(
        {"image": [{"bytes": data, "path": None} for data in (FAST | BY_PILLOW).values()]},
        features=datasets.Features({"image": datasets.Image()}),
    )


def test_rows_of_a_data_set_give_the_pixels_that_datasets_decodes(rows, tmp_path, monkeypatch):
    expected = [torch.from_numpy(np.array(row["image"].convert("RGB"))).permute(2, 0, 1) for row in rows]
    rows.to_parquet(tmp_path / "a.parquet")
    domain = load_domain(DomainConfig(kind="parquet", path=f"{tmp_path}/a.parquet", test_path=f"{tmp_path}/a.parquet"))
    monkeypatch.setattr(datasets.Image, "decode_example", None)  # the slow way is not taken
    for view in (domain.train, domain.test):
        assert all(torch.equal(view[number], pixels) for number, pixels in enumerate(expected))


def test_paths_modes_and_transforms_of_a_data_set_are_heeded(rows, tmp_path):
    (tmp_path / "a.jpg").write_bytes(FAST["subsampled"])
    paths = datasets.Dataset.from_dict({"image": [str(tmp_path / "a.jpg")]}).cast_column("image", datasets.Image())
    file = read_image(tmp_path / "a.jpg")
    assert torch.equal(dataset_loader(paths, "image", "d")(0), file)
    grey = dataset_loader(paths.cast_column("image", datasets.Image(mode="L")), "image", "d")(0)
    assert torch.equal(grey, F.pil_to_tensor(Image.open(tmp_path / "a.jpg").convert("L").convert("RGB")))
    turned_round = paths.with_transform(lambda rows: {"image": [i.rotate(180) for i in rows["image"]]})
    assert torch.equal(dataset_loader(turned_round, "image", "d")(0), file.flip(1, 2))
    damaged = datasets.Dataset.from_dict(
        {"image": [{"bytes": FAST["subsampled"][:200], "path": None}, None]}, features=rows.features
    )
    with pytest.raises(UserError, match=r"d: row 0, column image: unreadable image \("):
        dataset_loader(damaged, "image", "d")(0)
    with pytest.raises(UserError, match=r"d: column image holds NoneType, not images; name another image_column"):
        dataset_loader(damaged, "image", "d")(1)


@pytest.mark.parametrize("seed", range(40))
def test_damaged_files_give_what_pillow_gives(seed, tmp_path):
    """The same pixels, or the same words."""
    generator, data = np.random.default_rng(seed), bytearray(FAST["progressive" if seed % 2 else "subsampled"])
    if seed % 4 == 0:
        del data[generator.integers(20, len(data)) :]
    for place in generator.integers(len(data), size=3):
        data[place] = generator.integers(256)
    path = tmp_path / "a.jpg"
    path.write_bytes(data)
    try:
        with Image.open(path) as opened:
            expected = F.pil_to_tensor(opened.convert("RGB"))
    except Exception as error:
        with pytest.raises(UserError) as told:
            read_image(path)
        assert "cannot be read: it is not an image" in str(told.value) or str(error) in str(told.value)
    else:
        assert torch.equal(read_image(path), expected)


def test_decoders_that_disagree_are_not_mixed(tmp_path, monkeypatch):
    (tmp_path / "a.jpg").write_bytes(FAST["subsampled"])
    before = read_image(tmp_path / "a.jpg")
    decode = torchvision.io.decode_jpeg
    monkeypatch.setattr(torchvision.io, "decode_jpeg", lambda *given, **named: decode(*given, **named) ^ 1)
    jpeg.decoders_agree.cache_clear()
    try:
        assert not jpeg.decoders_agree()
        assert torch.equal(read_image(tmp_path / "a.jpg"), before)
    finally:
        monkeypatch.undo()
        jpeg.decoders_agree.cache_clear()
    assert jpeg.decoders_agree(), "these two are built from the same library"


@pytest.mark.parametrize("shapes", [[(90, 70)] * 4, [(90, 70), (64, 80), (33, 200), (70, 90)], [(28, 28)] * 4])
@pytest.mark.parametrize("augmentation", ["crop", "crop_flip"])
def test_training_views_are_their_formula(shapes, augmentation):
    """Resized in one call or one by one, as the layout of the tensors may be: the values are the same."""
    images = [F.pil_to_tensor(drawing(w, h, seed)) for seed, (h, w) in enumerate(shapes)]
    processor = build_image_processor(48, 56, (0.5, 0.4, 0.3), (0.2, 0.3, 0.4))
    found = augment(images, processor, augmentation, np.random.default_rng(5))
    generator = np.random.default_rng(5)
    corners = generator.integers(56 - 48 + 1, size=(4, 2)).tolist()
    flips = generator.random(4) < (0.5 if augmentation == "crop_flip" else 0)
    for values, image, (y, x), flip in zip(found, images, corners, flips, strict=True):
        crop = F.resize(image.contiguous(), [56, 56], antialias=True)[:, y : y + 48, x : x + 48]
        expected = F.normalize((crop.flip(-1) if flip else crop).float() / 255, [0.5, 0.4, 0.3], [0.2, 0.3, 0.4])
        assert torch.equal(values, expected)
