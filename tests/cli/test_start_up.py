"""Help, the version and usage errors are answered at once: without torch, below one second of CPU time."""

import os
import resource
import subprocess
import sys
import tomllib
from importlib.metadata import version
from pathlib import Path

import pytest

from metaalign_hf.configuration.short_help import COMMON_KEYS

ROOT = Path(__file__).parents[2]


def cpu_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def at_once(*words: str, start: tuple[str, ...] = ("-m", "metaalign_hf")) -> subprocess.CompletedProcess:
    """Run the program and see that it neither takes long nor imports torch; stderr comes back without the imports."""
    before = cpu_seconds()
    command = [sys.executable, "-X", "importtime", *start, *words]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert cpu_seconds() - before < 1
    lines = done.stderr.splitlines()
    imported = {line.rpartition("|")[2].strip() for line in lines if line.startswith("import time:")}
    assert "metaalign_hf.cli" in imported or start[0] == "-m"
    assert not {"torch", "transformers", "timm", "datasets"} & imported
    done.stderr = "\n".join(line for line in lines if not line.startswith("import time:"))
    return done


def test_the_program_starts_outside_the_package():
    module, _, name = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]["metaalign"].partition(
        ":"
    )
    done = at_once("--version", start=("-c", f"from {module} import {name}; {name}()"))
    assert done.returncode == 0 and done.stdout == f"metaalign-hf {version('metaalign-hf')}\n"


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ([], ["usage: metaalign COMMAND", "--version"]),
        (["--help"], ["usage: metaalign COMMAND", "predict"]),
        (["train", "--help"], ["usage: metaalign train", "--help all"]),
        (["train", "--help", "all"], ["--optimizer.discriminator_inner_multiplier", "--training.select_tolerance"]),
        (["tune", "--help"], ["--try KEY=VALUE,VALUE", "--trials"]),
        (["evaluate", "--help"], ["--split"]),
        (["predict", "--help"], ["--top-k", "exit code"]),
        (["export", "--help"], ["--onnx"]),
        (["push", "--help"], ["--create-pr"]),
        (["report", "--help"], ["--output", "RUN"]),
        (["compare", "--help"], ["--methods", "--seeds"]),
        (["app", "--help"], ["--against", "--port", "127.0.0.1"]),
    ],
    ids=" ".join,
)
def test_help(words, told):
    done = at_once(*words)
    assert done.returncode == (0 if words else 2) and done.stderr == ""
    assert all(word in done.stdout for word in told)


def test_the_short_help_has_the_keys_that_people_set():
    text = at_once("train", "--help").stdout
    assert len(COMMON_KEYS) == 20 and len(text.splitlines()) < 80
    assert all(f"  --{key} " in text for key in ("config", *COMMON_KEYS))
    assert "(default: 1000)" in text and "One of" in text


def test_the_long_help_offers_nothing_that_is_refused():
    text = at_once("train", "--help", "all").stdout
    assert text.startswith("usage: metaalign train [--config FILE] [--section.key VALUE ...]\n\n")
    assert ".help" not in text and "Path to a configuration file" not in text
    assert "--training.trackers [ITEM,...]\n" in text and "--training.trackers+" not in text


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["predcit", "x"], ["predcit", "did you mean predict"]),
        (["predict"], ["checkpoint, images"]),
        (["predict", "run", "x.png", "--topk", "3"], ["--topk", "--top-k"]),
        (["predict", "run", "x.png"], ["x.png", "does not exist"]),
        (["predict", "run", "/dev/zero"], ["/dev/zero", "device"]),
        (["predict", "run", ".", "--output", "table.txt"], ["table.txt", ".csv, .json, .jsonl, .parquet"]),
        (["predict", "run", ".", "--batch-size", "-3"], ["--batch-size", "-3", "1 or more"]),
        (["predict", "run", ".", "--batch-size", "0"], ["--batch-size", "1 or more"]),
        (["predict", "run", ".", "--top-k", "0"], ["--top-k", "1 or more"]),
        (["predict", "run", ".", "--threshold", "1.5"], ["--threshold", "1.5", "0 to 1"]),
        (["evaluate", "run"], ["--data"]),
        (["evaluate", "run", "--data", "minst"], ["minst", "mnist"]),
        (["evaluate", "run", "--data", "mnist", "--data.domian", "x"], ["data.domian", "data.domain"]),
        (["evaluate", "run", "--data", "mnist", "--batch-size", "many"], ["--batch-size", "many"]),
        (["export", "run", "native", "--onnx", "--image-size", "-5", "5"], ["--image-size", "-5", "1 or more"]),
        (["export", "run", "native", "--image-size", "5", "5"], ["--image-size", "--onnx"]),
        (["push", "run"], ["repo_id"]),
        (["report", "a", "b"], ["--output"]),
        (["compare", "x.yaml"], ["--methods"]),
        (["train"], ["--config", "--data.source"]),
        (["train", "--training.batchsize", "8"], ["training.batchsize", "training.batch_size"]),
        (["train", "--data.source", "mnist"], ["data.target is missing"]),
    ],
    ids=" ".join,
)
def test_usage_errors(words, told):
    done = at_once(*words)
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.startswith("metaalign: ") and "\n" not in done.stderr
    assert all(word in done.stderr for word in told), done.stderr


def test_importing_the_package_registers_the_auto_classes():
    script = (
        "import metaalign_hf\n"
        "from transformers import AutoConfig, AutoModelForImageClassification\n"
        "assert AutoConfig.for_model('metaalign').model_type == 'metaalign'\n"
        "kinds = AutoModelForImageClassification._model_mapping\n"
        "assert kinds[metaalign_hf.MetaAlignConfig] is metaalign_hf.MetaAlignForImageClassification\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True)


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no device that is always full")
def test_a_full_disk_behind_stdout_is_told():
    with open("/dev/full", "w") as full:
        command = [sys.executable, "-m", "metaalign_hf", "--help"]
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and "No space left" in done.stderr


def test_a_reader_that_has_seen_enough_is_no_error():
    command = [sys.executable, "-m", "metaalign_hf", "train", "--help", "all"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    process.stdout.close()
    assert process.stderr.read() == b""
    assert process.wait() == 1
