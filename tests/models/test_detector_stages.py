"""Stages of every detector family: what shares a group weight, and what takes the inner step of scope last_stage."""

import pytest

from metaalign_hf.coordination import find_stages
from tests.helpers.tiny_detectors import detector_settings, tiny_detector


@pytest.mark.parametrize("family", detector_settings())
def test_every_family_has_stages_and_the_alignment_heads_are_in_the_last(family):
    model = tiny_detector(family)
    stages = find_stages(model)
    found = [stage.name for stage in stages]
    if family == "yolos":
        assert found == ["stem", "stage1", "stage2", "stage3", "head"]
    else:
        encoder = [] if family in ("lw_detr", "rf_detr") else ["encoder"]
        assert found == ["backbone", *encoder, "decoder", "head"]
    names = [name for stage in stages for name in stage.parameters]
    assert sorted(names) == sorted(name for name, _ in model.named_parameters())
    assert any(name.startswith("alignment.") for name in stages[-1].parameters)
    assert not any(name.startswith("alignment.") for stage in stages[:-1] for name in stage.parameters)
