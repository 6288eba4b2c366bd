"""Image lists with very many rows."""

import os
import sys
import time
import tracemalloc

import numpy as np
import pytest
from PIL import Image

from metaalign_hf import DomainConfig, UserError, load_domain
from metaalign_hf.data import batch_indices


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


def test_four_times_the_files_take_four_times_as_long_and_none_is_opened(tmp_path):
    opened = []
    # A hook cannot be taken away again: afterwards it adds names to a list that nobody reads.
    sys.addaudithook(lambda event, args: opened.append(args[0]) if event == "open" else None)
    seconds = {}
    for count in (5_000, 20_000):
        folder = tmp_path / str(count)
        names = [f"class_{number % 20}/{number}.jpg" for number in range(count)]
        for name in names[:20]:
            (folder / name).parent.mkdir(parents=True)
        for name in names:
            os.close(os.open(folder / name, os.O_CREAT))
        (folder / "list.txt").write_text("".join(f"{name} {number % 20}\n" for number, name in enumerate(names)))
        opened.clear()
        seconds[count] = min(
            _processor_time(lambda folder=folder: load_domain(f"list:{folder}/list.txt")) for _ in "12"
        )
        assert f"{folder}/list.txt" in map(str, opened), "the hook hears of the list"
        assert not [name for name in map(str, opened) if name.endswith(".jpg")]
    assert seconds[20_000] < 9 * seconds[5_000], "16 times, if it were quadratic"


def _processor_time(action) -> float:
    started = time.process_time()
    action()
    return time.process_time() - started


def test_drawing_a_batch_of_very_many_images_does_not_draw_their_whole_order_again():
    images = 1_000_000
    order = np.random.default_rng([3, 0]).permutation(images)
    anew = min(_processor_time(lambda: np.random.default_rng([3, 0]).permutation(images)) for _ in "123")
    batch_indices(images, 16, 3, 0)
    taken = _processor_time(lambda: [batch_indices(images, 16, 3, batch) for batch in range(200)])
    assert batch_indices(images, 16, 3, 199) == order[199 * 16 : 200 * 16].tolist()
    assert taken < 20 * anew, "200 times, if every batch drew it"
