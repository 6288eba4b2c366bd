"""The Hub life of a checkpoint: the real client in subprocesses against a Hub on the loopback interface.

A subprocess, because the client reads its settings at import; one for several steps, because importing torch and
transformers takes longer than most of them.
"""

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml
from huggingface_hub import ModelCard, parse_eval_result_entries
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import ViTConfig, ViTForImageClassification

from metaalign_hf import MetaAlignForImageClassification, MetaAlignForObjectDetection
from metaalign_hf.cli import run
from metaalign_hf.hub.errors import HubError, explained
from metaalign_hf.models.detectors.processors import build_detector_processor
from metaalign_hf.run_folder import ADAPTER_FILES
from tests.helpers.hub_server import Fault, HubServer
from tests.helpers.runs import TINY
from tests.helpers.tiny_detectors import detector_settings

FULL = {
    ".gitattributes",
    "README.md",
    "config.json",
    "figures/training.png",
    "metrics.jsonl",
    "model.safetensors",
    "preprocessor_config.json",
    "summary.json",
    "training_config.yaml",
}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run's folder."""
    folder = tmp_path_factory.mktemp("hub") / "run"
    options = ["--training.output_dir", str(folder), "--training.evaluate_every", "2"]
    assert run(["train", "--config", TINY, *options]) == 0
    # Pictures of target images stay here, also those that somebody has put beside the figures.
    assert (folder / "target_images.png").is_file()
    for name in ("detections.png", "figures/target_images.png"):
        shutil.copyfile(folder / "target_images.png", folder / name)
    return folder


@pytest.fixture(scope="module")
def images_and_logits(trained, tmp_path_factory):
    """A file with images and the logits that the trained model gives for them."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(4, 3, 16, 16, generator=generator)
    with torch.no_grad():
        logits = MetaAlignForImageClassification.from_pretrained(trained).eval()(images).logits
    path = tmp_path_factory.mktemp("expected") / "expected.safetensors"
    save_file({"images": images, "logits": logits}, path)
    return path


@pytest.fixture
def hub():
    tokens = {"hf_alice": "alice", "hf_bob": "bob"}
    with HubServer(tokens, organisations={"lab": {"alice"}}) as server:
        yield server


def start(hub: HubServer, home: Path, script: str, *arguments: str, token: str | None = "hf_alice", **settings: str):
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "HUGGING"))}
    environment |= {**hub.environment(home, token), "OMP_NUM_THREADS": "1", **settings}
    command = [sys.executable, "-c", script, *map(str, arguments)]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, env=environment, stdin=pipe, stdout=pipe, stderr=pipe, text=True)


def client(hub: HubServer, home: Path, script: str, *arguments: str, **settings) -> str:
    """Run a script with the real client; returns what it printed."""
    process = start(hub, home, script, *arguments, **settings)
    out, errors = process.communicate(timeout=240)
    assert process.returncode == 0, out + errors
    return out


# Runs several `metaalign` commands, given as JSON, and prints exit code, output and errors of each as JSON.
COMMANDS = """
import contextlib, io, json, sys
from metaalign_hf.cli import run
from metaalign_hf.hub.errors import HubError, explained
done = []
for words in json.loads(sys.argv[1]):
    out, errors = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(errors):
        code = run(words)
    done.append((code, out.getvalue(), errors.getvalue()))
print("ANSWER" + json.dumps(done))
"""


def metaalign(hub: HubServer, home: Path, *commands: list, **settings) -> list[tuple[int, str, str]]:
    words = json.dumps([[str(word) for word in command] for command in commands])
    return json.loads(client(hub, home, COMMANDS, words, **settings).rpartition("ANSWER")[2])


def refused(answer: tuple[int, str, str]) -> str:
    """The one line of a command that was refused."""
    code, _, errors = answer
    assert code == 2, answer
    lines = [line for line in errors.splitlines() if line.startswith("metaalign: ")]
    assert "Traceback" not in errors and lines, errors
    return lines[-1]


PULL = """
import json, sys, torch
import metaalign_hf
from safetensors.torch import load_file
from huggingface_hub import model_info
from transformers import AutoConfig, AutoImageProcessor, AutoModelForImageClassification, pipeline
expected = load_file(sys.argv[1])
for place, revision in json.loads(sys.argv[2]):
    arguments = {} if revision is None else {"revision": revision}
    model = AutoModelForImageClassification.from_pretrained(place, **arguments).eval()
    assert type(model).__name__ == AutoConfig.from_pretrained(place, **arguments).architectures[0]
    if hasattr(model.config, "origin") and not place.startswith("/"):
        assert model.config.origin["revision"] == model_info(place, **arguments).sha
    with torch.no_grad():
        assert torch.equal(model(expected["images"]).logits, expected["logits"]), (place, revision)
    processor = AutoImageProcessor.from_pretrained(place, **arguments)
    assert processor.crop_size["height"] == 16
answer = pipeline("image-classification", model=json.loads(sys.argv[2])[0][0])(sys.argv[3])
print("ANSWER" + json.dumps(answer))
"""
# The same where neither metaalign_hf nor anything of it can be imported.
PULL_NATIVE = PULL.replace("import metaalign_hf\n", "sys.modules['metaalign_hf'] = None\n")


def test_push_and_pull_both_forms_bit_equal(hub, trained, images_and_logits, tmp_path):
    picture = tmp_path / "picture.png"
    Image.new("RGB", (20, 30), (200, 100, 0)).save(picture)
    home = tmp_path / "home"
    done = metaalign(
        hub,
        home,
        ["push", trained, "lab/digits", "--private", "--license", "apache-2.0"],
        ["push", trained, "digits", "--revision", "trial", "--commit-message", "A trial"],
        ["push", "lab/digits", "lab/digits-native", "--native"],
        ["push", "alice/digits@trial", "lab/digits", "--create-pr"],
        ["push", trained, "lab/shown", "--images"],
        ["push", "lab/digits", "lab/shown", "--images"],
    )
    assert [code for code, _, _ in done] == [0, 0, 0, 0, 0, 2], done
    shown = hub.files("lab/shown")
    assert set(shown) == FULL | {"figures/target_images.png", "figures/detections.png"}, "pictures only if asked for"
    assert b"](figures/target_images.png)" in shown["README.md"]
    assert "no picture of target images" in refused(done[5])
    assert f"{hub.url}/lab/digits/commit/" in done[0][1] and "discussions/1" in done[3][1]
    assert hub.repos["lab/digits"].private and not hub.repos["alice/digits"].private
    assert set(hub.files("lab/digits")) == FULL and set(hub.files("alice/digits")) == {".gitattributes"}
    assert set(hub.files("alice/digits", "trial")) == FULL
    assert hub.history("alice/digits", "trial") == ["A trial", "initial commit"]
    assert set(hub.files("lab/digits-native")) == FULL
    assert b"metaalign" not in hub.files("lab/digits-native")["config.json"].lower()
    hub.repos["lab/digits"].tags["v1"] = hub.repos["lab/digits"].branches["main"]

    places = [("lab/digits", None), ("lab/digits", "v1"), ("alice/digits", "trial"), (str(trained), None)]
    client(hub, home, PULL, images_and_logits, json.dumps(places), picture)
    native = json.dumps([("lab/digits-native", None)])
    answer = client(hub, home, PULL_NATIVE, images_and_logits, native, picture, token=None).rpartition("ANSWER")[2]
    assert {entry["label"] for entry in json.loads(answer)} <= set("0123456789")
    hub.stop()
    offline = client(hub, home, PULL_NATIVE, images_and_logits, native, picture, token=None, HF_HUB_OFFLINE="1")
    assert offline.rpartition("ANSWER")[2] == answer

    hub.start()
    (tmp_path / "pictures").mkdir()
    picture.rename(tmp_path / "pictures" / "one.png")
    table = tmp_path / "predictions.csv"
    done = metaalign(
        hub,
        home,
        ["predict", "lab/digits-native", tmp_path / "pictures", "--output", table],
        ["evaluate", "alice/digits@trial", "--data", "mnist", "--output", tmp_path / "figures.json"],
        ["export", "lab/digits@v1", tmp_path / "exported"],
    )
    assert [code for code, _, _ in done] == [0, 0, 0], done
    assert table.read_text().splitlines()[0] == "file,label,probability" and "one.png" in table.read_text()
    measured = json.loads((tmp_path / "figures.json").read_text())["accuracy"]
    assert measured == json.loads((trained / "summary.json").read_text())["target_accuracy_after"]
    assert torch.equal(
        load_file(tmp_path / "exported" / "model.safetensors")["classifier.1.weight"],
        load_file(trained / "model.safetensors")["classifier.weight"],
    )


# The code of a model card of adapters, where nothing of metaalign_hf can be imported.
PULL_ADAPTERS = """
import json, os, re, sys, torch
sys.modules["metaalign_hf"] = None
from huggingface_hub import hf_hub_download
from safetensors.torch import load_file
os.chdir(sys.argv[3])
card = open(hf_hub_download(sys.argv[1], "README.md")).read()
exec(re.search("```python\\n(.*?)```", card, re.S)[1])
expected = load_file(sys.argv[2])
with torch.no_grad():
    print("ANSWER" + json.dumps([
        classify("image.png", top_k=1)[0]["label"], type(model).__name__,
        float((model.eval()(expected["images"]).logits - expected["logits"]).abs().max()),
    ]))
"""


# Adapters of the Hub, read where no run was.
PULL_MODEL = """
import sys, torch
from metaalign_hf import MetaAlignForImageClassification
from safetensors.torch import load_file
expected = load_file(sys.argv[2])
model = MetaAlignForImageClassification.from_pretrained(sys.argv[1])
with torch.no_grad():
    assert torch.equal(model(expected["images"]).logits, expected["logits"])
print("ANSWER" + model.config.origin["weights"])
"""


def test_adapters_are_pushed_alone_and_read_by_plain_peft_and_by_us(hub, tmp_path):
    """A run on a base model of the Hub pushes its adapters; the card's own code loads them, and gives its labels.

    So do our commands, on another machine, where they are the model that was trained bit for bit.
    """
    size = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}
    ViTForImageClassification(ViTConfig(**size, image_size=16, patch_size=8, num_labels=7)).save_pretrained(tmp_path)
    hub.put("lab/base", {name: (tmp_path / name).read_bytes() for name in ("config.json", "model.safetensors")})
    hub.put("alice/theirs", {"adapter_config.json": b"{}"})
    Image.new("RGB", (20, 30), (200, 100, 0)).save(tmp_path / "image.png")
    output, home = tmp_path / "run", tmp_path / "home"
    command = [*TRAIN, "--training.output_dir", output, "--model.backbone", "lab/base", "--model.pretrained", "true"]
    command += ["--model.backbone_options", "{}", "--model.lora", "{r: 4}", "--optimizer.lr", "0.05"]
    command += ["--hub.repo_id", "lab/adapters", "--hub.adapter", "true", "--hub.license", "mit"]
    done = metaalign(
        hub,
        home,
        command,
        ["predict", output, tmp_path / "image.png", "--output", tmp_path / "labels.csv"],
        ["push", output, "lab/whole"],
        ["push", output, "lab/whole", "--adapter"],
        ["push", "lab/adapters", "lab/again"],
        ["push", output, "lab/again", "--adapter", "--native"],
        ["push", output, "alice/theirs", "--adapter"],
    )
    assert [code for code, _, _ in done] == [0, 0, 0, 0, 2, 2, 2], done
    assert "holds adapters without their base model" in refused(done[4]) and "are two forms" in refused(done[5])
    assert "it holds another model, which is not of metaalign-hf" in refused(done[6])
    adapters = FULL - {"config.json", "model.safetensors"} | set(ADAPTER_FILES)
    for name in ("lab/adapters", "lab/whole"):
        assert set(hub.files(name)) == adapters, "a model that it replaces is gone"
    found = ModelCard(hub.files("lab/adapters")["README.md"].decode()).data
    assert (found.base_model, found.base_model_relation, found.license) == ("lab/base", "adapter", "mit")

    commit = hub.repos["lab/base"].branches["main"]
    assert json.loads(hub.files("lab/adapters")["adapter_config.json"])["revision"] == commit
    assert f'revision="{commit}"' in hub.files("lab/adapters")["README.md"].decode()
    images = torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        logits = MetaAlignForImageClassification.from_pretrained(output).eval()(images).logits
    save_file({"images": images, "logits": logits}, tmp_path / "expected.safetensors")
    answer = client(hub, home, PULL_ADAPTERS, "lab/adapters", tmp_path / "expected.safetensors", tmp_path, token=None)
    label, kind, difference = json.loads(answer.rpartition("ANSWER")[2])
    assert label == (tmp_path / "labels.csv").read_text().splitlines()[1].split(",")[1]
    assert kind == "ViTForImageClassification" and difference <= 1e-5

    # The base model moves on; the adapters name the commit that they were trained on.
    hub.put("lab/base", {"model.safetensors": b"another"})
    elsewhere = tmp_path / "elsewhere"
    pulled = client(hub, elsewhere, PULL_MODEL, "lab/adapters", tmp_path / "expected.safetensors", token=None)
    assert pulled.rpartition("ANSWER")[2].strip() == "lab/adapters"
    data = ["--data", "mnist", "--split", "test"]
    done = metaalign(
        hub,
        elsewhere,
        ["predict", "lab/adapters", tmp_path / "image.png", "--output", tmp_path / "again.csv"],
        ["evaluate", output, *data, "--output", tmp_path / "of_run.json"],
        ["evaluate", "lab/adapters", *data, "--output", tmp_path / "of_adapters.json"],
        ["export", "lab/adapters", tmp_path / "native"],
        ["push", "lab/adapters", "lab/copy", "--adapter"],
        ["push", "lab/adapters", "lab/plain", "--native"],
    )
    assert [code for code, _, _ in done] == [0] * 6, done
    assert (tmp_path / "again.csv").read_text() == (tmp_path / "labels.csv").read_text()
    assert (tmp_path / "of_adapters.json").read_text() == (tmp_path / "of_run.json").read_text()
    native = ViTForImageClassification.from_pretrained(tmp_path / "native").eval()
    with torch.no_grad():
        assert torch.allclose(native(images).logits, logits, atol=1e-5)
    for name in ("adapter_model.safetensors", "metaalign_heads.safetensors", "adapter_config.json"):
        assert hub.files("lab/copy")[name] == hub.files("lab/adapters")[name]
    assert "adapter_config.json" not in hub.files("lab/plain")


PULL_DETECTOR = """
import json, sys, torch
import metaalign_hf
from safetensors.torch import load_file
from huggingface_hub import model_info
from transformers import AutoConfig, AutoImageProcessor, AutoModelForObjectDetection, pipeline
expected = load_file(sys.argv[1])
for place, revision in json.loads(sys.argv[2]):
    arguments = {} if revision is None else {"revision": revision}
    model = AutoModelForObjectDetection.from_pretrained(place, **arguments).eval()
    assert type(model).__name__ == AutoConfig.from_pretrained(place, **arguments).architectures[0]
    if hasattr(model.config, "origin") and not place.startswith("/"):
        assert model.config.origin["revision"] == model_info(place, **arguments).sha
    with torch.no_grad():
        found = model(expected["images"])
    assert torch.equal(found.logits, expected["logits"]), (place, revision)
    assert torch.equal(found.pred_boxes, expected["pred_boxes"]), (place, revision)
    assert AutoImageProcessor.from_pretrained(place, **arguments).size["height"] == 64
answer = pipeline("object-detection", model=json.loads(sys.argv[2])[0][0])(sys.argv[3], threshold=0.0)
print("ANSWER" + json.dumps(answer))
"""
PULL_NATIVE_DETECTOR = PULL_DETECTOR.replace("import metaalign_hf\n", "sys.modules['metaalign_hf'] = None\n")


@pytest.fixture(scope="module")
def detector(tmp_path_factory):
    """A detector's folder, and a file with images and the logits and boxes that it gives for them.

    Its classes are those of the embedded scenes in another order.
    """
    folder = tmp_path_factory.mktemp("detector")
    torch.manual_seed(0)
    settings = detector_settings()["d_fine"][1]
    model = MetaAlignForObjectDetection.from_detector(
        "d_fine", ["two", "zero", "one"], "detr", pretrained=False, **settings
    )
    with torch.no_grad():
        for parameter in model.parameters():  # class heads start at zero, where all queries score the same
            parameter.add_(0.05 * torch.randn_like(parameter))
    model.save_pretrained(folder / "adapted")
    build_detector_processor("d_fine", size=64).save_pretrained(folder / "adapted")
    images, threads = torch.randn(4, 3, 64, 64), torch.get_num_threads()
    torch.set_num_threads(1)  # as in the subprocesses: sums in another order have other last bits
    with torch.no_grad():
        output = MetaAlignForObjectDetection.from_pretrained(folder / "adapted").eval()(images)
    torch.set_num_threads(threads)
    tensors = {"images": images, "logits": output.logits, "pred_boxes": output.pred_boxes}
    save_file({name: value.contiguous() for name, value in tensors.items()}, folder / "expected.safetensors")
    return folder


def test_push_and_pull_both_forms_of_a_detector_bit_equal(hub, detector, tmp_path):
    adapted, expected, home = detector / "adapted", detector / "expected.safetensors", tmp_path / "home"
    (tmp_path / "pictures").mkdir()
    picture = tmp_path / "pictures" / "one.png"
    Image.new("RGB", (90, 60), (200, 100, 0)).save(picture)
    done = metaalign(
        hub,
        home,
        ["push", adapted, "lab/scenes", "--private"],
        ["push", adapted, "scenes", "--revision", "trial"],
        ["push", adapted, "lab/scenes-native", "--native"],
    )
    assert [code for code, _, _ in done] == [0, 0, 0], done
    names = {".gitattributes", "README.md", "config.json", "model.safetensors", "preprocessor_config.json"}
    assert set(hub.files("lab/scenes")) == set(hub.files("lab/scenes-native")) == names
    config = json.loads(hub.files("lab/scenes-native")["config.json"])
    assert config["architectures"] == ["DFineForObjectDetection"] and "metaalign" not in str(config).lower()
    for name in ("lab/scenes", "lab/scenes-native"):
        card = ModelCard(hub.files(name)["README.md"].decode())
        assert card.data.pipeline_tag == "object-detection" and "coco:TARGET.json" in card.text
    assert "--model.detector lab/scenes-native" in card.text
    hub.repos["lab/scenes"].tags["v1"] = hub.repos["lab/scenes"].branches["main"]

    places = [("lab/scenes", None), ("lab/scenes", "v1"), ("alice/scenes", "trial"), (str(adapted), None)]
    native = json.dumps([("lab/scenes-native", None)])
    whole = client(hub, home, PULL_DETECTOR, expected, json.dumps(places), picture).rpartition("ANSWER")[2]
    plain = client(hub, home, PULL_NATIVE_DETECTOR, expected, native, picture, token=None).rpartition("ANSWER")[2]
    assert json.loads(whole) == json.loads(plain) and len(json.loads(plain)) == 7
    assert {entry["label"] for entry in json.loads(plain)} <= {"zero", "one", "two"}

    commands = []
    for number, place in enumerate((adapted, "lab/scenes@v1", "lab/scenes-native")):
        output = ["--threshold", "0", "--output", tmp_path / f"found-{number}.json"]
        commands.append(["predict", place, tmp_path / "pictures", *output])
        if number:
            output = ["--output", tmp_path / f"figures-{number}.json"]
            commands.append(["evaluate", place, "--data", "scenes_photo", "--batch-size", "50", *output])
    done = metaalign(hub, home, *commands, ["evaluate", "lab/scenes@v2", "--data", "scenes_photo"])
    assert [code for code, _, _ in done] == [0] * 5 + [2], done
    assert "checkpoint lab/scenes@v2: the repository has no such branch, tag or commit" in refused(done[-1])
    for name, count in (("found", 3), ("figures", 2)):
        texts = [path.read_text() for path in sorted(tmp_path.glob(f"{name}-*.json"))]
        assert len(texts) == count and len(set(texts)) == 1, name
    figures = json.loads((tmp_path / "figures-1.json").read_text())
    assert figures["n"] == 200 and list(figures["per_class50"]) == ["two", "zero", "one"]
    found = json.loads((tmp_path / "found-0.json").read_text())
    assert len(found["annotations"]) == 21 and found["images"][0]["file_name"] == str(picture)


def test_a_pulled_detector_is_adapted_further(hub, detector, tmp_path):
    for name in ("config.json", "preprocessor_config.json", "model.safetensors"):
        hub.put("lab/scenes", {name: (detector / "adapted" / name).read_bytes()})
    hub.repos["lab/scenes"].tags["v1"] = hub.repos["lab/scenes"].branches["main"]
    output = tmp_path / "further"
    domains = ["--data.source", "scenes_plain", "--data.target", "scenes_photo"]
    run_options = ["--training.output_dir", output, "--optimizer.lr", "0", "--training.batch_size", "4"]
    run_options += ["--training.max_steps", "1", "--hub.repo_id", "lab/further", "--training.select_by", "null"]
    answers = metaalign(
        hub,
        tmp_path / "home",
        ["train", "--model.checkpoint", "lab/scenes@v2", *domains, *run_options],
        ["train", "--model.checkpoint", "lab/scenes@v1", *domains, *run_options],
        ["evaluate", "lab/further", "--data", "scenes_photo", "--output", tmp_path / "figures.json"],
    )
    assert "model.checkpoint: lab/scenes@v2: the repository has no such branch, tag or commit" in refused(answers[0])
    assert [code for code, _, _ in answers[1:]] == [0, 0], answers
    before, after = load_file(detector / "adapted" / "model.safetensors"), load_file(output / "model.safetensors")
    assert any(name.startswith("alignment.") for name in before)
    for name, value in before.items():
        if "running" not in name and "num_batches" not in name:
            assert torch.equal(value, after[name]), name
    processor = json.loads((output / "preprocessor_config.json").read_text())
    assert processor["size"] == {"height": 64, "width": 64}, "the image processor is the checkpoint's own"
    summary = json.loads((output / "summary.json").read_text())
    measured = json.loads((tmp_path / "figures.json").read_text())
    assert measured["map50"] == summary["target_map50_after"]
    assert measured["per_class50"] == summary["target_per_class50"]
    card = ModelCard(hub.files("lab/further")["README.md"].decode())
    assert card.data.base_model == "lab/scenes" and "Before: the model that the run started from" in card.text
    assert "tested on scenes with other digits" in card.text and "held out" not in card.text


def test_a_score_on_a_benchmark_of_the_hub_is_written_for_its_leaderboard(hub, trained, tmp_path):
    """Only where the target is a named split of a data set of the Hub."""
    folder = tmp_path / "run"
    shutil.copytree(trained, folder)
    settings = yaml.safe_load((folder / "training_config.yaml").read_text())
    runs = []
    for number, target in enumerate(
        (
            {"kind": "dataset", "path": "lab/office", "test_split": "test", "revision": "v1"},
            {"kind": "dataset", "path": "lab/office"},
        )
    ):
        runs.append(shutil.copytree(folder, tmp_path / str(number)))
        changed = {**settings, "data": {**settings["data"], "target": target}}
        (runs[-1] / "training_config.yaml").write_text(yaml.safe_dump(changed))
    task = ["--benchmark-task", "art_to_photo"]
    done = metaalign(
        hub,
        tmp_path / "home",
        *(["push", place, f"alice/bench-{n}", *task] for n, place in enumerate((*runs, trained))),
    )
    assert [code for code, _, _ in done] == [0, 2, 2], done
    files = hub.files("alice/bench-0")
    assert set(files) == FULL | {".eval_results/office.yaml"}
    (entry,) = parse_eval_result_entries(yaml.safe_load(files[".eval_results/office.yaml"]))
    assert (entry.dataset_id, entry.task_id, entry.dataset_revision) == ("lab/office", "art_to_photo", "v1")
    score = json.loads((trained / "summary.json").read_text())["target_accuracy_after"]
    assert entry.value == round(100 * score, 2) and "in percent on test" in entry.notes
    assert "test_split" in refused(done[1]) and "dataset:ORG/NAME" in refused(done[2])
    assert not {"alice/bench-1", "alice/bench-2"} & set(hub.repos), "refused before anything is made"


def test_a_push_publishes_nothing_private(hub, trained, tmp_path):
    """Pickles, optimiser state, checkpoints, logs and other files stay; so do paths of this machine."""
    folder = tmp_path / "secret place" / "run"
    folder.parent.mkdir()
    options = ["--training.output_dir", str(folder), "--training.checkpoint_every", "5"]
    options += ["--training.evaluate_every", "2", "--training.trackers", "[tensorboard]"]
    assert run(["train", "--config", TINY, *options]) == 0
    for name in ("training_args.bin", "optimizer.pt", "scheduler.pkl", ".env", "notes.txt", "pytorch_model.bin"):
        (folder / name).write_bytes(b"HF_TOKEN=hf_" + b"x" * 30)
    config = json.loads((folder / "config.json").read_text())
    config["backbone_name"] = "/home/ann/backbones/net"
    config["backbone_config"]["_name_or_path"] = "~/backbones/net"
    (folder / "config.json").write_text(json.dumps(config, indent=2))
    settings = (folder / "training_config.yaml").read_text()
    settings = settings.replace(
        "kind: digits\n    name: mnist\n    path: null", "kind: list\n    name: null\n    path: /data/ann/art.txt"
    )
    assert "/data/ann/art.txt" in settings
    (folder / "training_config.yaml").write_text(settings)
    (done,) = metaalign(hub, tmp_path / "home", ["push", folder, "alice/clean"])
    assert done[0] == 0, done
    files = hub.files("alice/clean")
    assert set(files) == FULL
    for name, content in files.items():
        for private in (b"secret place", b"/home/ann", b"/data/ann", b"~/backbones", str(tmp_path).encode(), b"hf_"):
            assert private not in content, (name, private)
    assert json.loads(files["config.json"])["backbone_name"] == "net"
    assert b"path: art.txt" in files["training_config.yaml"]
    card = ModelCard(files["README.md"].decode())
    assert card.data.library_name == "transformers" and card.data.pipeline_tag == "image-classification"
    assert {"metaalign", "dann"} <= set(card.data.tags)

    (folder / "summary.json").write_text('{"notes": "HF_TOKEN=hf_' + "a" * 30 + '"}')
    (done,) = metaalign(hub, tmp_path / "home", ["push", folder, "alice/other"])
    assert "access token" in refused(done)


def test_what_the_hub_refuses_is_told_in_one_line(hub, trained, tmp_path):
    hub.put("bob/vit", {"config.json": b'{"model_type": "vit"}', "model.safetensors": b"weights"})
    hub.put("alice/vit", {"config.json": b'{"model_type": "vit"}', "model.safetensors": b"weights"})
    hub.put("bob/hidden", {"config.json": b"{}"}, private=True)
    hub.put("bob/pickles", {"config.json": b'{"model_type": "vit"}', "pytorch_model.bin": b"pickle"})
    hub.put("bob/empty", {"notes.txt": b""})
    config = json.loads((trained / "config.json").read_text())
    weights = load_file(trained / "model.safetensors")
    whole = (trained / "model.safetensors").read_bytes()
    processor = (trained / "preprocessor_config.json").read_bytes()

    def put(name: str, content: bytes, **entries: object) -> None:
        files = {"config.json": json.dumps({**config, **entries}).encode(), "model.safetensors": content}
        hub.put(name, {**files, "preprocessor_config.json": processor})

    put("bob/newer", whole, format_version=99)
    put("bob/foreign", whole, model_type="model_of_tomorrow")
    del weights[next(name for name in weights if name.startswith("backbone."))]
    save_file(weights, tmp_path / "lost.safetensors", metadata={"format": "pt"})
    put("bob/lost", (tmp_path / "lost.safetensors").read_bytes())
    put("bob/damaged", whole[:5000])

    picture = tmp_path / "picture.png"
    Image.new("RGB", (20, 30)).save(picture)
    train = ["train", "--config", TINY, "--training.output_dir", tmp_path / "run"]
    cases = [
        (["push", trained, "alice/a", "--token", "hf_wrong"], ["does not know the access token", "hf auth login"]),
        (["push", trained, "bob/a"], ["bob/a", "may not write there"]),
        (["push", trained, "alice/missing", "--create-pr"], ["no such repository"]),
        (["push", trained, "alice/vit"], ["alice/vit", "another model", "--overwrite"]),
        (["push", trained, "a/b/c"], ["organisation/name"]),
        (["push", trained, "alice/a", "--create-pr", "--revision", "x"], ["leave out the revision"]),
        (["push", tmp_path / "nothing", "alice/a"], ["no such folder"]),
        (["predict", "alice/nothing", picture], ["alice/nothing", "no such repository"]),
        (["predict", "bob/hidden", picture], ["bob/hidden", "may not see it"]),
        (["predict", "bob/vit@v9", picture], ["bob/vit@v9", "no such branch, tag or commit"]),
        (["predict", "bob/pickles", picture], ["safetensors", "never loaded"]),
        (["predict", "bob/empty", picture], ["config.json"]),
        (["predict", "bob/newer", picture], ["layout version 99", "upgrade"]),
        (["predict", "bob/foreign", picture], ["cannot be loaded", "model_of_tomorrow"]),
        (["predict", "bob/lost", picture], ["1 tensors are missing", "backbone."]),
        (["predict", "bob/damaged", picture], ["bob/damaged", "cannot be loaded"]),
        ([*train, "--model.checkpoint", "bob/vit"], ["not MetaAlignForImageClassification", "model.backbone: bob/vit"]),
        ([*train, "--model.checkpoint", "bob/nothing"], ["bob/nothing", "no such repository"]),
        ([*train, "--hub.repo_id", "bob/a"], ["may not write there"]),
    ]
    answers = metaalign(hub, tmp_path / "home", *[command for command, _ in cases])
    for (command, words), answer in zip(cases, answers, strict=True):
        line = refused(answer)
        assert all(word in line for word in words), (command, line)
    assert not (tmp_path / "run").exists(), "a refused run leaves nothing behind"
    (answer,) = metaalign(hub, tmp_path / "home", ["push", trained, "alice/a"], token=None)
    assert "no access token" in refused(answer)
    assert "alice/a" not in hub.repos or set(hub.files("alice/a")) == {".gitattributes"}
    (answer,) = metaalign(hub, tmp_path / "home", ["push", trained, "alice/vit", "--overwrite"])
    assert answer[0] == 0 and hub.files("alice/vit")["model.safetensors"] == whole


PUSH = """
import sys
from metaalign_hf.hub import push
print(push(sys.argv[1], sys.argv[2], retry_seconds=0.05, attempts=3, report=print))
"""


@pytest.mark.slow
def test_failures_of_the_hub_are_tried_again(hub, trained, tmp_path):
    hub.faults = [Fault("POST", "/commit/", status=500, times=2)]
    printed = client(hub, tmp_path / "home", PUSH, trained, "alice/a")
    assert printed.count("status 500") == 2 and "try 2 of 3" in printed
    assert set(hub.files("alice/a")) == FULL and len(hub.requests("PUT", "/lfs/")) == 2

    # An upload that breaks off, then an answer that breaks off.
    hub.objects.clear()
    hub.faults = [Fault("PUT", "/lfs/", status=None, cut_after=1000)]
    client(hub, tmp_path / "home", PUSH, trained, "alice/b")
    assert hub.files("alice/b")["model.safetensors"] == (trained / "model.safetensors").read_bytes()

    # Somebody else commits between our look at the repository and our commit.
    hub.faults = [Fault("POST", "/alice/c/commit/", status=None, delay=3.0)]
    hub.create("alice/c", private=False)
    process = start(hub, tmp_path / "home", PUSH, str(trained), "alice/c")
    while not hub.requests("PUT", "/lfs/") or hub.faults[0].times:
        time.sleep(0.05)
        assert process.poll() is None
    hub.put("alice/c", {"notes.txt": b"theirs"})
    printed, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    assert "somebody else committed" in printed
    assert set(hub.files("alice/c")) == FULL | {"notes.txt"}
    assert hub.history("alice/c") == ["Push the adapted checkpoint", "put", "initial commit"]


DOWN_AND_UP = """
import sys
from metaalign_hf.cli import run
from metaalign_hf.hub.errors import HubError, explained
from metaalign_hf.hub import HubError, fetch, push
print(run(["predict", "alice/a", sys.argv[1]]))
try:
    push(sys.argv[1], "alice/a", retry_seconds=0.05, attempts=2, report=print)
except HubError as error:
    print("HubError", error)
input()
print(fetch("alice/a"))
"""


def test_a_hub_that_is_down_is_told_and_a_broken_download_goes_on(hub, trained, tmp_path):
    weights = os.urandom(12_000_000)  # more than the chunk of 10 MB that the client writes at once
    hub.put("alice/a", {"config.json": b"{}", "model.safetensors": weights})
    hub.faults = [Fault("GET", "resolve/.*/model.safetensors", status=None, cut_after=11_000_000)]
    hub.stop()
    process = start(hub, tmp_path / "home", DOWN_AND_UP, str(trained))
    printed = [process.stdout.readline() for _ in range(3)]
    assert printed[0] == "2\n" and "try 1 of 2" in printed[1]
    assert printed[2].startswith("HubError push to alice/a: the Hub cannot be reached")
    hub.start()
    folder, errors = process.communicate("\n", timeout=120)
    assert process.returncode == 0 and "predict" not in errors, errors
    assert "checkpoint alice/a: the Hub cannot be reached" in errors
    assert (Path(folder.strip()) / "model.safetensors").read_bytes() == weights
    assert [status for _, _, status in hub.requests("GET", "resolve/.*/model.safetensors")] == [200, 206]


@pytest.mark.slow
def test_a_killed_upload_sends_only_what_is_missing(hub, trained, tmp_path):
    hub.faults = [Fault("POST", "/commit/", status=None, delay=60, times=1)]
    process = start(hub, tmp_path / "home", PUSH, str(trained), "alice/a")
    while hub.faults[0].times:
        time.sleep(0.05)
        assert process.poll() is None
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert set(hub.files("alice/a")) == {".gitattributes"}, "half a push is no push"
    sent = len(hub.requests("PUT", "/lfs/"))
    client(hub, tmp_path / "home", PUSH, trained, "alice/a")
    assert set(hub.files("alice/a")) == FULL
    assert sent == 2 and len(hub.requests("PUT", "/lfs/")) == sent


TRAIN = ["train", "--config", TINY, "--training.evaluate_every", "2", "--hub.retry_seconds", "0.05"]


def test_a_run_pushes_in_the_background_and_at_its_end(hub, tmp_path):
    output = tmp_path / "run"
    command = [*TRAIN, "--training.output_dir", output, "--hub.repo_id", "lab/run", "--hub.private", "true"]
    # The first push takes its time: what comes due meanwhile is left out. Another fails once.
    hub.faults = [Fault("POST", "/commit/", status=None, delay=8.0), Fault("POST", "/commit/", status=503)]
    command += ["--hub.push_every", "2", "--hub.license", "mit", "--hub.commit_message", "Done"]
    command += ["--training.source_steps", "0", "--training.evaluate_every", "1", "--training.recalibrate_bn", "target"]
    (answer,) = metaalign(hub, tmp_path / "home", command)
    assert answer[0] == 0, answer
    assert hub.repos["lab/run"].private
    history = hub.history("lab/run")
    assert history == ["Done", "Push the state after step 1", "initial commit"]
    assert "is not pushed: the push before it is still under way" in answer[1]
    assert "status 503" in answer[1] and f"Pushed: {hub.url}/lab/run/commit/" in answer[1]
    assert not (output / ".push").exists()
    assert hub.files("lab/run")["model.safetensors"] == (output / "model.safetensors").read_bytes()
    assert set(hub.files("lab/run")) == FULL

    first = hub.repos["lab/run"].commits[hub.repos["lab/run"].branches["main"]].parent
    state = {path: content for path, (content, _) in hub.repos["lab/run"].commits[first].files.items()}
    card = state["README.md"].decode()
    assert "after step 1 of 6" in card and "summary.json" not in state
    assert state["model.safetensors"] != hub.files("lab/run")["model.safetensors"]
    for name in ("config.json", "preprocessor_config.json", "model.safetensors"):
        (tmp_path / name).write_bytes(state[name])
    assert run(["evaluate", str(tmp_path), "--data", "mnist", "--output", str(tmp_path / "figures.json")]) == 0
    measured = 100 * json.loads((tmp_path / "figures.json").read_text())["accuracy"]
    assert f"| target, accuracy | {measured:.2f} % |" in card, "the pushed model is the one that was evaluated"
    final = ModelCard(hub.files("lab/run")["README.md"].decode())
    assert final.data.license == "mit" and "license: mit" in (output / "README.md").read_text()


@pytest.mark.slow
def test_a_push_that_fails_at_the_end_leaves_a_command_that_finishes_it(hub, tmp_path):
    output = tmp_path / "run"
    command = [*TRAIN, "--training.output_dir", output, "--hub.repo_id", "alice/run", "--hub.push_every", "2"]
    # Long enough that pushes follow the one during which the Hub goes down.
    command += ["--hub.private", "true", "--hub.attempts", "2", "--training.max_steps", "80"]
    words = json.dumps([[str(word) for word in command]])
    process = start(hub, tmp_path / "home", COMMANDS, words)
    while not hub.requests("POST", "/commit/"):  # the Hub goes down in the middle of the run
        time.sleep(0.02)
        assert process.poll() is None
    hub.stop()
    printed, errors = process.communicate(timeout=240)
    assert process.returncode == 0, errors
    ((code, out, errors),) = json.loads(printed.rpartition("ANSWER")[2])
    assert "cannot be reached" in out and "was not pushed" in out, "failures show in the log of the run"
    line = refused((code, out, errors))
    names = {"README.md", "config.json", "model.safetensors", "summary.json", "preprocessor_config.json"}
    assert names <= {path.name for path in output.iterdir()}
    hub.start()
    finishing = shlex.split(line.partition("push it with: metaalign ")[2])
    assert finishing[:3] == ["push", str(output), "alice/run"] and "--private" in finishing
    (answer,) = metaalign(hub, tmp_path / "home", finishing)
    assert answer[0] == 0 and set(hub.files("alice/run")) == FULL

    # A Hub that is down before the run does not stop it, either.
    hub.stop()
    command[command.index(output)] = tmp_path / "second"
    (answer,) = metaalign(hub, tmp_path / "home", command)
    assert "the run goes on" in answer[1] and "push it with" in refused(answer)
    assert (tmp_path / "second" / "summary.json").exists()


def test_adaptation_goes_on_from_a_pulled_checkpoint(hub, trained, tmp_path):
    names = ("config.json", "preprocessor_config.json", "model.safetensors")
    hub.put("lab/digits", {name: (trained / name).read_bytes() for name in names})
    hub.repos["lab/digits"].tags["v1"] = hub.repos["lab/digits"].branches["main"]
    output = tmp_path / "further"
    command = ["train", "--config", TINY, "--training.output_dir", output, "--data.target", "mnist_m"]
    command += ["--model.checkpoint", "lab/digits@v1", "--optimizer.lr", "0", "--training.source_steps", "0"]
    command += ["--hub.repo_id", "lab/further"]
    (answer,) = metaalign(hub, tmp_path / "home", command)
    assert answer[0] == 0, answer
    before, after = load_file(trained / "model.safetensors"), load_file(output / "model.safetensors")
    assert any(name.startswith("alignment.") for name in before)
    for name, value in before.items():
        if "running" not in name and "num_batches" not in name:
            assert torch.equal(value, after[name]), name
    card = ModelCard(hub.files("lab/further")["README.md"].decode())
    assert card.data.base_model == "lab/digits"
    assert json.loads((output / "summary.json").read_text())["target"] == "mnist_m"


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        "model/../../../../../../evil.safetensors",
        "../../../../evil.json",
        "model\\..\\evil.safetensors",
        "model\n.safetensors",
    ],
)
def test_a_repository_with_hostile_file_names_writes_nothing_outside_the_cache(name, hub, trained, tmp_path):
    home, image = tmp_path / "a" / "b" / "c" / "home", tmp_path / "image.png"
    Image.new("RGB", (16, 16)).save(image)
    ((code, _, errors),) = metaalign(hub, home, ["push", trained, "alice/odd"])
    assert code == 0, errors
    repo = hub.repos["alice/odd"]
    head = repo.branches["main"]
    repo.branches["main"] = repo.add(head, "more", {**repo.commits[head].files, name: (b"evil", False)})
    ((code, _, errors),) = metaalign(hub, home, ["predict", "alice/odd", image])
    assert code in (0, 2) and "Traceback" not in errors
    outside = {path.name for path in tmp_path.rglob("*") if home not in path.parents and path.is_file()}
    assert outside == {"image.png"} and not list(home.rglob("evil.safetensors"))


def test_a_hub_that_goes_down_in_the_middle_of_an_upload_is_told_and_asked_again():
    """The client wraps what it met in an error of its own."""
    down = "push to a/b: the Hub cannot be reached (refused)"
    with pytest.raises(HubError, match=re.escape(down)) as told, explained("push to a/b"):
        raise RuntimeError("Error while uploading 'model.safetensors' to the Hub.") from ConnectionError("refused")
    assert told.value.temporary
