"""Several sources, and a few labelled target images."""

import json
from collections import Counter
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from transformers import AutoModelForImageClassification

from metaalign_hf import MetaAlignForImageClassification, UserError, load_config, load_domain_pair
from metaalign_hf.alignment import AlignmentBatch, build_alignment
from metaalign_hf.cli import run
from metaalign_hf.data import batch_indices, even_batch_indices, training_stream
from metaalign_hf.models import build_image_processor
from metaalign_hf.tasks.classification.mixing import mix, with_target_labels
from tests.helpers.runs import TINY

PROCESSOR = build_image_processor(16, 18, [0.5] * 3, [0.5] * 3)
SOURCES = ["--data.source", "[uci_digits, mnist_m]"]


def train(output: Path, *options: str) -> dict:
    assert run(["train", "--config", TINY, "--training.output_dir", str(output), *options]) == 0
    return json.loads((output / "summary.json").read_text())


def last_line(output: Path) -> dict:
    lines = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if "phase" in line][-1]


@pytest.mark.parametrize("batch_size", [3, 7, 8])
def test_even_batches_are_even_and_show_every_image(batch_size):
    sizes = [5, 20, 11]
    stream = [i for batch in range(60) for i in even_batch_indices(sizes, batch_size, 7, batch)]
    starts = [0, 5, 25]
    for source, (start, size) in enumerate(zip(starts, sizes, strict=True)):
        own = stream[source::3]
        assert all(start <= i < start + size for i in own), "row p is of source p modulo 3"
        for epoch in range(len(own) // size):
            assert sorted(own[epoch * size : (epoch + 1) * size]) == list(range(start, start + size))
    assert even_batch_indices(sizes, batch_size, 7, 41) == stream[41 * batch_size : 42 * batch_size]
    assert even_batch_indices(sizes, 6, 7, 0) != even_batch_indices(sizes, 6, 8, 0)


def test_sources_of_the_same_images_do_not_run_in_step():
    indices = even_batch_indices([50, 50], 100, 0, 0)
    assert [i for i in indices if i < 50] != [i - 50 for i in indices if i >= 50]


@pytest.mark.parametrize("even", [True, False])
def test_the_stream_names_the_source_of_every_row(even):
    pair = load_domain_pair(["uci_digits", "mnist_m"], "mnist")
    assert pair.source_name == "uci_digits + mnist_m"
    assert pair.source_train.parts == (1437, 4000) and len(pair.source_test) == 360 + 1000
    train = pair.source_train
    alone = load_domain_pair("mnist_m", "mnist").source_train
    assert torch.equal(train[1437 + 5], alone[5]) and train.labels[1437 + 5] == alone.labels[5]
    stream = training_stream(train, PROCESSOR, batch_size=40, seed=0, augmentation="none", even=even, start_batch=3)
    batch = next(stream)
    indices = even_batch_indices(train.parts, 40, 0, 3) if even else batch_indices(len(train), 40, 0, 3)
    assert batch["source_index"].tolist() == [int(i >= 1437) for i in indices]
    assert batch["labels"].tolist() == [train.labels[i] for i in indices]
    count = Counter(batch["source_index"].tolist())
    assert (count[0] == count[1] == 20) if even else 0 < count[0] < count[1]


def folders(root: Path, **domains: list[str]) -> None:
    for domain, classes in domains.items():
        for name in classes:
            for number in range(10):
                path = root / domain / name / f"{number}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.new("RGB", (8, 8), (20 * number, 0, 0)).save(path)


def test_classes_of_all_sources_agree_by_name(tmp_path):
    folders(tmp_path, a=["cat", "dog"], b=["dog", "cat"], c=["cat", "dog", "elk"], t=["cat", "dog"], u=["cat", "elk"])
    a, b, c, t, u = (f"imagefolder:{tmp_path}/{name}" for name in "abctu")
    pair = load_domain_pair([a, b], t)
    for index in range(len(pair.source_train)):
        assert pair.source_train.paths[index].parent.name == pair.labels[pair.source_train.labels[index]]
    with pytest.raises(UserError, match="class names differ: a has 2 classes, c 3: a lacks 'elk'"):
        load_domain_pair([a, c], t)
    pair = load_domain_pair([c, a], t, "shared")
    assert pair.labels == ["cat", "dog"] and pair.source_train.parts == (16, 16)
    with pytest.raises(UserError, match="class names differ"):
        load_domain_pair([c, a], u, "shared")
    with pytest.raises(UserError, match="empty"):
        load_domain_pair([], t)


def test_an_objective_per_source_is_the_mean_over_sources():
    torch.manual_seed(0)
    b = AlignmentBatch(
        torch.randn(12, 4),
        torch.randn(12, 3),
        torch.tensor([0] * 6 + [1] * 6),
        source_index=torch.tensor([0, 1, 0, 1, 0, 1] + [-1] * 6),
    )
    for spec in ({"name": "dann", "hidden": 7}, {"name": "mmd"}):
        objective = build_alignment({**spec, "sources": 2}, 4, 3).eval()
        each = objective.objectives[spec["name"]].each
        losses = []
        for number in (0, 1):
            rows = (b.domain_labels == 1) | (b.source_index == number)
            losses.append(each[number](AlignmentBatch(b.features[rows], b.logits[rows], b.domain_labels[rows])).loss)
        torch.testing.assert_close(objective(b).loss, sum(losses) / 2)
    weights = [
        d.discriminator.output.weight
        for d in build_alignment({"name": "dann", "sources": 2}, 4, 3).objectives["dann"].each
    ]
    assert not torch.equal(*weights), "one discriminator for each source"
    with pytest.raises(UserError, match=r"gvb.*sources must be 1"):
        build_alignment({"name": "gvb", "sources": 2}, 4, 3)
    b.source_index = None
    with pytest.raises(UserError, match="dann: sources is 2, but there is one source"):
        build_alignment({"name": "dann", "sources": 2}, 4, 3)(b)


@pytest.mark.parametrize(
    "options",
    [[], ["--data.source_sampling", "size", "--coordination.method", "joint"], ["--model.alignment", "PER_SOURCE"]],
    ids=["even", "size", "per source"],
)
def test_several_sources_train_to_a_checkpoint_that_loads(options, tmp_path):
    options = ["{name: dann, sources: 2, hidden: 16}" if o == "PER_SOURCE" else o for o in options]
    summary = train(tmp_path / "run", *SOURCES, *options)
    assert summary["source"] == "uci_digits + mnist_m" and summary["source_test_images"] == 1360
    model = AutoModelForImageClassification.from_pretrained(tmp_path / "run")
    assert model.config.alignment[0].get("sources", 1) == (2 if options and "sources" in options[-1] else 1)
    config = load_config(tmp_path / "run" / "training_config.yaml")
    assert [domain.name for domain in config.data.sources] == ["uci_digits", "mnist_m"]


def test_the_seed_decides_a_run_with_several_sources(tmp_path):
    for name in ("a", "b"):
        train(tmp_path / name, *SOURCES)
    a, b = (load_file(tmp_path / name / "model.safetensors") for name in ("a", "b"))
    assert all(torch.equal(a[key], b[key]) for key in a)


@pytest.fixture(scope="module")
def few(tmp_path_factory) -> list[str]:
    """A list file with six labelled target images."""
    root = tmp_path_factory.mktemp("few")
    pair = load_domain_pair("uci_digits", "mnist")
    rows = []
    for index in range(6):
        Image.fromarray(pair.target_train[index].permute(1, 2, 0).numpy()).save(root / f"{index}.png")
        rows.append(f"{index}.png {index}")
    (root / "few.txt").write_text("\n".join(rows))
    (root / "names.txt").write_text("\n".join("0123456789"))
    return ["--data.target_labeled", f"list:{root}/few.txt", "--data.target_labeled.labels_file", f"{root}/names.txt"]


def test_labelled_target_images_reach_the_task_loss_alone():
    torch.manual_seed(0)
    model = MetaAlignForImageClassification.from_backbone(
        "resnet",
        ["a", "b", "c"],
        {"name": "dann", "hidden": 7, "toalign": True},
        pretrained=False,
        embedding_size=8,
        hidden_sizes=[8, 16],
        depths=[1, 1],
        layer_type="basic",
    ).eval()
    images = torch.randn(9, 3, 16, 16)
    source = {"pixel_values": images[:4], "labels": torch.tensor([0, 1, 2, 0])}
    target = {"pixel_values": images[4:7]}
    extra = {"pixel_values": images[7:], "labels": torch.tensor([2, 1])}
    plain, joined = mix(source, target), mix(with_target_labels(source, extra), target)
    assert joined["domain_labels"].tolist() == [0] * 4 + [-100] * 2 + [1] * 3
    assert joined["labels"].tolist() == [0, 1, 2, 0, 2, 1] + [-100] * 3
    without, found = model(**plain), model(**joined)
    torch.testing.assert_close(found.alignment_loss, without.alignment_loss)
    task = model(pixel_values=torch.cat([images[:4], images[7:]]), labels=torch.tensor([0, 1, 2, 0, 2, 1])).task_loss
    torch.testing.assert_close(found.task_loss, task)
    assert found.task_loss.item() != pytest.approx(without.task_loss.item())


@pytest.mark.parametrize("method", ["metaalign", "joint", "source_only"])
def test_a_semi_supervised_run(method, few, tmp_path):
    summary = train(tmp_path / "with", *few, "--coordination.method", method)
    train(tmp_path / "without", "--coordination.method", method)
    assert any("6 labelled target images" in note for note in summary["notes"])
    assert last_line(tmp_path / "with")["task_loss"] != last_line(tmp_path / "without")["task_loss"]
    AutoModelForImageClassification.from_pretrained(tmp_path / "with")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--data.source", "[uci_digits, minst]"], ["minst", "did you mean mnist"]),
        (["--data.source", "[]"], ["data.source is missing"]),
        (["--data.source", "[uci_digits, 3]"], ["data.source is 3", "one domain"]),
        (["--data.target", "[mnist]"], ["data.target", "data.source alone"]),
        ([*SOURCES, "--data.source.path", "x"], ["data.source is a list"]),
        (["--data.source", "[{knd: x}]"], ["data.source.knd", "data.source.kind"]),
        (["--data.source", "{kind: pictures}"], ["data.source.kind", "pictures"]),
        (["--data.source_sampling", "odd"], ["source_sampling", "even"]),
        (["--data.target_labeled", "list:/no/such.txt"], ["/no/such.txt"]),
        (["--model.alignment", "{name: dann, sources: 2}"], ["sources is 2", "names 1"]),
        (["--model.alignment", "{name: dann, sources: two}"], ["sources is 'two'"]),
        ([*SOURCES, "--model.alignment", "{name: gvb, sources: 2}"], ["gvb", "sources must be 1"]),
        (
            [*SOURCES, "--model.alignment", "{name: mmd, sources: 2}", "--data.source_sampling", "size"],
            ["mmd", "source_sampling: even"],
        ),
        (
            [*SOURCES, "--model.alignment", "{name: mmd, sources: 2}", "--training.batch_size", "3"],
            ["mmd", "training.batch_size: 4 or more"],
        ),
    ],
)
def test_bad_input_is_told(options, words, capsys, tmp_path):
    assert run(["train", "--config", TINY, "--training.output_dir", str(tmp_path / "run"), *options]) == 2
    error = capsys.readouterr().err
    assert all(word in error for word in words) and error.count("\n") == 1, error
    assert not (tmp_path / "run").exists()
