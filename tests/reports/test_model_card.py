"""The model card and the record it is written from: true numbers only, valid metadata, nothing local."""

import json
from typing import get_args, get_type_hints

import pytest
import yaml
from huggingface_hub import ModelCard
from PIL import Image

from metaalign_hf import UserError
from metaalign_hf.alignment import AlignmentObjective, alignment_names, register_alignment
from metaalign_hf.citations import import_methods, known_citations
from metaalign_hf.configuration import CoordinationConfig
from metaalign_hf.evaluation.detection_validators import DETECTION_VALIDATORS
from metaalign_hf.evaluation.validators import validator_names
from metaalign_hf.hub import write_card
from metaalign_hf.reports import (
    RunRecord,
    card_is_generated,
    model_card,
    read_record,
    without_local_paths,
)
from metaalign_hf.target_losses import target_loss_names

CONFIG = {
    "architectures": ["MetaAlignForImageClassification"],
    "model_type": "metaalign",
    "alignment": [{"name": "cdan", "weight": 0.5}],
    "backbone_name": "resnet50",
    "backbone_config": {
        "model_type": "timm_wrapper",
        "architecture": "resnet50",
        "pretrained_cfg": {"tag": "a1_in1k"},
    },
    "id2label": {"0": "bike", "1": "bus"},
    "origin": {"name": "resnet50", "pretrained": True, "weights": "timm/resnet50.a1_in1k", "revision": None},
}
HUB_DOMAIN = {"kind": "dataset", "path": "flwrlabs/office-home", "domain_column": "domain", "test_fraction": 0.2}
TRAINING = {
    "data": {"source": {**HUB_DOMAIN, "domain": "Art"}, "target": {**HUB_DOMAIN, "domain": "Clipart"}},
    "model": {"backbone": "resnet50", "pretrained": True, "checkpoint": None},
    "coordination": {"method": "metaalign", "inner_lr": 1.0},
    "optimizer": {"name": "sgd", "lr": 0.001},
    "training": {"source_steps": 4, "max_steps": 6, "seed": 3},
}
SUMMARY = {
    "source": "office-home/Art",
    "target": "office-home/Clipart",
    "method": "metaalign",
    "seed": 3,
    "source_steps": 4,
    "adaptation_steps": 6,
    "source_accuracy_before": 0.91,
    "source_accuracy_after": 0.8765,
    "target_accuracy_before": 0.4321,
    "target_accuracy_after": 0.51234,
    "target_balanced_accuracy_before": None,
    "target_balanced_accuracy_after": None,
    "source_test_images": 485,
    "target_test_images": 873,
    "checkpoint": "last",
    "gradient_cosine": -0.25,
}
METRICS = [
    {"step": step, "evaluation": f"step {step}", "source_accuracy": 0.5, "target_accuracy": 0.1 * step}
    for step in (2, 4, 6)
] + [{"step": 6, "phase": "adaptation", "task_loss": 0.5, "alignment_loss": 0.7, "cosine": 0.1}]


def record(**changes) -> RunRecord:
    return RunRecord(**{"model": CONFIG, "training": TRAINING, "summary": SUMMARY, "metrics": METRICS, **changes})


def row(text: str, start: str) -> list[str]:
    (line,) = [line for line in text.splitlines() if line.startswith(f"| {start}")]
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_the_card_states_what_was_measured():
    text = model_card(record(), repo_id="lab/office", figures=["figures/training.png"], license="mit")
    assert row(text, "target office-home/Clipart, accuracy")[1:] == ["43.21 %", "51.23 %", "+8.02", "873"]
    assert row(text, "source office-home/Art, accuracy")[1:] == ["91.00 %", "87.65 %", "-3.35", "485"]
    assert "balanced accuracy" not in text, "what was not measured is not stated"
    assert "seed 3" in text and "-0.250" in text and "last checkpoint" in text
    assert "figures/training.png" in text and "from_pretrained" in text and "--model.checkpoint lab/office" in text
    assert "wei2021metaalign" in text and "long2018conditional" in text and "ganin2016domain" not in text
    data = ModelCard(text).data
    assert data.base_model == "timm/resnet50.a1_in1k" and data.datasets == ["flwrlabs/office-home"]
    assert data.pipeline_tag == "image-classification" and data.library_name == "transformers" and data.license == "mit"
    assert {"metaalign", "domain-adaptation", "cdan"} <= set(data.tags)
    results = {result.dataset_config: result for result in data.eval_results}
    assert results["target: office-home/Clipart"].metric_value == 0.5123
    assert results["source: office-home/Art"].metric_value == 0.8765
    assert all(result.dataset_type == "flwrlabs/office-home" for result in data.eval_results)


def test_the_card_invents_nothing():
    bare = model_card(RunRecord({**CONFIG, "origin": None}))
    assert "No measured result" in bare and "%" not in bare and "seed" not in bare
    assert ModelCard(bare).data.eval_results is None and ModelCard(bare).data.base_model is None
    assert "Not stated here" in bare

    going_on = model_card(record(summary={}))
    assert "after step 6 of 10" in going_on and row(going_on, "target, accuracy")[1] == "60.00 %"
    assert ModelCard(going_on).data.eval_results is None

    unlabelled = {**SUMMARY, "target_accuracy_before": None, "target_accuracy_after": None, "target_test_images": 0}
    text = model_card(record(summary=unlabelled))
    assert "| target" not in text and "whether adaptation helped on it was not measured" in text
    assert "(unlabelled)" in text and "never reach training" not in text and "oracle" not in text

    few = model_card(record(training={**TRAINING, "data": {**TRAINING["data"], "target_labeled": HUB_DOMAIN}}))
    assert "semi-supervised" in few and "no label was used" not in few
    several = {**TRAINING["data"], "source": [{**HUB_DOMAIN, "domain": name} for name in ("Art", "Product")]}
    text = model_card(record(training={**TRAINING, "data": several}))
    assert "office-home/Art (labelled)" in text and "office-home/Product (labelled)" in text
    second = {"method": "metaalign", "order": 2, "roles": "task"}
    text = model_card(record(training={**TRAINING, "coordination": second}))
    assert "second order" in text and "task is always meta-train" in text and "J_train" in text

    taught = {**TRAINING["training"], "ema_decay": 0.999, "pseudo_label_weight": 0.5, "pseudo_label_threshold": 0.3}
    text = model_card(record(training={**TRAINING, "training": taught}))
    assert "`training.pseudo_label_weight` | 0.5" in text and "tarvainen2017" in text

    baseline = {**TRAINING, "coordination": {"method": "source_only"}}
    text = model_card(record(training=baseline))
    assert "It was not adapted" in text and "long2018" not in text and "wei2021" not in text
    assert "After: 6 more steps on the source." in text and "steps of adaptation" not in text
    assert "trained on office-home/Art alone and is expected to be worse" in text and "It was adapted" not in text

    statistics = {**baseline, "training": {**TRAINING["training"], "recalibrate_bn": "target"}}
    beside = {**SUMMARY, "method": "source_only", "baseline": {"target": 0.4711}}
    text = model_card(record(training=statistics, summary=beside))
    assert "It was not adapted" not in text and "and adapted to **office-home/Clipart**" in text
    assert "a baseline" not in text and "estimated anew on unlabelled images of the target" in " ".join(text.split())
    assert "As many steps on the source alone reach 47.11 % on the target." in text


@pytest.mark.parametrize(
    ("origin", "base"),
    [
        ({"name": "facebook/dinov2-small", "weights": "facebook/dinov2-small"}, "facebook/dinov2-small"),
        ({"name": "facebook/dinov2-small", "weights": None}, None),
        ({"name": "resnet50", "weights": "/home/ann/weights.safetensors"}, None),
        ({"name": "lab/digits", "weights": "lab/digits", "revision": "1" * 40}, "lab/digits"),
        (None, None),
    ],
)
def test_the_base_model_is_what_the_model_says_it_started_from(origin, base):
    """And not what the configuration of the run describes."""
    text = model_card(record(model={**CONFIG, "origin": origin}))
    assert ModelCard(text).data.base_model == base and "/home/ann" not in text
    assert ("at revision `1111" in text) is bool(origin and origin.get("revision"))


def test_the_selected_checkpoint_has_its_own_numbers(tmp_path):
    rows = [
        {"checkpoint": "last", "step": 10, "source": 0.8765, "target": 0.51234},
        {"checkpoint": "selected (label-free, bnm)", "step": 8, "source": 0.9, "target": 0.5},
        {"checkpoint": "oracle (target labels)", "step": 6, "source": 0.8, "target": 0.6},
    ]
    (tmp_path / "selected").mkdir()
    for folder in (tmp_path, tmp_path / "selected"):
        (folder / "config.json").write_text(json.dumps(CONFIG))
    (tmp_path / "training_config.yaml").write_text(yaml.safe_dump(TRAINING))
    (tmp_path / "summary.json").write_text(json.dumps({**SUMMARY, "checkpoints": rows}))
    last = model_card(read_record(tmp_path))
    assert row(last, "oracle (target labels)")[1:] == ["6", "80.00 %", "60.00 %"] and "upper bound" in last
    assert row(last, "target office-home/Clipart, accuracy")[2] == "51.23 %"
    selected = model_card(read_record(tmp_path / "selected"))
    assert row(selected, "target office-home/Clipart, accuracy")[1:3] == ["43.21 %", "50.00 %"]
    assert row(selected, "source office-home/Art, accuracy")[2] == "90.00 %"
    assert "without target labels selected" in selected and "4 steps of adaptation" in selected
    assert {r.metric_value for r in ModelCard(selected).data.eval_results} == {0.9, 0.5}


def test_the_summary_of_an_older_release_is_read(tmp_path):
    """It has `source_accuracy` where it is `source_accuracy_after` now."""
    old = {("source_accuracy" if key == "source_accuracy_after" else key): value for key, value in SUMMARY.items()}
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    (tmp_path / "training_config.yaml").write_text(yaml.safe_dump(TRAINING))
    (tmp_path / "summary.json").write_text(json.dumps(old))
    assert read_record(tmp_path).summary == SUMMARY
    assert row(model_card(read_record(tmp_path)), "source office-home/Art, accuracy")[2] == "87.65 %"


def test_the_native_card_needs_no_metaalign():
    text = model_card(record(), repo_id="lab/native", native=True, architecture="ResNetForImageClassification")
    use = text.partition("## Use")[2].partition("## Method")[0]
    assert "import metaalign_hf" not in use and 'AutoModelForImageClassification.from_pretrained("lab/native")' in use
    assert "repeats bit by bit" in text and "`ResNetForImageClassification`" in text


def test_a_detector_has_its_own_tag_and_classes():
    text = model_card(record(model={**CONFIG, "architectures": ["MetaAlignForObjectDetection"]}))
    assert ModelCard(text).data.pipeline_tag == "object-detection" and "AutoModelForObjectDetection" in text


def test_every_method_is_cited():
    import_methods()
    # Other tests of the same process register methods of their own.
    wanted = {f"alignment/{name}" for name in alignment_names() if not name.startswith("test_")}
    wanted |= {f"level/{name}" for name in ("backbone_pixel", "backbone_global", "encoder", "query")}
    own = ("test_", "source_accuracy")
    wanted |= {f"validator/{name}" for name in validator_names() if not name.startswith(own)}
    wanted |= {f"detection_validator/{name}" for name in DETECTION_VALIDATORS}
    methods = set(get_args(get_type_hints(CoordinationConfig)["method"])) - {"joint", "source_only"}
    wanted |= {f"coordination/{name}" for name in methods}
    wanted |= {"coordination/remembered", "coordination/smoothing", "alignment/toalign", "alignment/sources"}
    wanted |= {"batch_norm/per_domain", "batch_norm/recalibrate_bn"}
    wanted |= {f"target_loss/{name}" for name in target_loss_names()} | {"alignment/label_smoothing"}
    assert wanted <= known_citations()


@pytest.mark.parametrize(
    ("changes", "cited"),
    [
        ({"coordination": {"method": "joint", "smoothing": 0.02}}, ["rangwani2022", "long2018conditional"]),
        ({"training": {"recalibrate_bn": "target"}}, ["li2017revisiting"]),
        ({"training": {"batch_norm": "per_domain"}}, ["chang2019"]),
    ],
    ids=str,
)
def test_a_setting_is_cited(changes, cited):
    text = model_card(record(training={**TRAINING, **{k: {**TRAINING[k], **v} for k, v in changes.items()}}))
    assert all(f"{{{key}" in text for key in cited)
    summary = {**SUMMARY, "batch_norm": "mixed", "validators": {"snd": [0.1, 0.2], "bnm": [0.1, 0.2]}}
    text = model_card(record(summary=summary))
    assert "saito2021tune" in text and "cui2020towards" not in text, "the validator that selects is the first one"


def test_the_card_shows_the_settings_that_were_read():
    coordination = {"method": "joint", "direction": "fresh", "inner_lr": None, "order": 1, "groups": "none"}
    text = model_card(record(training={**TRAINING, "coordination": coordination}))
    assert "`coordination.groups` | none" in text and "coordination.inner_lr" not in text
    text = model_card(record(training={**TRAINING, "coordination": {**coordination, "method": "metaalign"}}))
    assert "`coordination.inner_lr` | None" in text and "`coordination.order` | 1" in text


def test_levels_and_several_sources_are_cited():
    levels = [{"name": "backbone_global", "weight": 0.1}, {"name": "query", "weight": 0.1}]
    detector = {**CONFIG, "architectures": ["MetaAlignForObjectDetection"], "alignment": levels}
    text = model_card(record(model=detector))
    assert "saito2019strong" in text and "wang2021exploring" in text and "long2018" not in text
    text = model_card(record(model={**CONFIG, "alignment": [{"name": "mmd", "weight": 1.0, "sources": 2}]}))
    assert "zhao2018adversarial" in text and "long2015learning" in text


def test_who_registers_an_objective_gives_its_citation():
    citation = "@article{nobody2030distance,\n  title = {Distances of Means},\n}"
    with pytest.raises(ValueError, match="must be BibTeX"):
        register_alignment("test_uncited", citation="Nobody, 2030")

    @register_alignment("test_cited", citation=citation)
    class Cited(AlignmentObjective):
        pass

    text = model_card(record(model={**CONFIG, "alignment": [{"name": "test_cited", "weight": 1.0}]}))
    assert citation in text
    # A run records its citations, so that a later push, in which nothing is registered, has them too.
    assert citation in model_card(record(summary={**SUMMARY, "citations": [citation]}))


def test_an_edited_card_is_kept(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in METRICS))
    written = write_card(tmp_path)
    assert [path.name for path in written] == ["training.png", "README.md"]
    text = (tmp_path / "README.md").read_text()
    assert card_is_generated(text) and "PATH/TO/THIS/FOLDER" in text
    assert Image.open(tmp_path / "figures" / "training.png").size[0] > 800

    write_card(tmp_path, "lab/name")
    assert "lab/name" in (tmp_path / "README.md").read_text(), "an untouched card is written anew"
    edited = text.replace("## Limits", "## Limits of which I know more")
    (tmp_path / "README.md").write_text(edited)
    write_card(tmp_path, "lab/name")
    assert (tmp_path / "README.md").read_text() == edited and not card_is_generated(edited)


@pytest.mark.parametrize(
    ("value", "public"),
    [
        ("/home/ann/data/art", "art"),
        ("/home/ann/my data/art", "art"),
        ("read from /home/ann/art, 5 images", "read from art, 5 images"),
        (
            "metaalign evaluate '/home/ann/my runs/a' --data list:/data/b.txt",
            "metaalign evaluate 'a' --data list:b.txt",
        ),
        ("file:///home/ann/x", "x"),
        ("~/weights/w.safetensors", "w.safetensors"),
        ("C:\\Users\\ann\\art", "art"),
        ("facebook/dinov2-small", "facebook/dinov2-small"),
        ("https://huggingface.co/lab/name", "https://huggingface.co/lab/name"),
        ("either/or, 1/2", "either/or, 1/2"),
        (0.5, 0.5),
        (None, None),
    ],
)
def test_local_paths_are_shortened(value, public):
    assert without_local_paths(value) == public
    assert without_local_paths({"notes": [value]}) == {"notes": [public]}


def test_class_names_and_existing_relative_places(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data" / "art").mkdir(parents=True)
    assert without_local_paths({"path": "data/art", "other": "data/art"}) == {"path": "art", "other": "data/art"}
    assert without_local_paths({"id2label": {"0": "/m/0k4j"}}) == {"id2label": {"0": "/m/0k4j"}}


def test_a_record_that_cannot_be_read_is_told(tmp_path):
    with pytest.raises(UserError, match=r"no config\.json"):
        read_record(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    (tmp_path / "training_config.yaml").write_text(yaml.safe_dump(TRAINING))
    assert read_record(tmp_path).training == TRAINING and read_record(tmp_path).labels == ["bike", "bus"]
    (tmp_path / "summary.json").write_text("{")
    with pytest.raises(UserError, match="cannot be read"):
        read_record(tmp_path)


@pytest.mark.parametrize(
    ("coordination", "equation", "cited"),
    [
        (
            {"method": "metaalign", "direction": "remembered"},
            "theta' = theta - alpha * m",
            ["wei2021", "daskalakis2018"],
        ),
        ({"method": "extragradient"}, "gradient = v(theta')", ["acuna2022"]),
        ({"method": "heun"}, "(v(theta) + v(theta')) / 2", ["acuna2022"]),
        ({"method": "pga"}, "rho g_task/|g_task|", ["phan2024"]),
    ],
)
def test_the_card_tells_the_step_that_was_taken(coordination, equation, cited):
    training = {**TRAINING, "coordination": coordination}
    text = model_card(record(training=training, summary={**SUMMARY, "method": coordination["method"]}))
    assert equation in text
    assert all(f"{key}" in text for key in cited)
