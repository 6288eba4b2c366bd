"""What a release would be: both distributions are built, checked, installed elsewhere, and work there."""

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest

from tests.helpers.runs import ROOT, TINY

TREE = ("src", "docs", "scripts", "examples", "pyproject.toml", "README.md", "LICENSE")


def succeeded(*command: object, **options: object) -> str:
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True, check=False, **options)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """The wheel, built from the sdist, and the sdist; of a tree without git, so that the fallback version stands."""
    tree, dist = tmp_path_factory.mktemp("tree"), tmp_path_factory.mktemp("dist")
    for name in TREE:
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copyfile
        copy(ROOT / name, tree / name)
    succeeded(sys.executable, "-m", "build", "--no-isolation", "-o", dist, cwd=tree)
    (wheel,), (sdist,) = dist.glob("*.whl"), dist.glob("*.tar.gz")
    return wheel, sdist


def test_both_are_whole(built):
    wheel, sdist = built
    succeeded(sys.executable, "-m", "twine", "check", "--strict", wheel, sdist)
    assert wheel.name == "metaalign_hf-0.1.0-py3-none-any.whl" and sdist.name == "metaalign_hf-0.1.0.tar.gz"
    inside = set(zipfile.ZipFile(wheel).namelist())
    assert {"metaalign_cli.py", "metaalign_hf/py.typed", "metaalign_hf/skills/SKILL.md"} <= inside
    assert not any("test" in Path(name).parts[0] or name.endswith(".pyc") for name in inside)
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert {"pyproject.toml", "LICENSE", "docs/index.md", "examples/digits.yaml"} <= names


def test_the_version_follows_git(tmp_path):
    shutil.copyfile(ROOT / "pyproject.toml", tmp_path / "pyproject.toml")

    def git(*words: str) -> None:
        identity = ["-c", "user.name=a", "-c", "user.email=a@b.c", "-c", "commit.gpgsign=false"]
        succeeded("git", *identity, *words, cwd=tmp_path)

    def version() -> str:
        return succeeded(sys.executable, "-m", "hatchling", "version", cwd=tmp_path).strip()

    assert version() == "0.1.0"
    git("init", "-q")
    git("add", ".")
    git("commit", "-qm", "first")
    git("tag", "v0.7.0")
    assert version() == "0.7.0"
    git("commit", "-qm", "second", "--allow-empty")
    assert version() == "0.7.1.dev1"


def test_the_wheel_works_where_nothing_else_of_the_tree_is(built, tmp_path):
    wheel, _ = built
    venv.create(tmp_path / "env", with_pip=False)
    python = tmp_path / "env" / "bin" / "python"
    packages = Path(succeeded(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip())
    succeeded(sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-deps", "--no-index", wheel)
    # The dependencies are those of this environment; of its own copy of the package nothing is seen.
    (packages / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    options = {"cwd": tmp_path, "env": environment}
    assert succeeded(python, "-m", "metaalign_hf", "--version", **options) == "metaalign-hf 0.1.0\n"
    script = tmp_path / "env" / "bin" / "metaalign"
    steps = ["--training.source_steps", "1", "--training.max_steps", "1"]
    succeeded(script, "train", "--config", TINY, "--training.output_dir", "run", *steps, **options)
    (session,) = json.loads((tmp_path / "run" / "run.json").read_text())["sessions"]
    assert session["versions"]["metaalign-hf"] == "0.1.0"
    found = "import importlib.util as u; print(u.find_spec('metaalign_hf').origin)"
    place = succeeded(python, "-c", found, **options)
    assert Path(place.strip()).is_relative_to(packages)
