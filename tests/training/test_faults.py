"""Faults in the middle of a run: each ends in a clear line, and in a folder that the run goes on from."""

import json
import multiprocessing
import os
import shutil
import signal
from pathlib import Path

import pytest
import torch
from PIL import Image

from metaalign_hf import AlignmentObjective, AlignmentOutput, load_domain_pair, register_alignment
from metaalign_hf.cli import run
from tests.helpers.runs import TINY, assert_same_run, launch, lines, train, weights, when_reached

ON = ["--training.resume", "auto"]


def arguments(output, *options):
    return ["train", "--config", TINY, "--training.output_dir", str(output), *options]


def refusal(capsys, *command):
    capsys.readouterr()
    assert run(list(command)) == 2
    error = capsys.readouterr().err
    assert error.startswith("metaalign: ") and error.count("\n") == 1, error
    return error


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Two domains of image files."""
    folder = tmp_path_factory.mktemp("photos")
    pair = load_domain_pair("uci_digits", "mnist")
    for domain, images in (("a", pair.source_train), ("b", pair.source_test)):
        for index in range(60):
            path = folder / domain / str(images.labels[index] % 2) / f"{index}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(images[index].permute(1, 2, 0).numpy()).save(path)
    return folder


def of(photos):
    return ["--data.source", f"imagefolder:{photos}/a", "--data.target", f"imagefolder:{photos}/b"]


@pytest.fixture
def damaged(photos, tmp_path):
    """The same with an image in each domain that is cut short."""
    copy = tmp_path / "photos"
    shutil.copytree(photos, copy)
    for path in (sorted(copy.glob("a/*/*.jpg"))[5], sorted(copy.glob("b/*/*.jpg"))[9], copy / "b/1/new.jpg"):
        whole = next(copy.glob("b/1/*.jpg")).read_bytes() if path.name == "new.jpg" else path.read_bytes()
        path.write_bytes(whole[: len(whole) // 2])
    return copy


@pytest.mark.parametrize("workers", ["0", pytest.param("1", marks=pytest.mark.slow)])
def test_an_unreadable_image_is_skipped_and_listed_or_ends_the_run_with_its_name(workers, damaged, tmp_path, capsys):
    options = [*of(damaged), "--training.max_steps", "20", "--data.num_workers", workers]
    error = refusal(capsys, *arguments(tmp_path / "error", *options))
    assert str(damaged) in error and "cannot be read" in error
    output = tmp_path / "skip"
    assert run(arguments(output, *options, "--data.on_bad_image", "skip")) == 0
    listed = [json.loads(line) for line in (output / "bad_images.jsonl").read_text().splitlines()]
    assert len(listed) == 3 and all("cannot be read" in entry["reason"] for entry in listed)
    said = capsys.readouterr().out.replace("\n", " ")
    assert "Images that could not be read, and were skipped: 3; bad_images.jsonl lists them." in said
    if workers == "0":
        assert run(arguments(tmp_path / "again", *options, "--data.on_bad_image", "skip")) == 0
        assert_same_run(output, tmp_path / "again")


@pytest.mark.parametrize("workers", ["0", pytest.param("1", marks=pytest.mark.slow)])
def test_data_that_disappear_are_named_and_the_run_goes_on_when_they_are_back(workers, photos, tmp_path, capsys):
    data, output = tmp_path / "photos", tmp_path / "run"
    shutil.copytree(photos, data)
    options = [*of(data), "--training.max_steps", "60", "--data.num_workers", workers]
    train(tmp_path / "whole", *options)
    gone = when_reached(output, 5, lambda: data.rename(tmp_path / "away"))
    error = refusal(capsys, *arguments(output, *options))
    gone.join()
    assert "does not exist" in error and "go on with --training.resume auto once that is put right" in error
    error = refusal(capsys, *arguments(output, *options, *ON))
    assert "does not exist" in error
    (tmp_path / "away").rename(data)
    assert run(arguments(output, *options, *ON)) == 0
    assert_same_run(tmp_path / "whole", output)


def test_a_worker_that_dies_is_told_and_the_run_goes_on(photos, tmp_path, capsys):
    output, options = tmp_path / "run", [*of(photos), "--training.max_steps", "60", "--data.num_workers", "1"]
    train(tmp_path / "whole", *options)

    def kill() -> None:
        os.kill(multiprocessing.active_children()[0].pid, signal.SIGKILL)

    dead = when_reached(output, 5, kill)
    error = refusal(capsys, *arguments(output, *options))
    dead.join()
    assert "a data worker died" in error and "data.num_workers" in error and "--training.resume auto" in error
    assert run(arguments(output, *options, *ON)) == 0
    assert_same_run(tmp_path / "whole", output)


def test_a_tracker_that_raises_does_not_end_the_run(tmp_path, monkeypatch, capsys):
    from torch.utils.tensorboard import SummaryWriter

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(SummaryWriter, "add_scalar", full)
    train(tmp_path / "run", "--training.trackers", "[tensorboard]")
    said = capsys.readouterr().out.replace("\n", " ")
    assert said.count("the tracker failed") == 1 and "nothing more is sent to tensorboard" in said
    assert len([line for line in lines(tmp_path / "run") if "phase" in line]) == 10


@register_alignment("test_not_finite_at")
class NotFiniteAt(AlignmentObjective):
    """Someone's objective that divides by zero in a part of the run."""

    uses_progress = True

    def __init__(self, feature_dim, num_labels, *, begin=0.0, end=0.0, loss_alone=False) -> None:
        super().__init__(feature_dim, num_labels)
        self.begin, self.end, self.loss_alone = begin, end, loss_alone

    def forward(self, batch):
        source, target = batch.split(batch.features, "test_not_finite_at")
        loss = (source.mean(0) - target.mean(0)).pow(2).sum()
        if self.begin <= batch.progress < self.end:
            loss = loss + float("inf") if self.loss_alone else loss * float("nan")
        return AlignmentOutput(loss)


def broken(begin: float, end: float, **more):
    return ["--model.alignment", json.dumps({"name": "test_not_finite_at", "begin": begin, "end": end, **more})]


@pytest.mark.parametrize(
    ("options", "loss_alone"),
    [
        (["--coordination.direction", "fresh"], False),
        (["--coordination.direction", "remembered", "--training.ema_decay", "0.9"], False),
        (["--coordination.direction", "remembered", "--training.ema_decay", "0.9"], True),
        (["--coordination.method", "joint", "--training.batch_norm", "per_domain"], False),
        (["--coordination.groups", "stage"], True),
    ],
    ids=["fresh", "remembered", "remembered, the loss alone", "joint", "groups, the loss alone"],
)
def test_a_step_that_is_not_finite_changes_nothing_and_is_counted(options, loss_alone, tmp_path, capsys):
    """After four source steps the steps 5..10 have progress 0, 1/6 ..., so that two of them are bad."""
    bad = [*broken(0.3, 0.6, loss_alone=loss_alone), *options, "--training.checkpoint_every", "1"]
    summary = train(tmp_path / "run", *bad, "--training.keep_checkpoints", "20")
    skipped = [line["step"] for line in lines(tmp_path / "run") if "skipped" in line]
    assert skipped == [7, 8]
    assert any("not finite, and which were skipped: 2." in note for note in summary["notes"])
    folder = tmp_path / "run" / "checkpoints"
    names = {path.name for path in (folder / "step-000006").glob("*.safetensors")}
    assert ("coordination.safetensors" in names) == ("remembered" in options)
    for name in names:
        assert (folder / "step-000006" / name).read_bytes() == (folder / "step-000008" / name).read_bytes(), name
    states = [json.loads((folder / f"step-{step:06d}/state.json").read_text()) for step in (6, 8)]
    own = [{name: value for name, value in state["coordinator"].items() if name != "step"} for state in states]
    assert own[0] == own[1]
    assert all(torch.isfinite(v).all() for v in weights(tmp_path / "run").values() if v.is_floating_point())


def test_after_too_many_in_a_row_the_run_stops_and_says_what_was_in_the_batch(photos, tmp_path, capsys):
    output = tmp_path / "run"
    options = [*of(photos), *broken(0.3, 2.0), "--training.max_bad_steps", "2"]
    error = refusal(capsys, *arguments(output, *options))
    assert "the gradient of the" in error and "is nan in step 9, as in the 2 before it" in error
    assert "learning rates 0.0" in error and "bad_step.json" in error and "step-000006" in error
    found = json.loads((output / "bad_step.json").read_text())
    assert found["step"] == 9 and {len(names) for names in found["images"].values()} == {8}
    assert all(name.endswith(".jpg") and name.startswith(str(photos)) for name in found["images"]["target"])
    replay = found["replay"].split()[1:]
    again = refusal(capsys, *replay)
    assert again == error
    assert json.loads((output / "bad_step.json").read_text()) == found


@pytest.mark.slow
def test_when_a_process_dies_the_others_end_soon_with_a_line(tmp_path):
    output = tmp_path / "run"

    def kill() -> None:
        for entry in os.listdir("/proc"):
            try:
                environment = Path(f"/proc/{entry}/environ").read_text()
                command = Path(f"/proc/{entry}/cmdline").read_text()
            except (OSError, UnicodeDecodeError):
                continue
            if str(output) in command and "\0LOCAL_RANK=1\0" in environment:
                os.kill(int(entry), signal.SIGKILL)

    dead = when_reached(output, 5, kill)
    ended = launch(output, "--training.max_steps", "100000", "--training.checkpoint_every", "4")
    dead.join()
    assert ended.returncode != 0
    assert "another process of the run has ended" in ended.stderr and "--training.resume auto" in ended.stderr
    assert run(arguments(output, "--training.max_steps", "100000", *ON, "--training.max_time", "1s")) in (2, 124)
