"""An entry that is set and that nothing would read is refused; the table of what is read is complete."""

from dataclasses import fields
from pathlib import Path

import pytest

from metaalign_hf.cli import run
from metaalign_hf.configuration import (
    Config,
    CoordinationConfig,
    DataConfig,
    DomainConfig,
    HubConfig,
    ModelConfig,
    TrainingConfig,
    load_config,
    parse_config,
)
from metaalign_hf.configuration.reading import DOMAIN_READS, READ_WHERE
from metaalign_hf.errors import UserError
from metaalign_hf.tasks import known_tasks

ROOT = Path(__file__).parents[2]
DIGITS = ROOT / "examples" / "digits.yaml"
PAIR = ["--data.source", "uci_digits", "--data.target", "mnist"]


def names(kind: type) -> set[str]:
    return {field.name for field in fields(kind)}


def test_the_table_names_entries_that_exist():
    sections = {f.name: f.type for f in fields(Config)}
    kinds = {
        "coordination": CoordinationConfig,
        "model": ModelConfig,
        "data": DataConfig,
        "training": TrainingConfig,
        "hub": HubConfig,
    }
    assert set(READ_WHERE) <= set(sections)
    for section, entries in READ_WHERE.items():
        assert set(entries) <= names(kinds[section])
        conditions = [c for alternatives in entries.values() for each in alternatives for c in each]
        assert {c.key for c in conditions} <= names(kinds[section])
    assert {key for kind in known_tasks() for key in kind.ignores} <= names(DataConfig)
    assert {key for keys in DOMAIN_READS.values() for key in keys} == names(DomainConfig) - {"kind", "name"}
    assert names(CoordinationConfig) - set(READ_WHERE["coordination"]) == {"method"}


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (
            ["--coordination.method", "joint", "--coordination.inner_lr", "3"],
            "coordination.inner_lr is 3.0: with coordination.method joint nothing reads it; drop it, or set "
            "coordination.method to metaalign or extragradient or heun or pga",
        ),
        (["--coordination.method", "joint", "--coordination.direction", "fresh"], "coordination.direction is"),
        (["--coordination.method", "joint", "--coordination.share_prefix", "false"], "coordination.share_prefix is"),
        (["--coordination.method", "heun", "--coordination.roles", "task"], "coordination.roles is task: with"),
        (
            ["--coordination.direction", "fresh", "--coordination.remember", "role"],
            "with coordination.direction fresh nothing reads it",
        ),
        (["--coordination.order", "2"], "coordination.order is 2: with"),
        (
            ["--coordination.direction", "fresh", "--coordination.roles", "task", "--coordination.first", "alignment"],
            "with coordination.roles task",
        ),
        (["--coordination.direction", "remembered", "--coordination.relative", "false"], "inner_rule update"),
        (
            ["--coordination.direction", "fresh", "--coordination.weight_lr", "1"],
            "with coordination.groups none nothing reads it",
        ),
        (
            [
                "--coordination.direction",
                "fresh",
                "--coordination.inner_scope",
                "all",
                "--coordination.share_prefix",
                "false",
            ],
            "inner_scope all",
        ),
        (
            ["--model.detector", "d_fine", "--model.backbone", "vit"],
            "model.backbone is vit: with model.detector d_fine",
        ),
        (["--model.detector_options", "{num_queries: 3}"], "with model.detector null nothing reads it"),
        (["--model.bottleneck_kind", "linear"], "with model.bottleneck_dim null"),
        (["--model.checkpoint", "lab/x", "--model.alignment", "dann"], "with model.checkpoint lab/x nothing reads it"),
        (["--data.source_sampling", "size"], "with data.source a single domain nothing reads it"),
        (["--data.target.bad_boxes", "error"], "a domain of kind digits does not read it"),
        (["--data.target", "imagefolder:x", "--data.target.root", "y"], "a domain of kind imagefolder does not read"),
        (["--data.target", "dataset:a/b", "--data.target.domain", "art"], "domain_column says which column holds it"),
        (["--training.pseudo_label_threshold", "0.9"], "with training.pseudo_label_weight 0.0 nothing reads it"),
        (["--training.select_by", "null", "--training.selection_images", "9"], "training.selection_images is 9"),
        (
            ["--training.checkpoint_every", "0", "--training.keep_checkpoints", "9"],
            "with training.checkpoint_every 0 nothing reads it",
        ),
        (["--hub.private", "true"], "hub.private is true: with hub.repo_id null nothing reads it"),
        (
            ["--hub.repo_id", "a/b", "--hub.create_pr", "true", "--hub.push_every", "2"],
            "with hub.create_pr true nothing reads it; drop it, or set hub.create_pr to false",
        ),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_what_nothing_would_read_is_refused(options, words):
    with pytest.raises(UserError) as refused:
        parse_config([*PAIR, *options])
    assert words in str(refused.value) and "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (
            ["--data.detector_size", "64"],
            "data.detector_size is 64: a classifier does not read it; drop it (a classifier",
        ),
        (
            ["--model.detector", "d_fine", "--data.image_size", "64"],
            "data.image_size is 64: a detector does not read it; drop it (a detector takes data.detector_size)",
        ),
        (
            ["--data.source", "dataset:/no/place", "--data.source.objects_column", "boxes"],
            "data.source.objects_column is boxes: a classifier does not read it; drop it",
        ),
    ],
)
def test_what_the_task_does_not_read_is_refused_before_anything_is_loaded(options, words, tmp_path, capsys):
    command = ["train", *PAIR, "--training.output_dir", str(tmp_path / "run"), "--model.pretrained", "false", *options]
    assert run(command) == 2
    assert words in capsys.readouterr().err and not (tmp_path / "run").exists()


def test_a_domain_that_python_builds_is_checked_too():
    with pytest.raises(UserError, match="the test images are those of test_path, so none are held out"):
        DomainConfig(kind="imagefolder", path="x", test_path="y", test_fraction=0.5)
    with pytest.raises(UserError, match=r"coordination\.inner_lr is 3"):
        CoordinationConfig(method="joint", inner_lr=3)


def test_what_a_file_sets_for_another_method_is_set_aside_by_an_option_on_the_line(tmp_path):
    """A file made for one method serves another one: the user can have meant nothing else."""
    assert load_config(DIGITS).coordination.direction == "remembered"
    joint = parse_config(["--config", str(DIGITS), "--coordination.method", "joint"])
    assert joint.coordination == CoordinationConfig(method="joint")
    source_only = load_config(DIGITS.with_name("office_home_published.yaml"), {"coordination.method": "source_only"})
    assert source_only.coordination == CoordinationConfig(method="source_only")
    further = parse_config(["--config", str(DIGITS), "--model.checkpoint", "lab/digits"])
    assert further.model == ModelConfig(checkpoint="lab/digits") and further.data.image_size == 32
    detector = parse_config(["--config", str(DIGITS), "--model.detector", "d_fine"])
    assert detector.data.image_size is None and detector.model.backbone == ModelConfig.backbone
    with pytest.raises(UserError, match=r"coordination\.inner_lr is 0\.1: with coordination\.method joint"):
        parse_config(["--config", str(DIGITS), "--coordination.method", "joint", "--coordination.inner_lr", "0.1"])
    own = tmp_path / "own.yaml"
    own.write_text("data: {source: mnist, target: mnist_m}\ncoordination: {method: joint, inner_lr: 0.1}\n")
    with pytest.raises(UserError, match=r"coordination\.inner_lr is 0\.1: with coordination\.method joint"):
        load_config(own, {"training.max_steps": 3})
    assert load_config(own, {"coordination.method": "heun"}).coordination.inner_lr == 0.1


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("{label}", "{label}"),
        ("a photo: {label}", "a photo: {label}"),
        ("{label} in the snow", "{label} in the snow"),
        ("'a {label}'", "a {label}"),
        ('["{label}", "the {label}"]', ["{label}", "the {label}"]),
    ],
)
def test_braces_and_colons_on_the_line_are_text_where_a_text_is_meant(typed, meant):
    encoder = [
        "--data.source",
        "none",
        "--data.target",
        "mnist",
        "--model.backbone",
        "clip",
        "--model.head",
        "zero_shot",
    ]
    assert parse_config([*encoder, "--model.prompt", typed]).model.prompt == meant
    assert parse_config([*PAIR, "--model.backbone", "{model_type: vit}"]).model.backbone == {"model_type": "vit"}
