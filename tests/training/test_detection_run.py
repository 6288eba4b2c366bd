"""A detector's run from the command line to a checkpoint that loads: files, numbers, law 9, resume, the commands."""

import csv
import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torchvision.utils import save_image
from transformers import AutoImageProcessor, AutoModelForObjectDetection

from metaalign_hf import MetaAlignForObjectDetection, UserError, adapt, load_config, load_detection_pair
from metaalign_hf.cli import run
from metaalign_hf.data import DetectionSet, Objects, detection_batches, load_detection_view
from metaalign_hf.data.detection_readers import read_detection_domain
from metaalign_hf.evaluation import evaluate_detector
from metaalign_hf.tasks.detection.task import DetectionTask, mix_detection
from tests.helpers.runs import TINY_DETECTION as TINY

TEACHER = ["--training.pseudo_label_weight", "1", "--training.ema_decay", "0.999"]


def small(view: DetectionSet | None, count: int = 24) -> DetectionSet | None:
    return None if view is None else view.subset(range(count))


@pytest.fixture(scope="module")
def pair():
    """The embedded pair with few images, so that evaluation is quick."""
    whole = load_detection_pair("scenes_plain", "scenes_photo")
    views = ("source_train", "source_test", "target_train", "target_test_images", "target_evaluation")
    return type(whole)(**{**vars(whole), **{name: small(getattr(whole, name)) for name in views}})


def train(pair, output: Path, **overrides: object):
    return adapt(load_config(TINY, {"training.output_dir": str(output), **overrides}), pair=pair)


def lines(output: Path) -> list[dict]:
    return [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def finished(pair, tmp_path_factory):
    output = tmp_path_factory.mktemp("runs") / "detector"
    return output, train(pair, output)


def assert_same_weights(first: Path, second: Path) -> None:
    a, b = load_file(first / "model.safetensors"), load_file(second / "model.safetensors")
    assert a.keys() == b.keys()
    for name in a:
        assert torch.equal(a[name], b[name]), name


def test_the_summary_is_what_the_loaded_checkpoint_measures(finished, pair):
    output, summary = finished
    written = json.loads((output / "summary.json").read_text())
    assert written["target_map50_after"] == summary.target_map50_after and written["backbone"] == "d_fine"
    assert {"target_map50_before", "target_map_after", "target_voc_11_point_after", "source_map50_after"} <= set(
        written
    )
    assert -1 <= written["gradient_cosine"] <= 1
    model = AutoModelForObjectDetection.from_pretrained(output)
    processor = AutoImageProcessor.from_pretrained(output)
    for view, key in ((pair.source_test, "source_map50_after"), (pair.target_evaluation, "target_map50_after")):
        found = evaluate_detector(model, model.adapter.probabilities, detection_batches(view, processor, False, 100), 3)
        assert found.map50 == written[key]


def test_the_folder_holds_a_picture_and_no_pickle(finished):
    output, _ = finished
    suffixes = {p.suffix for p in output.rglob("*") if p.is_file()}
    assert suffixes == {".json", ".jsonl", ".md", ".safetensors", ".yaml", ".png", ".txt"}
    with Image.open(output / "detections.png") as picture:
        assert picture.width > 6 * 240 and picture.height > 2 * 240
    steps = [line for line in lines(output) if "phase" in line]
    assert [line["phase"] for line in steps] == ["source"] * 3 + ["adaptation"] * 4
    assert [line["first"] for line in steps[3:]] == ["task", "alignment"] * 2
    assert {"task_loss", "alignment_loss", "cosine", "gradient_norm"} <= set(steps[-1])


def killed_and_resumed(pair, output: Path, monkeypatch, **overrides: object) -> None:
    """A run that is killed at its checkpoint after step 4, and goes on from there."""
    options = {"training.checkpoint_every": 2, **overrides}

    class Killed(BaseException):
        pass

    from metaalign_hf.training import keeping

    save = keeping.save_checkpoint

    def save_and_die(folder, step, *arguments, **options):
        save(folder, step, *arguments, **options)
        if step == 4:
            raise Killed

    monkeypatch.setattr(keeping, "save_checkpoint", save_and_die)
    with pytest.raises(Killed):
        train(pair, output, **options)
    monkeypatch.undo()
    train(pair, output, **options, **{"training.resume": True})


def test_the_same_seed_gives_the_same_weights_and_resume_is_never_stopped(finished, pair, tmp_path, monkeypatch):
    output, _ = finished
    killed_and_resumed(pair, tmp_path / "run", monkeypatch)
    assert_same_weights(output, tmp_path / "run")
    assert lines(output) == lines(tmp_path / "run")
    assert (output / "detections.png").read_bytes() == (tmp_path / "run" / "detections.png").read_bytes()


def test_a_run_with_a_mean_teacher_shows_its_pseudo_labels_and_resumes(pair, tmp_path, monkeypatch):
    options = {
        "training.ema_decay": 0.999,
        "training.pseudo_label_weight": 1.0,
        "training.pseudo_label_threshold": {"zero": 0.0, "one": 0.0, "two": 1.0},
    }
    summary = train(pair, tmp_path / "whole", **options)
    killed_and_resumed(pair, tmp_path / "killed", monkeypatch, **options)
    assert_same_weights(tmp_path / "whole", tmp_path / "killed")
    assert lines(tmp_path / "whole") == lines(tmp_path / "killed")
    steps = [line for line in lines(tmp_path / "whole") if "phase" in line]
    assert [line["phase"] for line in steps if "pseudo_boxes" in line] == ["adaptation"] * 4
    counts = [line["pseudo_boxes"] for line in steps[3:]]
    assert all(count > 0 for count in counts) and all(0 < line["pseudo_images"] <= 1 for line in steps[3:])
    note = f"Mean teacher: {sum(counts) / 4:.3g} pseudo-labels per target image, averaged over the adaptation."
    assert note in summary.notes and note in json.loads((tmp_path / "killed/summary.json").read_text())["notes"]


def test_a_checkpoint_is_selected_without_target_labels(finished, pair, tmp_path):
    output, _ = finished
    rows = json.loads((output / "summary.json").read_text())["checkpoints"]
    names = [row["checkpoint"] for row in rows]
    assert names == ["last", "selected (label-free, agreement)", "oracle (target labels)"]
    evaluations = [line for line in lines(output) if "evaluation" in line]
    assert all({"validator_agreement", "validator_entropy"} <= set(line) for line in evaluations)
    options = {"training.select_by": "entropy", "training.evaluate_every": 1, "training.select_tolerance": 1.0}
    train(pair, tmp_path / "run", **options)
    found = [line for line in lines(tmp_path / "run") if "validator_entropy" in line]
    chosen = json.loads((tmp_path / "run" / "summary.json").read_text())["checkpoints"][1]
    assert chosen["step"] in {line["step"] for line in found} and len(found) == 5


def test_target_objects_change_nothing_but_the_reported_precision(finished, pair, tmp_path):
    output, summary = finished
    wrong = tuple(Objects.of([[0, 0, 5, 5]], [0]) for _ in range(len(pair.target_evaluation)))
    shuffled = DetectionSet(pair.target_evaluation.images, wrong, pair.target_evaluation.sizes)
    other = train(type(pair)(**{**vars(pair), "target_evaluation": shuffled}), tmp_path / "run")
    assert_same_weights(output, tmp_path / "run")
    assert other.source_map50_after == summary.source_map50_after and other.target_test_images == 24
    blind = train(type(pair)(**{**vars(pair), "target_evaluation": None}), tmp_path / "blind")
    assert blind.target_map50_after is None and (tmp_path / "blind" / "detections.png").exists()
    assert_same_weights(output, tmp_path / "blind")


@pytest.mark.parametrize("method", ["joint", "source_only"])
def test_the_other_methods_run(method, pair, tmp_path):
    summary = train(pair, tmp_path / "run", **{"coordination.method": method})
    assert summary.method == method and summary.gradient_cosine is None


@pytest.mark.parametrize(
    "options",
    [
        {"coordination.order": 2, "model.attention": "eager"},
        {"coordination.inner_scope": "last_stage", "coordination.groups": "stage"},
        {"coordination.inner_rule": "trust_ratio", "coordination.inner_lr": 0.05, "training.ema_decay": 0.9},
        {"coordination.smoothing": 0.05},
        {"training.recalibrate_bn": "target"},
        {
            "coordination.order": 2,
            "model.attention": "eager",
            "training.ema_decay": 0.9,
            "training.pseudo_label_weight": 1,
        },
    ],
    ids=lambda options: ",".join(options),
)
def test_the_options_of_the_step_work_for_detectors(options, pair, tmp_path):
    summary = train(pair, tmp_path / "run", **options)
    assert summary.gradient_cosine is not None and summary.target_map50_after is not None


@pytest.mark.parametrize("mode", ["train", "mixed", "per_domain"])
def test_without_an_inner_step_metaalign_is_the_joint_step(mode, pair):
    """Law 1 for detectors: two passes each; dropout and denoising off, so that both see the same."""
    from metaalign_hf.coordination import Joint, MetaAlign
    from metaalign_hf.tasks.building import build_task

    config = load_config(TINY, {"model.alignment": "detr", "training.batch_norm": mode})
    config.model.detector_options["num_denoising"] = 0
    torch.manual_seed(0)
    task = build_task(config, pair)
    task.statistics.begin_adaptation()
    model = task.model.train(mode != "train")
    for layer in model.modules():
        if isinstance(layer, torch.nn.Dropout):
            layer.eval()
    source, target = (next(stream) for stream in task.streams(0, 0, 0, 1))
    closures = task.closures(model, [source], [target], 0.5)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    gradients = []
    for coordinator in (Joint(optimizer), MetaAlign(optimizer, inner_lr=0.0)):
        if isinstance(coordinator, MetaAlign):
            coordinator.backward(closures.task, closures.alignment)
        else:
            coordinator.backward(both=closures.both)
        gradients.append({n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    # By domain the task's pass is on the source alone, so that its sums are rounded in another order.
    largest = max(float(gradient.abs().max()) for gradient in gradients[0].values())
    atol = 1e-4 * largest if mode == "per_domain" else 1e-5
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, rtol=1e-4, atol=atol, msg=name)


def test_several_sources_and_labelled_target_images(pair, tmp_path):
    """They train; the labelled target images count for the task loss, and alignment does not see them."""
    few = small(load_detection_view("scenes_photo", pair.labels, "train"), 3)
    joined = pair.source_train.join(small(load_detection_view("scenes_plain", pair.labels, "test")))
    assert joined.parts == (24, 24) and len(joined.objects) == 48
    whole = replace(pair, source_train=joined, target_labeled=few)
    summary = train(whole, tmp_path / "run")
    assert "The task loss also used 3 labelled target images, in both phases." in summary.notes

    config = load_config(TINY)
    config.model.detector_options["num_denoising"] = 0
    task = DetectionTask(config, whole)
    model = task.model.eval()
    source, target = (next(stream) for stream in task.streams(0, 0, 0, 1))
    assert source["domain_labels"].tolist() == [0] * 4 + [-100] * 3 and len(source["labels"]) == 7
    known = {key: source[key][:4] for key in ("pixel_values", "labels")}
    both, alone = (task.closures(model, [batch], [target], 0.5) for batch in (source, known))
    torch.testing.assert_close(both.alignment[0](), alone.alignment[0]())
    expected = model(pixel_values=source["pixel_values"], labels=source["labels"]).task_loss
    torch.testing.assert_close(both.task[0](), expected)
    assert not torch.allclose(expected, alone.task[0]())
    task_loss, alignment_loss = both.both[0]()
    torch.testing.assert_close(torch.stack([task_loss, alignment_loss]), torch.stack([expected, alone.alignment[0]()]))


def test_mixed_batches_share_a_canvas():
    source = {"pixel_values": torch.ones(1, 3, 4, 6), "labels": [{}]}
    target = {"pixel_values": torch.ones(2, 3, 5, 5), "pixel_mask": torch.ones(2, 5, 5, dtype=torch.long)}
    target["pixel_mask"][1, 3:] = 0
    mixed = mix_detection(source, target)
    assert mixed["pixel_values"].shape == (3, 3, 5, 6) and mixed["labels"] == [{}, None, None]
    assert mixed["pixel_mask"].sum((1, 2)).tolist() == [24, 25, 15]
    assert mixed["domain_labels"].tolist() == [0, 1, 1]
    same = mix_detection(source, {"pixel_values": torch.ones(1, 3, 4, 6)})
    assert "pixel_mask" not in same


def test_evaluate_and_predict_and_export(finished, tmp_path, capsys):
    output, _ = finished
    figures = tmp_path / "figures.json"
    assert run(["evaluate", str(output), "--data", "scenes_photo", "--output", str(figures)]) == 0
    text = capsys.readouterr().out
    assert re.search(r"mAP@50 .*COCO", text) and "11 points" in text and "on 200 images" in text
    found = json.loads(figures.read_text())
    assert set(found["per_class50"]) == {"zero", "one", "two"} and found["n"] == 200

    photos = tmp_path / "photos"
    photos.mkdir()
    for index in range(3):
        save_image(torch.rand(3, 50, 70), photos / f"{index}.png")
    command = ["predict", str(output), str(photos), "--threshold", "0.01"]
    command += ["--output", str(tmp_path / "found.json"), "--draw", str(tmp_path / "drawn")]
    assert run(command) == 0
    assert "3 pictures" in capsys.readouterr().out and len(list((tmp_path / "drawn").glob("*.png"))) == 3
    document = json.loads((tmp_path / "found.json").read_text())
    assert len(document["images"]) == 3 and document["annotations"][0]["score"] >= 0.01
    from metaalign_hf import DomainConfig

    raw = read_detection_domain(DomainConfig.parse(f"coco:{tmp_path / 'found.json'}"))
    assert raw.labels == ["zero", "one", "two"] and len(raw.train) == 3
    assert run(command) == 2 and "exists" in capsys.readouterr().err
    assert run([*command[:5], "--output", str(tmp_path / "found.csv")]) == 0
    header, *rows = csv.reader((tmp_path / "found.csv").read_text().splitlines())
    assert header == ["file", "label", "score", "x_min", "y_min", "x_max", "y_max"]
    assert len(rows) == len(document["annotations"])
    for row, entry in zip(rows, document["annotations"], strict=True):
        assert row[:2] == [str(photos / f"{entry['image_id']}.png"), raw.labels[entry["category_id"]]]
        left, top, width, height = entry["bbox"]
        found_box = [float(value) for value in row[3:]]
        assert found_box == pytest.approx([left, top, left + width, top + height], abs=0.01)
    assert run([*command[:5], "--tile", "40", "--output", str(tmp_path / "tiled.csv")]) == 0
    _, *tiled = csv.reader((tmp_path / "tiled.csv").read_text().splitlines())
    assert {row[0] for row in tiled} == {row[0] for row in rows} and tiled != rows
    command_evaluate = ["evaluate", str(output), "--data", f"coco:{tmp_path / 'found.json'}", "--split", "all"]
    assert run(command_evaluate) == run([*command_evaluate, "--tile", "40"]) == 0
    assert capsys.readouterr().out.count("on 3 images") == 2
    (photos / "broken.png").write_bytes(b"broken")
    for ending in ("jsonl", "parquet"):
        assert run([*command[:5], "--output", str(tmp_path / f"found.{ending}")]) == 0
        errors = capsys.readouterr().err
        assert "broken.png cannot be read" in errors and "1 of 4 images could not be read" in errors
    table = [json.loads(line) for line in (tmp_path / "found.jsonl").read_text().splitlines()]
    assert table == pyarrow.parquet.read_table(tmp_path / "found.parquet").to_pylist()
    assert [[str(value) for value in row.values()] for row in table] == rows
    assert run([*command[:5], "--output", str(tmp_path / "found.txt")]) == 2
    assert run(["predict", str(output), str(photos), "--top-k", "2"]) == 2
    assert "for classifiers" in capsys.readouterr().err
    assert run(["predict", str(output), str(photos), "--threshold", "0.01"]) == 0
    assert "0.png\t" in capsys.readouterr().out

    native = tmp_path / "native"
    assert run(["export", str(output), str(native)]) == 0
    assert "metaalign" not in (native / "config.json").read_text()
    assert run(["evaluate", str(native), "--data", "scenes_photo", "--output", str(tmp_path / "native.json")]) == 0
    assert json.loads((tmp_path / "native.json").read_text()) == found


def test_a_checkpoint_can_be_adapted_further(finished, pair, tmp_path):
    output, _ = finished
    summary = train(pair, tmp_path / "more", **{"model.checkpoint": str(output), "training.source_steps": 0})
    assert summary.source_steps == 0
    assert MetaAlignForObjectDetection.from_pretrained(tmp_path / "more").config.labels == pair.labels


def test_a_checkpoint_keeps_its_own_order_of_classes(finished, pair):
    from metaalign_hf.tasks.building import build_task

    output, _ = finished
    turned = pair.in_order(["two", "zero", "one"])
    task = build_task(load_config(TINY, {"model.checkpoint": str(output)}), turned)
    assert task.pair.labels == ["zero", "one", "two"]
    for a, b in zip(task.pair.source_train.objects, pair.source_train.objects, strict=True):
        assert torch.equal(a.labels, b.labels)


def test_classes_of_checkpoint_and_data_are_matched_by_name(finished, pair, tmp_path):
    output, _ = finished
    model = MetaAlignForObjectDetection.from_pretrained(output)
    order = ["two", "zero", "one"]
    model.config.id2label, model.config.label2id = dict(enumerate(order)), {n: i for i, n in enumerate(order)}
    model.save_pretrained(tmp_path / "shuffled")
    config = load_config(TINY, {"model.checkpoint": str(tmp_path / "shuffled")})
    found = DetectionTask(config, pair).pair
    assert found.labels == order and pair.labels == ["zero", "one", "two"]
    for name in ("source_train", "source_test", "target_evaluation"):
        for before, after in zip(getattr(pair, name).objects, getattr(found, name).objects, strict=True):
            assert torch.equal(before.boxes, after.boxes)
            names = [[labels[i] for i in o.labels] for labels, o in ((pair.labels, before), (order, after))]
            assert names[0] == names[1]
    assert found.target_train.objects is None and found.target_test_images.objects is None

    order[0] = "ten"
    model.config.id2label, model.config.label2id = dict(enumerate(order)), {n: i for i, n in enumerate(order)}
    model.save_pretrained(tmp_path / "other")
    config.model.checkpoint = str(tmp_path / "other")
    with pytest.raises(UserError, match="only the model has ten; only the data has two"):
        DetectionTask(config, pair)


def test_a_checkpoint_that_is_no_metaalign_detector_is_refused(finished, tmp_path, capsys):
    output, _ = finished
    command = ["train", "--config", TINY, "--training.output_dir", str(tmp_path / "run"), "--model.checkpoint"]
    native, damaged = tmp_path / "native", tmp_path / "damaged"
    assert run(["export", str(output), str(native)]) == 0
    shutil.copytree(output, damaged)
    state = load_file(damaged / "model.safetensors")
    del state["detector.model.enc_output.0.weight"]
    save_file(state, damaged / "model.safetensors", metadata={"format": "pt"})
    capsys.readouterr()
    for place, words in (
        (native, f"holds DFineForObjectDetection, not MetaAlignForObjectDetection.*use model.detector: {native}"),
        (damaged, f"model.checkpoint {damaged}: 1 tensors are missing or misshapen"),
    ):
        assert run([*command, str(place)]) == 2
        assert re.search(words, capsys.readouterr().err.strip().splitlines()[-1])
    config = json.loads((native / "config.json").read_text())
    (native / "config.json").write_text(json.dumps({**config, "architectures": ["ViTForImageClassification"]}))
    assert run([*command, str(native)]) == 2
    error = capsys.readouterr().err
    assert (
        "holds ViTForImageClassification, not MetaAlignForObjectDetection" in error and "model.detector:" not in error
    )
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--model.detector", "d_fien"], "did you mean d_fine"),
        (["--model.detector", "resnet"], "known detectors"),
        (["--model.alignment", "dann"], "unknown level 'dann'"),
        (["--model.alignment", "null"], "needs an alignment objective"),
        (["--model.detector_options", "{num_querys: 3}"], "num_queries"),
        (["--data.source", "mnist"], "kind digits has no boxes"),
        (["--data.source", "coco:/no/such.json"], "such.json cannot be read"),
        (["--training.pseudo_label_weight", "1"], "set training.ema_decay"),
        (["--training.pseudo_label_weight", "-1"], "pseudo_label_weight is -1.0: it must be a finite number"),
        (["--training.pseudo_label_threshold", "1.5"], "pseudo_label_threshold is 1.5: it must lie in 0..1"),
        (["--training.pseudo_label_threshold.two", "-0.1"], "pseudo_label_threshold of two is -0.1"),
        (
            ["--training.pseudo_label_threshold", "high"],
            "pseudo_label_threshold is high: it must be a finite number or a mapping",
        ),
        ([*TEACHER, "--coordination.method", "source_only"], "source_only reads no target"),
        ([*TEACHER, "--training.pseudo_label_threshold", "{zero: 0.3, one: 0.3, tow: 0.3}"], "tow is not a class"),
        ([*TEACHER, "--training.pseudo_label_threshold.two", "0.3"], "one, zero has none"),
        (["--data.detector_size", "[64, 32]"], "detector_size"),
        (["--model.checkpoint", "/no/such/folder"], "model.checkpoint"),
        (["--training.batch_size", "1000"], "fewer than a batch of 1000"),
        (["--training.select_by", "bnm"], "for detectors: agreement, entropy"),
        (["--data.source", "[scenes_plain, scenes_photo]"], "data.target is the source"),
        (["--training.metric", "balanced_accuracy"], "training.metric: balanced_accuracy is for classifiers"),
    ],
)
def test_bad_input_is_told_in_one_line_and_leaves_nothing(options, message, tmp_path, capsys):
    output = tmp_path / "run"
    assert run(["train", "--config", TINY, "--training.output_dir", str(output), *options]) == 2
    error = capsys.readouterr().err.strip()
    assert re.search(message, error) and "\n" not in error
    assert not output.exists()


def test_a_run_that_diverges_ends_with_one_line(pair, tmp_path):
    with pytest.raises(UserError, match="diverge") as caught:
        train(pair, tmp_path / "run", **{"optimizer.lr": 1e30, "training.max_grad_norm": None})
    assert "\n" not in str(caught.value)


def test_a_classifier_refuses_what_is_for_detectors(tmp_path):
    config = load_config(
        str(Path(TINY).with_name("tiny.yaml")),
        {"data.augmentation": "crop_flip_color", "training.output_dir": str(tmp_path / "run")},
    )
    with pytest.raises(UserError, match="crop_flip_color is for detectors"):
        adapt(config)
