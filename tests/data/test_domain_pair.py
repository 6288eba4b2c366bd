"""Domain pairs through their public surface: every kind of domain, label agreement, law 9 and bad input."""

from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from PIL import Image

from metaalign_hf import DomainConfig, UserError, load_domain, load_domain_pair
from metaalign_hf.data import image_files, load_digits_images, load_labelled_view
from metaalign_hf.data.dataset_files import dataset_split


def picture(path: Path, shade: int, size: tuple[int, int] = (10, 12)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (shade, 0, 255 - shade)).save(path)


@pytest.fixture
def folder(tmp_path):
    """Two class folders with five images each."""
    for index, name in enumerate(("cat", "dog")):
        for number in range(5):
            picture(tmp_path / "art" / name / f"{number}.png", 100 * index + number)
    return tmp_path / "art"


@pytest.fixture
def listed(folder, tmp_path):
    lines = [f"art/{name}/{number}.png {label}" for label, name in enumerate(("cat", "dog")) for number in range(5)]
    path = tmp_path / "art.txt"
    path.write_text("\n".join(lines) + "\n")
    return path


def one_line(caught) -> str:
    message = str(caught.value)
    assert "\n" not in message and len(message) < 500
    return message


@pytest.mark.parametrize("name", ["mnist", "uci_digits", "mnist_m"])
def test_the_embedded_domains_are_real_and_fixed(name):
    images, labels = load_digits_images(name)
    assert images.dtype == torch.uint8 and images.shape[1] == 3
    assert len(images) == len(labels) == (1797 if name == "uci_digits" else 5000)
    assert set(labels) == set(range(10))
    domain = load_domain(name)
    assert len(domain.train) + len(domain.test) == len(labels)
    again = load_domain(name)
    assert domain.train.labels == again.train.labels and torch.equal(domain.test[3], again.test[3])


def test_mnist_m_is_mnist_on_photos():
    grey, labels = load_digits_images("mnist")
    blended, blended_labels = load_digits_images("mnist_m")
    assert labels == blended_labels
    background = grey == 0
    assert (blended[background] != 0).float().mean() > 0.9, "where the digit is black the photo shows"
    assert (blended[:, 0] != blended[:, 1]).float().mean() > 0.5, "in colour"


def test_mnist_and_mnist_m_share_no_digit_between_train_and_test():
    plain, blended = load_domain("mnist"), load_domain("mnist_m")
    assert plain.train.labels == blended.train.labels
    assert plain.test.labels == blended.test.labels


def test_folders_and_lists_are_the_same_domain(folder, listed):
    by_folder, by_list = (load_domain(text) for text in (f"imagefolder:{folder}", f"list:{listed}"))
    assert by_folder.labels == by_list.labels == ["cat", "dog"]
    assert by_folder.train.labels == by_list.train.labels
    assert all(torch.equal(by_folder.test[i], by_list.test[i]) for i in range(2))
    assert len(by_folder.train) == 8 and len(by_folder.test) == 2


def test_a_list_with_names_and_spaces_in_paths(tmp_path):
    for name in ("cat", "dog"):
        picture(tmp_path / "my photos" / f"{name} 1.png", 50)
        picture(tmp_path / "my photos" / f"{name} 2.png", 60)
    path = tmp_path / "list.txt"
    path.write_text("".join(f"my photos/{name} {i}.png {name}\n" for name in ("cat", "dog") for i in (1, 2)))
    assert load_domain(f"list:{path}").labels == ["cat", "dog"]


def test_a_labels_file_names_integer_labels(listed, tmp_path):
    (tmp_path / "names.txt").write_text("tabby\nbeagle\n")
    domain = load_domain(DomainConfig(kind="list", path=str(listed), labels_file=str(tmp_path / "names.txt")))
    assert domain.labels == ["tabby", "beagle"]


def test_test_path_tests_on_what_it_says(folder):
    domain = load_domain(DomainConfig(kind="imagefolder", path=str(folder), test_path=str(folder)))
    assert len(domain.train) == len(domain.test) == 10


def make_dataset(path: Path, order: list[str]) -> datasets.Dataset:
    images = [Image.fromarray(np.full((6, 7, 3), 10 * i, np.uint8)) for i in range(12)]
    features = datasets.Features(
        {"image": datasets.Image(), "label": datasets.ClassLabel(names=order), "site": datasets.Value("string")}
    )
    names = ["cat", "dog", "eel"] * 4
    rows = {"image": images, "label": names, "site": ["north"] * 6 + ["south"] * 6}
    data = datasets.Dataset.from_dict(rows, features=features)
    data.save_to_disk(str(path))
    return data


def test_data_sets_are_matched_by_name_not_by_index(tmp_path):
    make_dataset(tmp_path / "a", ["cat", "dog", "eel"])
    make_dataset(tmp_path / "b", ["eel", "dog", "cat"])
    source = DomainConfig(
        kind="dataset", path=str(tmp_path / "a"), domain_column="site", domain="north", test_fraction=0.5
    )
    target = DomainConfig(
        kind="dataset", path=str(tmp_path / "b"), domain_column="site", domain="south", test_fraction=0.5
    )
    pair = load_domain_pair(source, target)
    assert pair.labels == ["cat", "dog", "eel"]
    assert len(pair.source_train) == len(pair.target_train) == 3
    for i in range(3):
        row = int(pair.target_evaluation[i][0, 0, 0]) // 10  # the shade says which row it was
        assert pair.labels[pair.target_evaluation.labels[i]] == ["cat", "dog", "eel"][row % 3]
        assert row >= 6, "rows of the other domain must not slip in"


def test_parquet_files_load(tmp_path):
    make_dataset(tmp_path / "disk", ["cat", "dog", "eel"]).to_parquet(str(tmp_path / "data" / "train.parquet"))
    domain = load_domain(DomainConfig(kind="dataset", path=str(tmp_path / "data")))
    assert domain.labels == ["cat", "dog", "eel"] and domain.train[0].shape == (3, 6, 7)


def test_law_9_target_labels_do_not_reach_training(folder, listed, tmp_path):
    shuffled = tmp_path / "shuffled.txt"
    lines = listed.read_text().splitlines()
    labels = [line[-1] for line in lines]
    shuffled.write_text("\n".join(line[:-1] + label for line, label in zip(lines, reversed(labels), strict=True)))
    (tmp_path / "names.txt").write_text("cat\ndog\n")
    pairs = [
        load_domain_pair(
            f"imagefolder:{folder}", DomainConfig(kind="list", path=str(p), labels_file=str(tmp_path / "names.txt"))
        )
        for p in (listed, shuffled)
    ]
    first, second = pairs
    assert first.target_train.labels is None and first.target_test_images.labels is None
    assert first.target_train.paths == second.target_train.paths
    assert first.target_evaluation.paths == second.target_evaluation.paths
    assert first.target_evaluation.labels != second.target_evaluation.labels


def test_an_unlabelled_target_works(folder, tmp_path):
    for number in range(5):
        picture(tmp_path / "new" / f"{number}.png", 40)
    pair = load_domain_pair(f"imagefolder:{folder}", f"imagefolder:{tmp_path / 'new'}")
    assert pair.target_evaluation is None and len(pair.target_train) == 4
    assert "no labels" in pair.notes[0]


def test_shared_labels_filter_the_source_and_the_evaluation_but_not_target_training(folder, tmp_path):
    for name in ("cat", "dog", "eel"):
        for number in range(5):
            picture(tmp_path / "real" / name / f"{number}.png", 30)
    for number in range(5):
        picture(folder / "fox" / f"{number}.png", 70)
    source, target = f"imagefolder:{folder}", f"imagefolder:{tmp_path / 'real'}"
    with pytest.raises(UserError) as caught:
        load_domain_pair(source, target)
    assert all(word in one_line(caught) for word in ("fox", "eel", "shared"))
    pair = load_domain_pair(source, target, "shared")
    assert pair.labels == ["cat", "dog"]
    assert set(pair.source_train.labels) == {0, 1} and len(pair.target_train) == 12
    assert all("eel" not in str(path) for path in pair.target_evaluation.paths)
    assert any("eel" in note for note in pair.notes)


def test_the_sources_classes_are_kept_where_the_target_lacks_some(folder, tmp_path):
    for name in ("cat", "dog", "eel"):
        for number in range(5):
            picture(tmp_path / "real" / name / f"{number}.png", 30)
            picture(folder / "zebra" / f"{number}.png", 70)
    source, target = f"imagefolder:{folder}", f"imagefolder:{tmp_path / 'real'}"
    with pytest.raises(UserError) as caught:
        load_domain_pair(source, target)
    assert one_line(caught) == (
        "class names differ: art has 3 classes, real 3: real lacks 'zebra'; art lacks 'eel'; use data.label_policy: "
        "shared to keep the 2 classes of both, or source to keep the 3 of art, or open to count real's other classes "
        "as unknown"
    )
    pair = load_domain_pair(source, target, "source")
    assert pair.labels == ["cat", "dog", "zebra"] and set(pair.source_train.labels) == {0, 1, 2}
    assert len(pair.target_train) == 12 and set(pair.target_evaluation.labels) <= {0, 1}
    assert pair.notes[0] == "Classes that the target lacks are learned as well: zebra." and "eel" in pair.notes[1]


def test_labels_out_of_range_and_splits_without_rows_are_told(tmp_path):
    data = make_dataset(tmp_path / "a", ["cat", "dog", "eel"])
    plain = data.cast_column("label", datasets.Value("int64"))
    rows = plain.map(lambda row, i: {"label": 7 if i == 4 else row["label"]}, with_indices=True)
    table = rows.data.table  # a file that another program wrote: nothing has checked its values
    broken = datasets.Dataset(table, info=datasets.DatasetInfo(features=data.features))
    broken.save_to_disk(str(tmp_path / "b"))
    with pytest.raises(UserError, match=r"b: row 4 has label 7, but there are 3 classes, 0 to 2$"):
        load_domain(f"dataset:{tmp_path / 'b'}")
    with pytest.raises(UserError, match=r"domain c: split train has no rows$"):
        dataset_split({"train": data.select([])}, "train", DomainConfig(kind="dataset", path="c"), "c")


def test_a_class_without_training_images_is_noted(folder, tmp_path):
    (tmp_path / "train.txt").write_text("".join(f"art/cat/{n}.png cat\n" for n in range(5)))
    (tmp_path / "test.txt").write_text("".join(f"art/{name}/0.png {name}\n" for name in ("cat", "dog")))
    source = DomainConfig(kind="list", path=str(tmp_path / "train.txt"), test_path=str(tmp_path / "test.txt"))
    pair = load_domain_pair(source, f"imagefolder:{folder}")
    assert pair.notes == ["Source train.txt has no training image of dog: there is nothing to learn of them."]


def test_names_that_differ_in_spelling_are_pointed_out(folder, tmp_path):
    for name in ("Cat", "dog"):
        picture(tmp_path / "real" / name / "0.png", 30)
        picture(tmp_path / "real" / name / "1.png", 30)
    with pytest.raises(UserError, match="'cat' and 'Cat'") as caught:
        load_domain_pair(f"imagefolder:{folder}", f"imagefolder:{tmp_path / 'real'}")
    one_line(caught)


def test_images_are_turned_upright_and_made_rgb(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("L", (20, 10), 100).save(tmp_path / "turned.jpg", exif=exif)
    Image.new("RGBA", (4, 4), (1, 2, 3, 0)).save(tmp_path / "alpha.png")
    images = image_files([tmp_path])
    assert images[0].shape == (3, 4, 4) and images[1].shape == (3, 20, 10)


def test_a_labelled_view_is_numbered_as_the_model(folder):
    view = load_labelled_view(f"imagefolder:{folder}", ["dog", "bird", "cat"], "all")
    assert len(view) == 10 and view.labels == (2,) * 5 + (0,) * 5
    with pytest.raises(UserError, match="dog"):
        load_labelled_view(f"imagefolder:{folder}", ["cat", "bird"])


def bad_domains(folder: Path, listed: Path) -> dict[str, tuple[object, str]]:
    base = folder.parent
    (base / "empty").mkdir()
    (base / "half" / "cat").mkdir(parents=True)
    (base / "no_label.txt").write_text(listed.read_text() + "art/cat/0.png\n")
    (base / "no_image.txt").write_text(listed.read_text() + "art/cat/77.png 0\n")
    (base / "names.txt").write_text("cat\n")
    make_dataset(base / "set", ["cat", "dog", "eel"])
    data = {"kind": "dataset", "path": str(base / "set")}
    return {
        "missing folder": (f"imagefolder:{base / 'nowhere'}", "does not exist"),
        "empty folder": (f"imagefolder:{base / 'empty'}", "holds no images"),
        "empty class folder": (f"imagefolder:{base / 'half'}", "half/cat"),
        "missing list": (f"list:{base / 'none.txt'}", "cannot be read"),
        "line without label": (f"list:{base / 'no_label.txt'}", "line 11"),
        "missing image": (f"list:{base / 'no_image.txt'}", "line 11"),
        "label out of range": (
            DomainConfig(kind="list", path=str(listed), labels_file=str(base / "names.txt")),
            "from 0 to 0",
        ),
        "misspelt digits": ("minst", "mnist"),
        "unknown column": (DomainConfig(**data, domain_column="place", domain="north"), "image, label, site"),
        "unknown domain": (DomainConfig(**data, domain_column="site", domain="east"), "north, south"),
        "unknown split": (DomainConfig(**data, train_split="validation"), "train"),
        "no images in the column": (DomainConfig(**data, image_column="pixels"), "image_column"),
        "bad fraction": (
            lambda: DomainConfig(kind="imagefolder", path=str(folder), test_fraction=1.5),
            "test_fraction",
        ),
        "no path": (DomainConfig(kind="imagefolder"), "needs a path"),
    }


CASES = [
    "missing folder",
    "empty folder",
    "empty class folder",
    "missing list",
    "line without label",
    "missing image",
    "label out of range",
    "misspelt digits",
    "unknown column",
    "unknown domain",
    "unknown split",
    "no images in the column",
    "bad fraction",
    "no path",
]


@pytest.mark.parametrize("case", CASES)
def test_bad_domains_are_told_in_one_line(case, folder, listed):
    domain, message = bad_domains(folder, listed)[case]
    with pytest.raises(UserError) as caught:
        load_domain(domain() if callable(domain) else domain)
    assert message in one_line(caught)


def test_an_unreadable_image_is_named(folder):
    (folder / "cat" / "0.png").write_bytes(b"no image")
    domain = load_domain(f"imagefolder:{folder}")
    with pytest.raises(UserError, match="cat/0.png cannot be read") as caught:
        for part in (domain.train, domain.test):
            for i in range(len(part)):
                part[i]
    one_line(caught)


def test_a_source_without_labels_is_refused(tmp_path):
    for number in range(5):
        picture(tmp_path / f"{number}.png", 40)
    with pytest.raises(UserError, match="no labels"):
        load_domain_pair(f"imagefolder:{tmp_path}", "mnist")


def test_a_pair_is_shown_in_few_words():
    shown = repr(load_domain_pair("uci_digits", "mnist"))
    assert "ImageSet('uci_digits', 1437 images, with labels)" in shown and len(shown) < 2000
