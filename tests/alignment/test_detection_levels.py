"""Alignment levels of detectors against independent computations; padding never counts."""

import math

import pytest
import torch
import torch.nn.functional as F

from metaalign_hf import UserError
from metaalign_hf.alignment.detection import (
    AlignmentLevel,
    DetectionAlignmentBatch,
    DetectorWidths,
    Level,
    build_levels,
    level_names,
    normalise_levels,
    register_level,
)

WIDTHS = DetectorWidths((6, 10), (8, 8), 8)
LEVELS = ["backbone_pixel", "backbone_global", "encoder", "query"]


def features(domains=(0, 0, 1, 1), masked=True, seed=0) -> DetectionAlignmentBatch:
    generator = torch.Generator().manual_seed(seed)

    def random(*shape):
        return torch.randn(*shape, generator=generator, requires_grad=True)

    size = len(domains)
    wide, narrow = torch.ones(size, 8, 8, dtype=torch.bool), torch.ones(size, 4, 4, dtype=torch.bool)
    wide[0, :, 5:], narrow[0, :, 3:] = False, False
    wide[-1, 6:], narrow[-1, 3:] = False, False
    masks = (wide, narrow) if masked else (None, None)
    tokens = [None if mask is None else mask.flatten(1) for mask in masks]
    return DetectionAlignmentBatch(
        maps=[Level(random(size, 6, 8, 8), masks[0]), Level(random(size, 10, 4, 4), masks[1])],
        encoder=[Level(random(size, 64, 8), tokens[0]), Level(random(size, 16, 8), tokens[1])],
        queries=random(size, 5, 8),
        objectness=torch.rand(size, 5, generator=generator),
        domain_labels=torch.tensor(domains),
    )


def build(spec) -> torch.nn.Module:
    torch.manual_seed(0)
    return build_levels(spec, WIDTHS).eval()


def test_pixel_is_the_least_squares_of_every_position():
    level, batch = build("backbone_pixel"), features(masked=False)
    d = level.levels["backbone_pixel"].discriminator(batch.maps[0].values).sigmoid()
    expected = 0.5 * (d[:2] ** 2).mean() + 0.5 * ((1 - d[2:]) ** 2).mean()
    torch.testing.assert_close(level(batch).loss, expected)


def test_global_is_the_focal_loss_of_the_image():
    level, batch = build({"name": "backbone_global", "gamma": 2.0}), features(masked=False)
    inner = level.levels["backbone_global"]
    x = batch.maps[1].values
    for convolution, norm in zip(inner.convolutions, inner.norms, strict=True):
        y = convolution(x)
        x = F.relu(F.layer_norm(y.permute(0, 2, 3, 1), y.shape[1:2], norm.weight, norm.bias).permute(0, 3, 1, 2))
    p = inner.output(x.mean((2, 3))).softmax(1)
    source = (-((1 - p[:2, 0]) ** 2) * p[:2, 0].log()).mean()
    target = (-((1 - p[2:, 1]) ** 2) * p[2:, 1].log()).mean()
    torch.testing.assert_close(level(batch).loss, (source + target) / 2)


def test_encoder_is_the_mean_over_levels_of_each_levels_mean():
    level, batch = build("encoder"), features(masked=False)
    losses = []
    for discriminator, tokens in zip(level.levels["encoder"].discriminators, batch.encoder, strict=True):
        logits = discriminator(tokens.values)
        losses.append(
            0.5 * F.binary_cross_entropy_with_logits(logits[:2], torch.ones(2, tokens.values.shape[1]))
            + 0.5 * F.binary_cross_entropy_with_logits(logits[2:], torch.zeros(2, tokens.values.shape[1]))
        )
    torch.testing.assert_close(level(batch).loss, torch.stack(losses).mean())


def test_queries_are_weighted_by_objectness_when_asked():
    batch = features()
    level = build({"name": "query", "objectness_weights": True})
    logits = level.levels["query"].discriminator(batch.queries)
    is_source = torch.tensor([1.0, 1.0, 0.0, 0.0])[:, None].expand_as(logits)
    errors = F.binary_cross_entropy_with_logits(logits, is_source, reduction="none")
    images = (errors * batch.objectness).sum(1) / batch.objectness.sum(1)
    torch.testing.assert_close(level(batch).loss, (images[:2].mean() + images[2:].mean()) / 2)
    plain = build("query")(batch).loss
    torch.testing.assert_close(plain, (errors[:2].mean() + errors[2:].mean()) / 2)


@pytest.mark.parametrize("name", LEVELS)
def test_padding_never_counts(name):
    level, batch = build(name), features()
    loss = level(batch).loss
    loss.backward()
    for entry in [*batch.maps, *batch.encoder]:
        if entry.values.grad is None:
            continue
        by_position = entry.values.grad.abs().sum(1 if entry.values.ndim == 4 else 2)
        assert by_position[~entry.mask].max() == 0 and by_position[entry.mask].min() > 0
    with torch.no_grad():
        for entry in [*batch.maps, *batch.encoder]:
            mask = entry.mask[:, None] if entry.values.ndim == 4 else entry.mask[..., None]
            entry.values.copy_(torch.where(mask, entry.values, torch.full_like(entry.values, 1e3)))
    assert torch.equal(level(batch).loss, loss)


@pytest.mark.parametrize("name", ["backbone_pixel", "backbone_global"])
def test_a_wider_canvas_changes_nothing(name):
    level, batch = build(name), features()
    loss = level(batch).loss
    for entry in batch.maps:
        entry.values = F.pad(entry.values, (0, 3, 0, 5), value=7.0)
        entry.mask = F.pad(entry.mask, (0, 3, 0, 5))
    torch.testing.assert_close(level(batch).loss, loss)


@pytest.mark.parametrize("name", LEVELS)
def test_the_features_climb_what_the_discriminator_descends(name):
    """Gradient reversal: at full progress the features' gradient is minus that of the loss; at progress 0 it is 0."""
    level, batch = build({"name": name, "ceiling": 1.0}), features(masked=False)

    def gradients(progress):
        batch.progress = progress
        inputs = [e.values for e in [*batch.maps, *batch.encoder]] + [batch.queries]
        found = torch.autograd.grad(level(batch).loss, inputs, allow_unused=True)
        return next(g for g in found if g is not None), next(iter(batch_inputs(found, inputs)))

    reversed_gradient, x = gradients(1.0)
    assert gradients(0.0)[0].abs().max() == 0
    before = level(batch).loss
    with torch.no_grad():
        x += reversed_gradient / reversed_gradient.norm() * -0.1  # one step of gradient descent on the features
    assert level(batch).loss > before


def batch_inputs(found, inputs):
    return [x for g, x in zip(found, inputs, strict=True) if g is not None]


def test_images_count_the_same_however_padded():
    """The domain mean is over images, not over positions."""
    level, batch = build("encoder"), features()
    loss = level(batch).loss
    alone = []
    for source, target in ((0, 2), (0, 3), (1, 2), (1, 3)):
        rows = [source, target]
        picked = DetectionAlignmentBatch(
            maps=[Level(e.values[rows], e.mask[rows]) for e in batch.maps],
            encoder=[Level(e.values[rows], e.mask[rows]) for e in batch.encoder],
            queries=batch.queries[rows],
            objectness=batch.objectness[rows],
            domain_labels=torch.tensor([0, 1]),
        )
        alone.append(level(picked).loss)
    torch.testing.assert_close(loss, torch.stack(alone).mean())


def test_levels_and_presets_add_up_with_their_weights():
    assert set(level_names()) == {*LEVELS, "swda", "detr"}
    spelled = normalise_levels({"name": "detr", "weight": 2})
    assert spelled == [
        {"name": "backbone_global", "weight": 0.2},
        {"name": "encoder", "weight": 0.2},
        {"name": "query", "weight": 0.2},
    ]
    assert normalise_levels(normalise_levels("swda")) == normalise_levels("swda")
    assert [entry["name"] for entry in normalise_levels(["swda", "query"])] == [*LEVELS[:2], "query"]
    both = build([{"name": "encoder", "weight": 0.5}, {"name": "query", "weight": 3.0}])
    output = both(features())
    assert set(output.parts) == {
        f"{name}/{part}" for name in ("encoder", "query") for part in ("domain_loss", "domain_accuracy")
    }
    expected = 0.5 * output.parts["encoder/domain_loss"] + 3.0 * output.parts["query/domain_loss"]
    torch.testing.assert_close(output.loss.detach(), expected)


def test_a_level_of_ones_own_can_be_registered():
    @register_level("mean_query_distance")
    class MeanQueryDistance(AlignmentLevel):
        def forward(self, batch):
            from metaalign_hf.alignment import AlignmentOutput

            source = batch.domain_labels == 0
            return AlignmentOutput((batch.queries[source].mean(0) - batch.queries[~source].mean(0)).square().sum())

    try:
        assert build("mean_query_distance")(features()).loss > 0
        with pytest.raises(ValueError, match="registered already"):
            register_level("query")(MeanQueryDistance)
    finally:
        from metaalign_hf.alignment.detection import base

        del base._LEVELS["mean_query_distance"]


@pytest.mark.parametrize("name", LEVELS)
def test_a_batch_of_one_domain_is_refused(name):
    with pytest.raises(UserError, match=f"alignment {name}: the batch has no target image"):
        build(name)(features((0, 0)))


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"name": "backbone_global", "gamma": -1}, "gamma"),
        ({"name": "encoder", "hidden": 0}, "hidden"),
        ({"name": "query", "weight": math.inf}, "weight"),
        ({"name": "swda", "weight": "much"}, "weight"),
        (3, "must be a name"),
    ],
)
def test_bad_levels_are_told_in_one_line(spec, message):
    with pytest.raises(UserError, match=message) as caught:
        build_levels(spec, WIDTHS)
    assert "\n" not in str(caught.value)
