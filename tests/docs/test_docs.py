"""The documentation builds without a dead link, and what it tells one to type works."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers.hub_server import HubServer
from tests.helpers.runs import ROOT, TINY

MKDOCS = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet"]


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    built = tmp_path_factory.mktemp("docs") / "site"
    done = subprocess.run([*MKDOCS, "-d", str(built)], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return built


def test_every_page_is_built_and_short(site):
    pages = list((ROOT / "docs").glob("*.md"))
    assert len(pages) >= 20
    for page in pages:
        built = site / ("" if page.stem == "index" else page.stem) / "index.html"
        text = built.read_text()
        assert "<h1" in text and not re.search(r'(src|href)="https?://(fonts|cdn|unpkg)', text), page.name
    api = (site / "api" / "index.html").read_text()
    assert "the gradient equals" in api or "theta" in api
    assert 'id="metaalign_hf.trainer.MetaAlignTrainer.evaluate"' in api


def test_the_site_has_a_text_for_assistants(site):
    text = (site / "llms.txt").read_text()
    links = re.findall(r"^- \[(.+?)\]\((.+?)\): .+", text, re.MULTILINE)
    assert len(links) >= 20 and text.startswith("# metaalign-hf\n\n> ")
    for _, link in links:
        assert (site / link).is_file(), link


def test_every_code_block_runs(tmp_path):
    with HubServer({"hf_you": "you"}) as hub:
        environment = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
        environment |= {**hub.environment(tmp_path / "home", "hf_you"), "OMP_NUM_THREADS": "1"}
        environment["PYTHONPATH"] = os.pathsep.join([str(ROOT / "src"), str(ROOT)])
        command = [sys.executable, str(Path(__file__).with_name("run_blocks.py")), str(ROOT / "docs"), TINY]
        done = subprocess.run(
            command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=600, check=False
        )
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-5000:]
        assert "model.safetensors" in hub.files("you/digits-native")
