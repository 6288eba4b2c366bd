"""Image lists with very many rows."""

import time
import tracemalloc

import pytest
from PIL import Image

from metaalign_hf import DomainConfig, UserError, load_domain


@pytest.fixture
def long_list(tmp_path):
    """100,000 rows on 200 files, of 20 classes."""
    rows = []
    for label in range(20):
        (tmp_path / f"class_{label}").mkdir()
        for number in range(10):
            (tmp_path / f"class_{label}" / f"{number}.jpg").touch()
        rows += [f"class_{label}/{number % 10}.jpg {label}" for number in range(5000)]
    (tmp_path / "list.txt").write_text("\n".join(rows) + "\n")
    return tmp_path / "list.txt"


def test_a_hundred_thousand_rows_load_at_once_and_small(long_list):
    load_domain(f"list:{long_list}")
    started = time.process_time()
    domain = load_domain(f"list:{long_list}")
    assert time.process_time() - started < 3.0
    assert len(domain.train) == 80_000 and domain.labels == [f"class_{label}" for label in range(20)]
    assert domain.train.paths[0].parent.name == domain.labels[domain.train.labels[0]]
    tracemalloc.start()
    again = load_domain(f"list:{long_list}")
    assert tracemalloc.get_traced_memory()[0] < 40e6, "400 bytes a row"
    assert again.test.paths == domain.test.paths
    tracemalloc.stop()


def test_a_missing_image_among_them_is_told_with_its_row(long_list):
    with long_list.open("a") as file:
        file.write("class_3/10.jpg 3\n")
    with pytest.raises(UserError, match=r"list\.txt, line 100001: image .*class_3/10\.jpg does not exist; set root"):
        load_domain(f"list:{long_list}")


def test_test_images_without_labels_beside_labelled_ones_are_told(tmp_path):
    for number in range(4):
        Image.new("RGB", (4, 4)).save(tmp_path / f"{number}.png")
    (tmp_path / "train.txt").write_text("0.png a\n1.png b\n")
    (tmp_path / "test.txt").write_text("2.png\n3.png\n")
    config = DomainConfig(kind="list", path=str(tmp_path / "train.txt"), test_path=str(tmp_path / "test.txt"))
    with pytest.raises(UserError, match=r"test\.txt has no labels, and .*train\.txt has$"):
        load_domain(config)
