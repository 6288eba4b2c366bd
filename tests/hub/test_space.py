"""`metaalign push --space`: three small files on the Hub, and what they serve."""

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from huggingface_hub import RepoCard

from metaalign_hf import MetaAlignForImageClassification
from metaalign_hf.cli import run
from metaalign_hf.models import build_image_processor
from tests.helpers.hub_server import HubServer
from tests.hub.test_hub import metaalign, refused

FILES = {".gitattributes", "README.md", "app.py", "requirements.txt"}


@pytest.fixture
def hub():
    with HubServer({"hf_alice": "alice"}, organisations={"lab": {"alice"}}) as server:
        yield server


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("model")
    options = {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1], "layer_type": "basic"}
    made = MetaAlignForImageClassification.from_backbone("resnet", ["x", "y"], "dann", pretrained=False, **options)
    made.save_pretrained(folder)
    build_image_processor(16, 18, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)).save_pretrained(folder)
    return folder


def test_a_space_serves_what_was_pushed(hub, model, tmp_path, capsys):
    hub.put("spaces/alice/theirs", {"app.py": b"print('mine')"})
    answers = metaalign(
        hub,
        tmp_path / "home",
        ["push", model, "digits", "--space", "--license", "mit"],
        ["push", model, "lab/digits", "--revision", "trial", "--space", "look", "--private"],
        ["push", model, "digits", "--space", "theirs"],
        ["push", model, "digits", "--space", "alice/theirs", "--overwrite"],
        ["push", model, "digits", "--space", "--create-pr"],
        ["push", model, "digits", "--space", "--adapter"],
    )
    told = [answer[1].splitlines() for answer in answers]
    assert [answer[0] for answer in answers] == [0, 0, 2, 0, 2, 2]
    assert told[0][1] == f"Space: {hub.url}/spaces/alice/digits"
    assert told[1][1:] == [
        f"Space: {hub.url}/spaces/lab/look",
        "It reads a private checkpoint: give it an access token, as the secret HF_TOKEN in its settings",
    ]
    assert "alice/theirs: it holds another space" in refused(answers[2]) and "--create-pr" in refused(answers[4])
    assert "--adapter" in refused(answers[5])
    assert set(hub.repos) == {
        "alice/digits",
        "lab/digits",
        *(f"spaces/{n}" for n in ("alice/digits", "lab/look", "alice/theirs")),
    }
    for name in ("alice/digits", "alice/theirs", "lab/look"):
        files = hub.files(f"spaces/{name}")
        assert set(files) == FILES and not any(b"hf_alice" in content for content in files.values())
    assert b'build_app("lab/digits@trial")' in hub.files("spaces/lab/look")["app.py"]
    assert hub.repos["spaces/lab/look"].private and not hub.repos["spaces/alice/digits"].private
    card = RepoCard(hub.files("spaces/alice/digits")["README.md"].decode(), ignore_metadata_errors=False).data
    assert (card.sdk, card.app_file, card.license, card.models) == ("gradio", "app.py", "mit", ["alice/digits"])
    assert card.python_version == "3.11" and "metaalign" in card.tags
    assert hub.files("spaces/alice/digits")["requirements.txt"].startswith(b"metaalign-hf[app]")

    if find_spec("gradio") is not None:
        row = served(hub, tmp_path)
        capsys.readouterr()
        assert run(["predict", str(model), str(tmp_path / "red.png")]) == 0
        assert capsys.readouterr().out.split("\t")[1:] == [row["label"], f"{row['probability']:.3f}\n"]


def served(hub: HubServer, folder: Path) -> dict:
    """What the Space, run as the Hub does it, says of a red image, as a row of its table."""
    from gradio_client import Client, handle_file
    from PIL import Image

    (folder / "app.py").write_bytes(hub.files("spaces/alice/digits")["app.py"])
    Image.new("RGB", (20, 20), "red").save(folder / "red.png")
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "HUGGING"))}
    environment |= {**hub.environment(folder / "visitor"), "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
    process = subprocess.Popen(
        [sys.executable, "app.py"], cwd=folder, env=environment, stdout=subprocess.PIPE, text=True
    )
    try:
        address = next(line.split()[-1] for line in process.stdout if "local URL" in line)
        _, table = Client(address, verbose=False).predict([handle_file(str(folder / "red.png"))], api_name="/predict")
    finally:
        process.kill()
        process.wait()
    (row,) = table["value"]["data"]
    return dict(zip(table["value"]["headers"], row, strict=True))
