"""Disks that are full or read-only: one line that names the place, and a run that goes on once there is room."""

import json
import resource
import shutil
import subprocess
from contextlib import contextmanager
from pathlib import Path

import pytest
from PIL import Image

from metaalign_hf.cli import run
from tests.helpers.runs import TINY

CONTINUES = "go on with --training.resume auto"


def train(output: Path, *options: str) -> int:
    steps = ["--training.max_steps", "6", "--training.checkpoint_every", "2", "--training.keep_checkpoints", "1"]
    return run(["train", "--config", TINY, "--training.output_dir", str(output), *steps, *options])


def line(capsys) -> str:
    error = capsys.readouterr().err
    assert error.startswith("metaalign: ") and error.count("\n") == 1, error
    return error


@contextmanager
def files_of_at_most(size: int):
    """As on a full disk, a write fails half-way; Python ignores the signal that comes with it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.fixture
def small_disk(tmp_path):
    """Mounts a small disk of its own and returns its folder and a function that mounts it anew with options."""
    folder = tmp_path / "disk"
    folder.mkdir()

    def mount(options: str) -> None:
        subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", folder], check=True, capture_output=True)

    if shutil.which("mount") is None:
        pytest.skip("there is no mount command here")
    try:
        mount("size=16k")
    except subprocess.CalledProcessError:
        pytest.skip("mounting is not allowed here")
    yield folder, mount
    subprocess.run(["umount", folder], check=True)


@pytest.mark.parametrize("size", [100, 20_000])
def test_a_write_that_fails_is_told_and_the_run_goes_on_afterwards(size, capsys, tmp_path):
    """The two sizes stop the configuration, and the tensors of the first checkpoint."""
    output = tmp_path / "run"
    with files_of_at_most(size):
        assert train(output) == 2
    error = line(capsys)
    assert str(output) in error and "(File too large)" in error
    assert (CONTINUES in error) == (size == 20_000) and not (output / "summary.json").exists()
    assert train(output, "--training.resume", "true") == 0
    steps = [json.loads(entry)["step"] for entry in (output / "metrics.jsonl").read_text().splitlines()]
    assert steps == sorted(steps) and steps[-1] == 10


def test_a_full_disk_is_told(small_disk, capsys):
    folder, _ = small_disk
    assert train(folder / "run") == 2
    error = line(capsys)
    assert f"{folder}/run" in error and "(No space left on device)" in error and CONTINUES in error


def fill(folder: Path) -> None:
    with pytest.raises(OSError), (folder / "others").open("wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))


def test_a_disk_that_is_full_at_once_is_told_and_left_as_it_was(small_disk, capsys):
    folder, _ = small_disk
    fill(folder)
    assert train(folder / "run") == 2
    assert "(No space left on device)" in line(capsys)
    assert [path.name for path in folder.rglob("*") if path.is_file()] == ["others"]


def test_a_read_only_disk_is_told_before_anything_is_read(small_disk, capsys):
    folder, mount = small_disk
    mount("remount,ro")
    assert train(folder / "new" / "run", "--data.source", "imagefolder:/no/such/folder") == 2
    error = line(capsys)
    assert f"training.output_dir: {folder}/new/run cannot be written" in error and "read-only" in error


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    output = tmp_path_factory.mktemp("runs") / "run"
    assert train(output, "--training.source_steps", "0", "--training.max_steps", "1", "--training.batch_size", "2") == 0
    Image.new("RGB", (8, 8)).save(output.parent / "image.png")
    return output


@pytest.mark.parametrize("how", ["full", "read-only"])
@pytest.mark.parametrize("command", ["predict", "evaluate", "export", pytest.param("onnx", marks=pytest.mark.slow)])
def test_the_other_commands_tell_a_disk_that_cannot_be_written(command, how, model, small_disk, capsys):
    folder, mount = small_disk
    fill(folder)
    if how == "read-only":
        mount("remount,ro")
    arguments = {
        "predict": ["predict", model, model.parent / "image.png", "--output", folder / "answers.csv"],
        "evaluate": ["evaluate", model, "--data", "uci_digits", "--output", folder / "figures.json"],
        "export": ["export", model, folder / "native"],
        "onnx": ["export", model, folder / "native", "--onnx"],
    }[command]
    capsys.readouterr()
    assert run([str(word) for word in arguments]) == 2
    error = capsys.readouterr().err
    lines = [entry for entry in error.splitlines() if entry.startswith("metaalign: ")]
    reason = "No space left on device" if how == "full" else "Read-only file system"
    assert len(lines) == 1 and str(folder) in lines[0] and reason in lines[0] and "Traceback" not in error
    assert [path.name for path in folder.iterdir()] == ["others"]
