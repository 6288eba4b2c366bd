"""Whole runs of two processes whose model accelerate shards (FSDP2), against the same runs of whole models."""

import pytest
import torch
from transformers import AutoImageProcessor, AutoModelForImageClassification

from tests.helpers.runs import TINY, lines, two_runs, weights
from tests.helpers.squares import write_squares

SMALL = "{hidden_size: 16, num_hidden_layers: 2, num_attention_heads: 2, intermediate_size: 32, image_size: 16, "
SMALL += "patch_size: 8}"
STEP_FROM_MEMORY = ["--coordination.direction", "remembered", "--training.evaluate_every", "2"]
NAMES = ("source", "target")
CELLS = {
    "fresh": (TINY, [], {}),
    "remembered": (
        TINY,
        [*STEP_FROM_MEMORY, "--training.max_grad_norm", "0.5", "--training.gradient_accumulation_steps", "2"],
        {},
    ),
    "layers apart": (
        TINY,
        ["--model.backbone", "vit", "--model.backbone_options", SMALL, *STEP_FROM_MEMORY],
        {"FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP"},
    ),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """With a domain pair for the last cell: of five test images one process evaluates three, and the other two."""
    folder = tmp_path_factory.mktemp("sharded")
    write_squares(folder)
    for shape, kept in (("left", 3), ("right", 2)):
        for file in sorted((folder / "tests" / shape).iterdir())[kept:]:
            file.unlink()
    domains = [f"{{kind: imagefolder, path: {folder / name}, test_path: {folder / 'tests'}}}" for name in NAMES]
    _, options, _ = CELLS["layers apart"]
    options += ["--data.source", domains[0], "--data.target", domains[1], "--training.evaluation_batch_size", "1"]
    return folder


@pytest.mark.slow
def test_sharded_runs_stopped_after_every_step_are_those_that_never_stopped(folder):
    said = two_runs(folder, CELLS, "fresh/whole")
    assert said.count("stopped 10 times") == 3 and "accelerate's own checkpoint holds" in said


@pytest.mark.slow
def test_they_are_the_runs_of_whole_models(folder):
    """To the bit, where a step holds no sum over the elements of a tensor.

    Two processes average their gradients as (a + b) / 2: two numbers have one sum, and halving is exact, so the
    all-reduce of DDP and the reduce-scatter of FSDP2 give the same bits, and so does the step, element by element.

    The step from memory and clipping divide by norms, sums of n squares that shards add up in another order. Each order
    errs by at most n u of the sum, u = 2^-24, so that two norms differ by n u at most; that is then the share by which
    inner steps and clipped steps differ, and the weights by no more than that of the largest of them.
    """
    for name in CELLS:
        sharded, whole = (weights(folder / name / run) for run in ("whole", "in one piece"))
        assert sharded.keys() == whole.keys()
        share = 0.0 if name == "fresh" else sum(value.numel() for value in whole.values()) * 2**-24
        largest = max(float(value.abs().max()) for value in whole.values() if value.is_floating_point())
        for key, value in whole.items():
            error = float((sharded[key].double() - value.double()).abs().max())
            assert error <= share * largest, (name, key, error)
        logged = [lines(folder / name / run) for run in ("whole", "in one piece")]
        for mine, other in zip(*logged, strict=True):
            assert mine.keys() == other.keys()
            for key, value in other.items():
                near = 1e-3 if key.startswith("validator_") else 2e-5
                wanted = pytest.approx(value, rel=near, abs=1e-6) if isinstance(value, float) else value
                assert mine[key] == wanted, (name, key)


@pytest.mark.slow
def test_the_gathered_model_is_one_that_loads_anywhere(folder):
    models = [
        AutoModelForImageClassification.from_pretrained(folder / "fresh" / run) for run in ("whole", "in one piece")
    ]
    processor = AutoImageProcessor.from_pretrained(folder / "fresh" / "whole")
    images = torch.randint(0, 256, (4, 3, 16, 16), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    inputs = processor(list(images), return_tensors="pt")
    with torch.no_grad():
        first, second = (model.eval()(**inputs).logits for model in models)
    assert torch.equal(first, second) and first.shape == (4, 10)
