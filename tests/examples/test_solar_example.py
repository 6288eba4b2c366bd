"""The example on solar cells: real photographs and real ImageNet weights, both from pip."""

from importlib.util import find_spec
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import load_file
from torchvision.transforms.v2 import functional as F

from metaalign_hf import adapt, load_config
from metaalign_hf.data.images import read_image

ROOT = Path(__file__).parents[2]
CATS = range(281, 288)
"""ImageNet's tabby, tiger, Persian, Siamese and Egyptian cats, and two wild ones."""


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "benchmarks"))
        from imagenet_weights import write_imagenet_weights

        path = tmp_path_factory.mktemp("weights") / "runs" / "lite0.safetensors"
        return write_imagenet_weights("tf_efficientnet_lite0", path)


def test_the_weights_of_the_package_know_a_cat(weights):
    model = timm.create_model("tf_efficientnet_lite0").eval()
    model.load_state_dict(load_file(weights))
    image = read_image(Path(find_spec("skimage").origin).parent / "data" / "chelsea.png")
    pixels = F.center_crop(F.resize(image, [240]), [224]).float() / 127.5 - 1
    with torch.no_grad():
        probabilities = model(pixels.unsqueeze(0)).softmax(1)[0]
    assert int(probabilities.argmax()) in CATS and probabilities[CATS.start : CATS.stop].sum() > 0.9


def test_the_example_runs_from_these_weights(weights, tmp_path):
    overrides = {"training.output_dir": str(tmp_path / "run"), "model.pretrained": str(weights)}
    overrides |= {"training.source_steps": 1, "training.max_steps": 2, "training.batch_size": 2}
    overrides |= {"data.image_size": 32, "data.resize_size": 36, "training.selection_images": 32}
    summary = adapt(load_config(ROOT / "examples" / "solar.yaml", overrides))
    assert (summary.metric, summary.batch_norm, summary.target_test_images) == ("balanced_accuracy", "frozen", 274)
    assert summary.title == "test balanced accuracy" and summary.rows()[1][2] == summary.target_balanced_accuracy_after
