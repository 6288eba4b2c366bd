"""A target loss beside a classifier's: one more term of the task objective, whatever the coordinator."""

import pytest
import torch
import torch.nn.functional as F

from metaalign_hf import load_config
from metaalign_hf.coordination import Joint, MetaAlign
from metaalign_hf.target_losses import TargetLoss, TargetStep, with_target_losses
from metaalign_hf.tasks.building import build_task
from tests.helpers.runs import TINY


class Taught(TargetLoss):
    """The loss on the teacher's classes, and how sure it was."""

    name = "taught"

    def passes(self, step: TargetStep) -> tuple[list, dict]:
        with torch.no_grad():
            sure = [step.teacher(batch["pixel_values"]).logits.softmax(1).max(1) for batch in step.target]
        views = [{**batch, "labels": found.indices} for batch, found in zip(step.target, sure, strict=True)]
        passes = [step.task_pass(source, view) for source, view in zip(step.source, views, strict=True)]
        return passes, {"sure": float(torch.cat([found.values for found in sure]).mean())}


@pytest.mark.parametrize("live", [False, True])
def test_a_classifiers_task_loss_is_the_sources_plus_the_weighted_one_on_the_target(live):
    torch.manual_seed(0)
    task = build_task(load_config(TINY))
    model = task.model.train(live)
    for layer in model.modules():
        if isinstance(layer, torch.nn.Dropout):
            layer.eval()
    batches = [[next(stream) for _ in range(2)] for stream in task.streams(0, 0, 0, 1)]
    source, target = batches
    teacher = build_task(load_config(TINY), task.pair).model.eval()
    step = TargetStep(model, teacher, source, target, 0.5, lambda s, v: task.target_pass(model, s, v))
    closures, figures = with_target_losses(task.closures(model, source, target, 0.5), [Taught(0.3)], step)
    assert 0.1 <= figures["sure"] <= 1
    before = {name: value.clone() for name, value in model.named_buffers()}

    def loss(s: dict, t: dict, of_target: bool) -> torch.Tensor:
        logits = model(torch.cat([s["pixel_values"], t["pixel_values"]])).logits
        count = len(s["labels"])
        if not of_target:
            return F.cross_entropy(logits[:count], s["labels"])
        with torch.no_grad():
            labels = teacher(t["pixel_values"]).logits.argmax(1)
        return F.cross_entropy(logits[count:], labels)

    pairs = list(zip(source, target, strict=True))
    expected = sum(loss(s, t, False) + 0.3 * loss(s, t, True) for s, t in pairs) / 2
    parameters = list(model.parameters())
    gradients = torch.autograd.grad(expected, parameters, allow_unused=True)
    aligned = torch.autograd.grad(sum(run() for run in closures.alignment) / 2, parameters, allow_unused=True)
    model.load_state_dict(before, strict=False)
    for run in closures.task:
        run()
    assert all(torch.equal(before[name], value) for name, value in model.named_buffers()), "statistics stay"
    optimizer = torch.optim.SGD(parameters, lr=0.1)
    for coordinator in (Joint(optimizer), MetaAlign(optimizer, inner_lr=0.0)):
        both = closures.both if type(coordinator) is Joint else ()
        report = coordinator.backward(closures.task, closures.alignment, both=both)
        torch.testing.assert_close(report.task_loss, expected.detach(), rtol=1e-4, atol=1e-5)
        for p, *parts in zip(parameters, gradients, aligned, strict=True):
            total = sum((g for g in parts if g is not None), torch.zeros_like(p))
            found = torch.zeros_like(p) if p.grad is None else p.grad
            torch.testing.assert_close(found, total, rtol=1e-3, atol=1e-4)
