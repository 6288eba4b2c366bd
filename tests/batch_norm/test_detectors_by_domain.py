"""Batch normalisation by domain for detectors: whose statistics are whose, in the step and in the files."""

from copy import deepcopy

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from transformers import AutoModelForObjectDetection

from metaalign_hf import MetaAlignForObjectDetection, UserError, adapt, load_config, load_detection_pair
from metaalign_hf.batch_norm import Rows, SourceStatistics, batch_statistics, running_statistics
from metaalign_hf.tasks.base import rows_of
from metaalign_hf.tasks.building import build_task
from metaalign_hf.tasks.detection.task import mix_detection
from tests.helpers.runs import TINY_DETECTION as TINY
from tests.helpers.tiny_detectors import tiny_detector


@pytest.fixture(scope="module")
def pair():
    whole = load_detection_pair("scenes_plain", "scenes_photo")
    views = ("source_train", "source_test", "target_train", "target_test_images", "target_evaluation")
    return type(whole)(**{**vars(whole), **{name: getattr(whole, name).subset(range(24)) for name in views}})


def seen_by(model: nn.Module, batches) -> dict[str, torch.Tensor]:
    """Statistics of the detector after these passes alone."""
    alone = deepcopy(model).train()
    for batch in batches:
        with torch.no_grad():
            alone(pixel_values=batch["pixel_values"])
    return running_statistics(alone.detector)


def assert_same(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert found.keys() == expected.keys() and any(".backbone." in f".{name}" for name in found)
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-4, atol=1e-5, msg=name)


@pytest.mark.parametrize("method", ["joint", "metaalign"])
def test_a_run_keeps_the_statistics_of_each_domain_apart(method, pair, tmp_path):
    """With a learning rate of nothing the statistics are a function of the images: those that each domain's gave."""
    options = {"coordination.method": method, "training.batch_norm": "per_domain", "optimizer.lr": 1e-30}
    options |= {"training.output_dir": str(tmp_path / "run"), "training.checkpoint_every": 7}
    config = load_config(TINY, options)
    torch.manual_seed(0)
    task = build_task(config, pair)
    start = deepcopy(task.model)
    source, target = task.streams(0, 0, 0, 1)
    first, adapted = [next(source) for _ in range(3)], [(next(source), next(target)) for _ in range(4)]
    adapt(config, pair=pair, model=deepcopy(start))

    saved = MetaAlignForObjectDetection.from_pretrained(tmp_path / "run")
    assert_same(running_statistics(saved.detector), seen_by(start, [*first, *(t for _, t in adapted)]))
    kept = SourceStatistics(saved)
    kept.load_state_dict(load_file(tmp_path / "run/checkpoints/step-000007/source_statistics.safetensors"))
    with kept.swapped_in(saved):
        assert_same(running_statistics(saved.detector), seen_by(start, [*first, *(s for s, _ in adapted)]))

    # What leaves the package is the target's: a plain detector, bit for bit.
    saved.export_native().save_pretrained(tmp_path / "plain")
    plain = AutoModelForObjectDetection.from_pretrained(tmp_path / "plain").eval()
    images = adapted[0][1]["pixel_values"]
    with torch.no_grad():
        ours, theirs = saved.eval()(pixel_values=images), plain(pixel_values=images)
    assert torch.equal(ours.logits, theirs.logits) and torch.equal(ours.pred_boxes, theirs.pred_boxes)
    with kept.swapped_in(saved), torch.no_grad():
        assert not torch.allclose(saved(pixel_values=images).logits, theirs.logits)


def test_both_domains_are_seen_as_in_passes_of_their_own():
    """What the detector says of a mixed batch, and its losses, against a pass on each domain alone."""
    torch.manual_seed(0)
    model = tiny_detector("rt_detr", num_denoising=0, dropout=0.0).train()
    source, target = torch.randn(3, 3, 64, 64), 2 * torch.randn(2, 3, 64, 64) + 1
    entry = {"class_labels": torch.tensor([1]), "boxes": torch.tensor([[0.5, 0.5, 0.2, 0.3]])}
    labels = [entry, entry, entry, None, None]
    alone = [deepcopy(model)(pixel_values=part).logits for part in (source, target)]
    loss = deepcopy(model)(pixel_values=source, labels=labels[:3], objective="task").task_loss
    statistics = batch_statistics("per_domain", model, True)
    statistics.begin_adaptation()
    mixed = torch.cat([source, target])
    with statistics.on_both(model, Rows(3, 5)):
        found = model(pixel_values=mixed).logits
        together = model(pixel_values=mixed, labels=labels, objective="task").task_loss
    torch.testing.assert_close(found, torch.cat(alone), rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(together, loss, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(model(pixel_values=mixed).logits, found, rtol=1e-2)


def test_a_joint_step_by_domain_shows_the_task_only_the_source(pair, tmp_path):
    """The task's loss and gradient are those of one forward on both domains, for half of its time."""
    options = {"training.batch_norm": "per_domain", "training.output_dir": str(tmp_path)}
    options["model.detector_options.num_denoising"] = 0
    task = build_task(load_config(TINY, options), pair)
    source, target = (next(stream) for stream in task.streams(0, 0, 0, 1))
    task.statistics.begin_adaptation()
    model = task.model.train()
    seen: list[int] = []
    model.detector.model.backbone.register_forward_pre_hook(lambda _, args: seen.append(len(args[0])))
    found, aligned = task.closures(model, [source], [target], 0.5).both[0]()
    assert seen == [4, 8] and float(aligned.detach()) > 0
    batch = mix_detection(source, target)
    with task.statistics.on_both(model, rows_of(source, batch)):
        expected = model(**batch, progress=0.5).task_loss
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    parameters = list(model.detector.model.backbone.parameters())
    gradients = [torch.autograd.grad(loss, parameters, allow_unused=True) for loss in (found, expected)]
    assert any(own is not None for own in gradients[0])
    for own, whole in zip(*gradients, strict=True):
        assert (own is None) == (whole is None)
        if own is not None:
            torch.testing.assert_close(own, whole, rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize(
    ("family", "options", "words"),
    [
        ("detr", {}, ["only batch normalisation whose statistics never move (DetrFrozenBatchNorm2d)", "auto"]),
        (
            "rt_detr",
            {"freeze_backbone_batch_norms": True},
            ["RTDetrFrozenBatchNorm2d", "model.detector_options: {freeze_backbone_batch_norms: false}"],
        ),
        ("yolos", {}, ["the model has no batch normalisation"]),
    ],
)
def test_frozen_batch_normalisation_is_refused(family, options, words):
    model = tiny_detector(family, **options)
    with pytest.raises(UserError) as refused:
        batch_statistics("per_domain", model, False)
    line = str(refused.value)
    assert "training.batch_norm: per_domain" in line and "\n" not in line and all(word in line for word in words), line
