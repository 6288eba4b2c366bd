"""A share of the task gradient: what is measured, what is scaled, and a run that does both."""

import math

import pytest
import torch

from metaalign_hf import MetaAlignForImageClassification
from metaalign_hf.coordination import AlignmentShare, Joint, SharedPrefix, find_stages
from tests.helpers.networks import Classifier, conv_net
from tests.helpers.runs import lines, train, weights
from tests.helpers.steps import closures
from tests.helpers.tiny_detectors import tiny_detector


def test_the_scale_follows_means_of_the_last_measurements():
    share = AlignmentShare(0.25)
    assert share.scale == 0 and share.due(7)
    share.take(math.nan, 1.0)
    share.take(1.0, math.inf)
    assert share.scale == 0 and share.due(7)
    for task, alignment in ((8.0, 2.0), (4.0, 4.0), (6.0, 0.0)):
        share.take(task, alignment)
    assert share.scale == pytest.approx(0.25 * 6.0 / 2.0)
    assert [step for step in range(61) if share.due(step)] == [0, 1, 2, 4, 8, 16, 20, 40, 60]
    again = AlignmentShare(0.25)
    again.load_state_dict(share.state_dict())
    for one in (share, again):
        for _ in range(30):
            one.take(10.0, 5.0)
    assert share.scale == again.scale == pytest.approx(0.25 * 10 / 5, rel=1e-2)
    for wrong in (0.0, -1.0, math.nan, math.inf):
        with pytest.raises(ValueError, match="alignment_share"):
            AlignmentShare(wrong)


@pytest.mark.parametrize("parts", [1, 2])
def test_norms_are_over_what_both_objectives_reach_and_nothing_changes(parts):
    torch.manual_seed(0)
    model = Classifier(torch.nn.Sequential(conv_net(), torch.nn.Identity()))
    model.backbone.add_module("norm", torch.nn.BatchNorm1d(model.classifier.in_features))
    setting = model, torch.randn(8, 3, 16, 16), torch.tensor([0, 1, 2, 1]), torch.tensor([1.0] * 4 + [0.0] * 4)
    task, alignment = closures(setting)
    wanted = []
    for (closure,) in (task, alignment):
        model.zero_grad()
        closure().backward()
        wanted.append(torch.cat([p.grad.flatten() for p in model.backbone.parameters()]).norm().item())
    model.zero_grad()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    coordinator = Joint(torch.optim.SGD(model.parameters(), lr=1.0), module=model)
    assert coordinator.shared_norms(task * parts, alignment * parts) == pytest.approx(wanted, rel=1e-5)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())
    for parameter in model.backbone.parameters():
        parameter.requires_grad = False
    with pytest.raises(ValueError, match="alignment_share: task and alignment train no parameter together"):
        coordinator.shared_norms(task, alignment)


def test_behind_a_shared_prefix_the_norms_are_those_of_the_last_stage():
    torch.manual_seed(0)
    model, images, domains = Classifier(conv_net()), torch.randn(8, 3, 16, 16), torch.tensor([1.0] * 4 + [0.0] * 4)
    labels = torch.tensor([0, 1, 2, 1])
    entry = [stage for stage in find_stages(model) if stage.entry is not None][-1].entry
    prefix = SharedPrefix(model, entry)

    def task():
        with prefix.run(slice(4)):
            return model(images, labels, "task")

    def alignment():
        with prefix.run():
            return model(images, domains, "alignment")

    found = Joint(torch.optim.SGD(model.parameters(), lr=1.0), module=model).shared_norms([task], [alignment], [prefix])
    alone = (lambda: model.task(images[:4], labels), lambda: model.alignment(images, domains))
    for norm, loss in zip(found, alone, strict=True):
        model.zero_grad()
        loss().backward()
        own = [p.grad.flatten() for p in entry.parameters()]
        assert norm == pytest.approx(torch.cat(own).norm().item(), rel=1e-5)


def classifier(alignment):
    backbone = {"model_type": "resnet", "embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1]}
    return MetaAlignForImageClassification.from_backbone(
        {**backbone, "layer_type": "basic"}, ["a", "b", "c"], alignment, pretrained=False
    )


MODELS = {
    "dann": lambda: classifier("dann"),
    "cdan": lambda: classifier("cdan"),
    "gvb": lambda: classifier("gvb"),
    "coral": lambda: classifier("coral"),
    "every level": lambda: tiny_detector("rt_detr", ["backbone_pixel", "backbone_global", "encoder", "query"]),
}


@pytest.mark.parametrize("name", MODELS)
def test_what_alignment_sends_into_the_network_is_scaled_and_its_heads_learn_as_ever(name):
    torch.manual_seed(0)
    model = MODELS[name]().double().eval()
    images, domains = torch.randn(4, 3, 64, 64).double(), torch.tensor([0, 0, 1, 1])
    found = []
    for scale in (None, torch.tensor(3.0)):
        model.alignment_scale = scale
        model.zero_grad()
        torch.manual_seed(1)
        model(images, domain_labels=domains, progress=0.5, objective="alignment").alignment_loss.backward()
        found.append({key: p.grad.clone() for key, p in model.named_parameters() if p.grad is not None})
    plain, scaled = found
    heads = set(model.parameter_roles()["discriminator"])
    assert plain.keys() == scaled.keys() and len(plain.keys() - heads) > 5
    for key, gradient in plain.items():
        if key.startswith("alignment.") and key not in heads:
            continue  # GVB's bridge stands in the loss itself as well as in the logits
        torch.testing.assert_close(scaled[key], gradient * (1 if key in heads else 3), rtol=1e-6, atol=1e-12, msg=key)


PLAIN = ["--coordination.inner_lr", "0", "--training.source_steps", "0", "--model.alignment", "mcc"]


def test_a_run_with_a_share_has_an_alignment_gradient_of_that_length(tmp_path):
    train(tmp_path / "run", *PLAIN, "--coordination.alignment_share", "0.25")
    first, second, *_ = [line for line in lines(tmp_path / "run") if line.get("phase") == "adaptation"]
    assert first["alignment_gradient_norm"] == pytest.approx(0.25 * first["task_gradient_norm"], rel=1e-4)
    assert first["alignment_scale"] > 0 and second["alignment_scale"] != first["alignment_scale"]
    train(tmp_path / "plain", *PLAIN)
    assert "alignment_scale" not in lines(tmp_path / "plain")[-2]
    assert weights(tmp_path / "run").keys() == weights(tmp_path / "plain").keys()
