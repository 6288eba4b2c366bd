"""A model and a pair that are given to `adapt` speak for themselves; the configuration beside them describes others."""

from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from huggingface_hub import ModelCard

from metaalign_hf import MetaAlignForImageClassification, adapt, load_config, load_domain_pair
from metaalign_hf.cli import run
from metaalign_hf.models.origin import checkpoint_origin, is_pretrained, weights_origin
from tests.helpers.runs import TINY

NET = {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1], "layer_type": "basic"}
OTHER_MODEL = {"model.backbone": "timm/resnet50.a1_in1k", "model.pretrained": True, "model.backbone_options": {}}
SHORT = {"training.source_steps": 0, "training.max_steps": 1, "training.select_by": None}


def net(labels: list[str], **options: object) -> MetaAlignForImageClassification:
    return MetaAlignForImageClassification.from_backbone(
        "resnet", labels, "dann", **{"pretrained": False, **options}, **NET
    )


@pytest.fixture(scope="module")
def pair():
    whole = load_domain_pair("uci_digits", "mnist_m")
    views = ("source_test", "target_test_images", "target_evaluation")
    return replace(whole, **{name: getattr(whole, name).subset(range(100)) for name in views})


def adapted(pair, output: Path, model=None):
    config = load_config(TINY, {**OTHER_MODEL, **SHORT, "training.output_dir": str(output)})
    return adapt(config, pair=pair, model=model or net(pair.labels))


def test_the_run_records_what_the_objects_say(pair, tmp_path, capsys):
    output = tmp_path / "run"
    summary = adapted(pair, output)
    assert summary.batch_norm == "mixed", "the random statistics of a model from scratch are not frozen"
    assert summary.target == "mnist_m" and "--data mnist_m" in (summary.evaluate_command or "")
    record = yaml.safe_load((output / "training_config.yaml").read_text())
    assert record["data"]["target"]["name"] == "mnist_m" and record["model"]["backbone"] is None
    card = (output / "README.md").read_text()
    assert ModelCard(card).data.base_model is None and "resnet50" not in card
    assert "but not the model: they were given from" in card
    capsys.readouterr()
    assert run(["train", "--config", str(output / "training_config.yaml"), "--training.output_dir", "x"]) == 2
    assert "model.backbone is null" in capsys.readouterr().err, "the file alone does not repeat the run"


def test_of_a_pair_made_by_hand_the_record_says_that_its_domains_are_not_known(pair, tmp_path, capsys):
    output = tmp_path / "run"
    by_hand = replace(pair, source_name="studio", target_name="warehouse", domains=None)
    summary = adapted(by_hand, output)
    assert summary.evaluate_command is None and summary.target_accuracy_after is not None
    assert "metaalign evaluate" not in capsys.readouterr().out
    record = yaml.safe_load((output / "training_config.yaml").read_text())
    assert record["data"]["source"] is None and record["data"]["target"] is None
    card = (output / "README.md").read_text()
    assert "**target** warehouse (its labels never reach training or selection): given from Python" in card
    assert "uci_digits" not in card and "mnist" not in card and "but not the data and the model" in card


def test_a_run_with_given_objects_resumes(pair, tmp_path):
    """Resuming compares what is recorded, also where that is null."""
    config = load_config(TINY, {**SHORT, "training.output_dir": str(tmp_path), "training.checkpoint_every": 1})
    by_hand = replace(pair, domains=None)
    adapt(config, pair=by_hand, model=net(pair.labels))
    (tmp_path / "summary.json").unlink()
    again = load_config(
        TINY, {**SHORT, "training.output_dir": str(tmp_path), "training.checkpoint_every": 1, "training.resume": True}
    )
    assert adapt(again, pair=by_hand, model=net(pair.labels)).target_accuracy_after is not None


def test_the_origin_survives_saving_and_loading(tmp_path):
    scratch = net(["a", "b"])
    scratch.backbone.save_pretrained(tmp_path / "weights")
    taught = net(["a", "b"], pretrained=str(tmp_path / "weights"))
    for model, pretrained in ((scratch, False), (taught, True)):
        wanted = {"name": "resnet", "pretrained": pretrained, "weights": None, "revision": None}
        assert model.config.origin == wanted, "a local folder means nothing elsewhere"
        model.save_pretrained(tmp_path / "model")
        loaded = MetaAlignForImageClassification.from_pretrained(tmp_path / "model")
        assert loaded.config.origin == wanted and is_pretrained(loaded.config) is pretrained


def test_the_origin_on_the_hub():
    known = weights_origin("resnet50", "timm/resnet50.a1_in1k", "0" * 40)
    assert known["weights"] == "timm/resnet50.a1_in1k" and known["revision"] == "0" * 40
    further = checkpoint_origin("lab/digits", "1" * 40, weights_origin("resnet", None))
    assert further == {"name": "lab/digits", "pretrained": False, "weights": "lab/digits", "revision": "1" * 40}
    assert checkpoint_origin("/home/ann/runs/a", None, known) == known
