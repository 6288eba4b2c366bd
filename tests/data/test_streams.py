"""Streams and preprocessing: pure functions of the seed and the batch number, and equal to the saved processor."""

import itertools

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoImageProcessor

from metaalign_hf import UserError, load_domain
from metaalign_hf.data import augment, batch_indices, evaluation_batches, training_stream
from metaalign_hf.models import build_image_processor

MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.3, 0.4)


@pytest.fixture(scope="module")
def digits():
    return load_domain("uci_digits").train


def take(count, *args, **kwargs):
    return list(itertools.islice(training_stream(*args, **kwargs), count))


def same(first, second):
    return all(torch.equal(a[key], b[key]) for a, b in zip(first, second, strict=True) for key in a)


@pytest.mark.parametrize("augmentation", ["none", "crop", "crop_flip"])
def test_starting_late_is_never_stopping(digits, augmentation):
    processor = build_image_processor(28, 32, MEAN, STD)
    arguments = {"batch_size": 8, "seed": 3, "augmentation": augmentation}
    whole = take(6, digits, processor, **arguments)
    assert same(whole[4:], take(2, digits, processor, start_batch=4, **arguments))
    assert not same(whole[:1], take(1, digits, processor, batch_size=8, seed=4, augmentation=augmentation))


def test_workers_change_nothing(digits):
    processor = build_image_processor(28, 32, MEAN, STD)
    alone = take(3, digits, processor, batch_size=8, seed=3)
    assert same(alone, take(3, digits, processor, batch_size=8, seed=3, num_workers=2))


def test_streams_do_not_touch_the_global_random_numbers(digits):
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    take(2, digits, build_image_processor(28, 32, MEAN, STD), batch_size=8, seed=3)
    assert torch.equal(torch.rand(3), expected)


def test_every_image_comes_once_in_each_pass():
    seen = [i for batch in range(10) for i in batch_indices(25, 10, 0, batch)]
    passes = [seen[start : start + 25] for start in range(0, 100, 25)]
    assert all(sorted(order) == list(range(25)) for order in passes)
    assert passes[0] != passes[1], "each pass has an order of its own"


def test_two_processes_see_the_images_of_one(digits):
    processor = build_image_processor(28, 32, MEAN, STD)
    arguments = {"seed": 3, "augmentation": "none"}
    one = take(2, digits, processor, batch_size=8, **arguments)
    two = [take(2, digits, processor, batch_size=4, rank=rank, world_size=2, **arguments) for rank in (0, 1)]
    for whole, *parts in zip(one, *two, strict=True):
        assert torch.equal(whole["labels"], torch.cat([part["labels"] for part in parts]))
        assert torch.equal(whole["pixel_values"], torch.cat([part["pixel_values"] for part in parts]))


def test_a_batch_larger_than_the_domain_is_refused(digits):
    small = digits.subset(range(5))
    with pytest.raises(UserError, match=r"uci_digits has 5 training images, fewer than a batch of 8"):
        training_stream(small, build_image_processor(28, 32, MEAN, STD), batch_size=8, seed=0)


def test_evaluation_is_the_saved_image_processor(tmp_path):
    rng = np.random.default_rng(0)
    pictures = [Image.fromarray(rng.integers(0, 255, (h, w, 3), dtype=np.uint8)) for h, w in ((40, 60), (33, 20))]
    for index, picture in enumerate(pictures):
        (tmp_path / "images").mkdir(exist_ok=True)
        picture.save(tmp_path / "images" / f"{index}.png")
    from metaalign_hf.data import image_files

    processor = build_image_processor(24, 30, MEAN, STD)
    processor.save_pretrained(tmp_path)
    reloaded = AutoImageProcessor.from_pretrained(tmp_path)
    expected = reloaded(pictures, return_tensors="pt")["pixel_values"]
    (batch,) = evaluation_batches(image_files([tmp_path / "images"]), processor, 8)
    assert batch["pixel_values"].shape == (2, 3, 24, 24)
    torch.testing.assert_close(batch["pixel_values"], expected)


def test_the_training_crop_is_the_evaluation_crop_where_nothing_is_random(digits):
    images = [digits[i] for i in range(4)]
    processor = build_image_processor(40, 40, MEAN, STD)  # no room for a random crop
    plain = augment(images, processor, "none", np.random.default_rng(0))
    cropped = augment(images, processor, "crop", np.random.default_rng(0))
    torch.testing.assert_close(plain, cropped, rtol=0, atol=1e-5)


def test_evaluation_shards_cover_all_images(digits):
    part = digits.subset(range(11))
    processor = build_image_processor(28, 32, MEAN, STD)
    labels = [
        label
        for rank in (0, 1)
        for batch in evaluation_batches(part, processor, 3, rank=rank, world_size=2)
        for label in batch["labels"].tolist()
    ]
    assert sorted(labels) == sorted(part.labels)


def test_a_crop_larger_than_the_square_is_refused():
    with pytest.raises(UserError, match="image_size"):
        build_image_processor(64, 32, MEAN, STD)
