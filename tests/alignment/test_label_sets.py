"""OSBP, and PADA as docs/objectives.md registers it and as benchmarks/label_sets.py runs it, against formulas."""

import re
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from metaalign_hf import AlignmentObjective, AlignmentOutput, register_alignment
from metaalign_hf.alignment import AlignmentBatch, build_alignment, reversal_strength

ROOT = Path(__file__).parents[2]
LABELS = torch.tensor([0, 1, 2, 3, 0, -100, -100, -100])
DOMAINS = torch.tensor([0, 0, 0, 0, 0, 1, 1, 1])


@pytest.fixture(scope="module", autouse=True)
def registered():
    """The class of the page, and those of the benchmark."""
    page = (ROOT / "docs" / "objectives.md").read_text().partition("## Other label sets")[2]
    names = {"AlignmentObjective": AlignmentObjective, "AlignmentOutput": AlignmentOutput, "__name__": "page"}
    names["register_alignment"] = register_alignment
    for block in re.findall(r"^```python\n(.*?)^```", page, re.DOTALL | re.MULTILINE):
        exec(block, names)
    sys.path.insert(0, str(ROOT / "benchmarks"))
    import label_set_objectives  # noqa: F401


def batch(progress: float = 0.4) -> tuple[AlignmentBatch, torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    features, weight = torch.randn(8, 6, requires_grad=True), torch.randn(4, 6, requires_grad=True)
    return AlignmentBatch(features, features @ weight.T, DOMAINS, progress, LABELS, weight), features, weight


def discriminator(objective: torch.nn.Module, features: torch.Tensor) -> torch.Tensor:
    return next(iter(objective.objectives.values())).discriminator(features)[0]


@pytest.mark.parametrize("name", ["pada", "partial_dann"])
def test_class_weights_reach_both_losses(name):
    given, features, weight = batch()
    objective = build_alignment({"name": name, "hidden": 5}, 6, 4).eval()
    mean = torch.tensor([0.7, 0.2, 0.1, 0.0])
    next(iter(objective.objectives.values())).mean.copy_(mean)
    task = F.cross_entropy(given.logits[:5], LABELS[:5])
    found = torch.autograd.grad(task + objective(given).loss, (features, weight))

    w = (4 * mean).clamp_min(1e-6)[LABELS[:5]]
    errors = F.softplus(torch.where(DOMAINS == 0, -1, 1) * discriminator(objective, features))
    source = (w * errors[:5]).mean() if name == "pada" else (w * errors[:5]).sum() / w.sum()
    aligned = (source + errors[5:].mean()) / 2
    weighted = (w * F.cross_entropy(features[:5] @ weight.T, LABELS[:5], reduction="none")).mean()
    plain = torch.autograd.grad(weighted, (features, weight))
    adversarial = torch.autograd.grad(aligned, features)[0]
    torch.testing.assert_close(found[0], plain[0] - reversal_strength(0.4) * adversarial)
    torch.testing.assert_close(found[1], plain[1])


@pytest.mark.parametrize("conditional", [False, True])
def test_even_weights_are_the_plain_objective(conditional):
    name = "cdan" if conditional else "dann"
    given, _, _ = batch()
    plain = build_alignment({"name": name, "hidden": 5}, 6, 4).eval()
    weighted = build_alignment({"name": f"partial_{name}", "hidden": 5}, 6, 4).eval()
    weights = {key.replace(f".{name}.", f".partial_{name}."): value for key, value in plain.state_dict().items()}
    weighted.load_state_dict(weights, strict=False)
    torch.testing.assert_close(weighted(given).loss, plain(given).loss)


def test_weights_follow_what_the_target_is_said_to_be():
    given, _, _ = batch()
    objective = build_alignment({"name": "pada", "hidden": 5}, 6, 4)
    said = given.logits[5:].softmax(1).mean(0).detach()
    for _ in range(200):
        objective(given)
    torch.testing.assert_close(objective.objectives["pada"].mean, said, atol=0.02, rtol=0)
    before = objective.eval().objectives["pada"].mean.clone()
    objective(given)
    torch.testing.assert_close(objective.objectives["pada"].mean, before, atol=0, rtol=0)


def test_the_features_learn_against_what_the_classifier_learns():
    given, features, weight = batch()
    found = torch.autograd.grad(build_alignment("osbp", 6, 4)(given).loss, (features, weight))
    q = (features[5:] @ weight.T).softmax(1)[:, -1]
    written = torch.autograd.grad(-(q.log() + (1 - q).log()).mean() / 2, (features, weight))
    torch.testing.assert_close(found[0], -reversal_strength(0.4) * written[0])
    torch.testing.assert_close(found[1], written[1])
