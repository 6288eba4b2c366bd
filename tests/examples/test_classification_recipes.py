"""Every classification recipe runs two steps on a miniature of its layout; the pairs of a benchmark make a table."""

import importlib.util
import json
import os
import signal
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from metaalign_hf import adapt, load_config
from metaalign_hf.configuration import DomainConfig
from tests.helpers.runs import when_reached

ROOT = Path(__file__).parents[2]
RECIPES = ("office31", "office_home", "visda2017", "domainnet", "pacs", "image_clef", "office_home_published")
CLASSES = ("Alarm_Clock", "Bed")
SMALL = {
    "data.image_size": 16,
    "data.resize_size": 18,
    "data.num_workers": 0,
    "model.backbone": "resnet",
    "model.pretrained": False,
    "model.backbone_options": {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1], "layer_type": "basic"},
    "training.max_steps": 2,
    "training.batch_size": 4,
    "training.select_by": None,
}


def picture(path: Path, seed: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 255, (20, 24, 3), dtype=np.uint8)).save(path)


def miniature(domain: DomainConfig) -> None:
    """Files where the recipe looks for them."""
    if domain.kind == "imagefolder":
        for number in range(12):
            picture(Path(domain.path) / CLASSES[number % 2] / f"{number}.jpg", number)
        return
    for file in dict.fromkeys(name for name in (domain.path, domain.test_path) if name is not None):
        rows, stem = [], Path(file).stem.removesuffix("List").split("_")[0]
        for number in range(12):
            # ImageCLEF has no class folders.
            name = f"{stem}/n{number}.jpg" if len(stem) == 1 else f"{stem}/{CLASSES[number % 2]}/{number}.jpg"
            picture(Path(domain.root) / name, number)
            rows.append(f"{name} {number % 2}")
        Path(file).parent.mkdir(parents=True, exist_ok=True)
        Path(file).write_text("\n".join(rows) + "\n")


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_recipe_runs_on_a_miniature_of_its_layout(recipe, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = load_config(ROOT / "examples" / f"{recipe}.yaml", SMALL)
    for domain in (config.data.source, config.data.target):
        miniature(domain)
    summary = adapt(config)
    names = ["0", "1"] if recipe == "image_clef" else list(CLASSES)
    assert summary.notes == [] and summary.target_test_images == 12
    assert json.loads((Path(config.training.output_dir) / "config.json").read_text())["id2label"] == dict(
        zip("01", names, strict=True)
    )


@pytest.mark.parametrize("recipe", ["medical", "satellite", "industrial"])
def test_a_configuration_to_start_from_runs_on_folders_of_its_layout(recipe, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    small = {key: value for key, value in SMALL.items() if key != "data.num_workers"}
    config = load_config(ROOT / "examples" / "own_pair" / f"{recipe}.yaml", {**small, "training.source_steps": 1})
    for domain in [*config.data.sources, config.data.target, config.data.target_labeled]:
        if domain is not None:
            miniature(domain)
    summary = adapt(config)
    assert summary.target_test_images == 2 and (summary.baseline is not None) == (recipe == "industrial")


@pytest.fixture(scope="module")
def reproduce():
    spec = importlib.util.spec_from_file_location("reproduce", ROOT / "scripts" / "reproduce.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["reproduce"] = module  # dataclasses look themselves up there
    spec.loader.exec_module(module)
    return module


def test_the_published_tables_are_complete(reproduce):
    published = json.loads((ROOT / "scripts" / "published.json").read_text())
    for name, table in published.items():
        if name == "sources":
            continue
        assert table["columns"] and set(table["columns"]) == set(reproduce.BENCHMARKS[name].all_pairs())
        for title, source, figures, mean in table["rows"]:
            assert source in published["sources"] and len(figures) == len(table["columns"])
            if None not in figures and title != "DANN":
                assert abs(np.mean(figures) - mean) < 0.11, (name, title)


def test_pairs_and_recipes_look_in_the_same_places(reproduce):
    for name, bench in reproduce.BENCHMARKS.items():
        config = load_config(ROOT / "examples" / f"{name}.yaml", {})
        for domain, is_target in ((config.data.source, False), (config.data.target, True)):
            values = bench.domain(domain.name, Path("data"), is_target, reproduce.LISTED_IN.get(name))
            assert DomainConfig(**values) == domain


def two_office31_pairs() -> list[str]:
    """Words of `reproduce.py` for two small runs of Office-31, whose files are made in this folder."""
    for domain in ("amazon", "dslr", "webcam"):
        miniature(DomainConfig(kind="imagefolder", path=f"data/office31/{domain}/images"))
    small = [word for key, value in SMALL.items() for word in (f"--{key}", json.dumps(value))]
    return ["office31", "--pairs", "amazon-webcam,dslr-amazon", "--method", "dann", *small]


def test_interrupted_it_goes_on_where_it_was(reproduce, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    command = two_office31_pairs()
    command += ["--training.max_steps", "12", "--training.log_every", "1"]
    first, second = (tmp_path / f"runs/reproduce/office31/resnet50/dann/{pair}-0" for pair in command[2].split(","))
    thread = when_reached(second, 2, lambda: os.kill(os.getpid(), signal.SIGINT))
    assert reproduce.main(command) == 130
    thread.join()
    assert "the same command goes on from here" in capsys.readouterr().err
    steps = [json.loads(line)["step"] for line in (second / "metrics.jsonl").read_text().splitlines()]
    assert 2 <= steps[-1] < 12 and not (second / "summary.json").exists()
    before = (first / "summary.json").stat().st_mtime_ns
    assert reproduce.main(command) == 0
    assert (first / "summary.json").stat().st_mtime_ns == before, "what is finished is skipped"
    lines = [json.loads(line) for line in (second / "metrics.jsonl").read_text().splitlines()]
    taken = [line["step"] for line in lines if "evaluation" not in line]
    assert [step for step in taken if step] == list(range(1, 13)), "no step is taken twice"
    shown = capsys.readouterr().out
    assert "2 of 6 done" in shown and shown.count("  finished") == 1


def test_all_pairs_run_once_and_stand_beside_the_published_ones(reproduce, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    command = two_office31_pairs()
    assert reproduce.main(command) == 0
    shown = capsys.readouterr().out
    assert "1 of 2: amazon-webcam, seed 0" in shown and "2 of 6 done" in shown and "91.4" in shown
    folder = tmp_path / "runs/reproduce/office31/resnet50/dann/amazon-webcam-0"
    before = (folder / "summary.json").stat().st_mtime_ns
    assert reproduce.main(command) == 0
    assert "finished" in capsys.readouterr().out and (folder / "summary.json").stat().st_mtime_ns == before
    assert reproduce.main([*command, "--training.max_steps", "3"]) == 2
    assert "is finished with another training.max_steps; name another --output" in capsys.readouterr().err
    assert reproduce.main(["office31", "--pairs", "amazon-moon"]) == 2
    assert "pairs are amazon-dslr" in capsys.readouterr().err
