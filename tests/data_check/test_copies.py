"""Copies are found where a picture was saved anew, and not where two pictures are alike."""

import io

import numpy as np
import torch
from PIL import Image, ImageEnhance
from torchvision.transforms.v2.functional import pil_to_tensor

from metaalign_hf.data import Domain, ImageSet
from metaalign_hf.data.images import TensorLoader
from metaalign_hf.data_check.copies import RADIUS, find_copies, perceptual_hashes
from metaalign_hf.data_check.reading import all_images, read_all
from metaalign_hf.evaluation.domain_distance import fit_linear, proxy_a_distance


def photo(number: int, size: int = 96) -> Image.Image:
    """A smooth picture, different for every number."""
    noise = np.random.default_rng(number).integers(0, 255, size=(7, 7, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize((size, size), Image.Resampling.BICUBIC)


def saved_anew(picture: Image.Image) -> Image.Image:
    """Smaller, brighter, and through a JPEG of low quality."""
    file = io.BytesIO()
    ImageEnhance.Brightness(picture.resize((70, 60))).enhance(1.1).save(file, "JPEG", quality=40)
    return Image.open(file)


def domain(name: str, pictures: list[Image.Image], test: int) -> Domain:
    class Loader:
        def __call__(self, index: int) -> torch.Tensor:
            return pil_to_tensor(pictures[index].convert("RGB"))

    images = ImageSet(name, len(pictures), Loader(), tuple(i % 2 for i in range(len(pictures))))
    cut = len(pictures) - test
    return Domain(name, ["a", "b"], images.subset(range(cut)), images.subset(range(cut, len(pictures))))


def test_a_picture_saved_anew_is_found_in_the_other_domain_and_the_same_one_within_a_domain():
    source = [photo(n) for n in range(20)]
    target = [photo(100 + n) for n in range(20)]
    target[3], target[19] = saved_anew(source[5]), target[0]
    seen = [
        read_all(all_images(domain(n, p, 4), r), None) for n, p, r in (("s", source, "source"), ("t", target, "target"))
    ]
    assert sorted(map(sorted, find_copies(seen).groups)) == [[(0, 5), (1, 3)], [(1, 0), (1, 19)]]


def test_digits_of_other_writers_are_no_copies():
    from metaalign_hf.data import load_digits_images

    images, labels = load_digits_images("mnist")
    one = images[torch.as_tensor(labels) == 1][:150]
    seen = read_all(
        all_images(Domain("ones", ["1"], ImageSet("ones", 150, TensorLoader(one)), ImageSet("no", 0, one)), "source"),
        None,
    )
    hashes = perceptual_hashes(seen.thumbnails)
    close = np.bitwise_count(hashes[:, None] ^ hashes[None]) <= RADIUS
    assert close.sum() > 150 + 20, "many of their hashes are alike"
    assert len([i for group in find_copies([seen]).groups for i in group]) < 6


def test_equal_domains_are_not_told_apart_and_disjoint_ones_are():
    numbers = torch.Generator().manual_seed(0)
    one, two, far = (torch.randn(120, 6, generator=numbers) for _ in range(3))
    assert proxy_a_distance(one, two)[0] < 0.4
    distance, share = proxy_a_distance(one, far + 8)
    assert (distance, share) == (2.0, 1.0)


def test_the_linear_classifier_minimises_what_it_says():
    numbers = torch.Generator().manual_seed(1)
    features, labels = torch.randn(60, 4, generator=numbers), torch.randint(3, (60,), generator=numbers)
    weight, bias = fit_linear(features, labels, 3, decay=0.1)
    weight, bias = weight.requires_grad_(), bias.requires_grad_()
    loss = torch.nn.functional.cross_entropy(features @ weight.T + bias, labels) + 0.05 * weight.square().sum()
    loss.backward()
    assert max(float(weight.grad.abs().max()), float(bias.grad.abs().max())) < 1e-4
