"""A detector's frozen backbone, and its maps computed once: the run is the one that computes them in every pass."""

import json

import numpy as np
import pytest
from PIL import Image
from safetensors.torch import load_file
from transformers import PreTrainedConfig, ResNetBackbone

from metaalign_hf import adapt, load_config
from metaalign_hf.cli import run
from tests.helpers.runs import TINY_DETECTION, assert_same_run, stopped_at_a_checkpoint, weights
from tests.helpers.tiny_detectors import detector_settings

SIZES = ((60, 90), (64, 48), (80, 80))
BOXES = ([], [[10, 10, 30, 20]], [[5, 6, 20, 30], [30, 8, 12, 24], [2, 30, 16, 9]])


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Pictures of three sizes with none, one or three objects: 14 of the source, 12 of the target."""
    root, numbers = tmp_path_factory.mktemp("domains"), np.random.default_rng(0)
    for domain, count in (("source", 14), ("target", 12)):
        document = {"images": [], "annotations": [], "categories": [{"id": 1, "name": "cat"}, {"id": 4, "name": "eel"}]}
        (root / domain).mkdir()
        for n in range(count):
            height, width = SIZES[n % 3]
            pixels = numbers.integers(0, 255, size=(height, width, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(root / domain / f"{n}.png")
            document["images"].append({"id": n, "file_name": f"{n}.png", "width": width, "height": height})
            for box in BOXES[(n + n // 3) % 3]:
                box = {"id": len(document["annotations"]), "bbox": box, "image_id": n, "category_id": (1, 4)[n % 2]}
                document["annotations"].append(box)
        (root / domain / "boxes.json").write_text(json.dumps(document))
    return root


def values(folders, output, **more):
    found = {
        "data.source": f"coco:{folders / 'source' / 'boxes.json'}",
        "data.target": f"coco:{folders / 'target' / 'boxes.json'}",
        "training.output_dir": str(output),
        "training.evaluation_batch_size": 5,
        "model.freeze": "all",
        "data.views": 2,
        **more,
    }
    return {key: value for key, value in found.items() if value is not None}


def command(folders, output, *options: str, **more) -> list[str]:
    words = [word for key, value in values(folders, output, **more).items() for word in (f"--{key}", str(value))]
    return ["train", "--config", TINY_DETECTION, *words, *options]


def said(capsys) -> str:
    return " ".join(capsys.readouterr().out.split())


def family(name: str) -> dict:
    model_type, settings = detector_settings()[name]
    plain = {key: v.to_dict() if isinstance(v, PreTrainedConfig) else v for key, v in settings.items()}
    return {"model.detector": model_type, "model.detector_options": plain}


CASES = {
    "metaalign, D-FINE": {"training.ema_decay": 0.9, "training.select_by": None},
    "joint, RT-DETR, statistics by domain": {
        **family("rt_detr"),
        "coordination.method": "joint",
        "model.alignment": ["swda", "query"],
        "data.augmentation": "crop_flip_strong",
        "training.batch_norm": "per_domain",
        "training.recalibrate_bn": "target",
        "training.select_by": "agreement",
    },
    "source alone, LW-DETR, not augmented": {
        **family("lw_detr"),
        "coordination.method": "source_only",
        "data.augmentation": "none",
        "data.views": None,
        "training.mixed_precision": "bf16",
        "training.select_by": None,
    },
}


@pytest.mark.parametrize("name", CASES)
def test_the_cached_run_is_the_uncached_one(name, folders, tmp_path, monkeypatch):
    """Bit for bit, with the same views and their boxes; neither training nor evaluation runs the backbone."""
    calls, forward = [], ResNetBackbone.forward

    def counted(self, pixel_values, *arguments, **keywords):
        calls.append(len(pixel_values))
        return forward(self, pixel_values, *arguments, **keywords)

    monkeypatch.setattr(ResNetBackbone, "forward", counted)
    for cache in ("always", "never"):
        more = {**CASES[name], "data.cache_features": cache}
        given = values(folders, tmp_path / cache, **more)
        adapt(load_config(TINY_DETECTION, {**given, **{key: more[key] for key in more if more[key] is None}}))
        if cache == "always":
            seen = sum(calls)
    kept = load_file(tmp_path / "always" / "features.safetensors")
    assert len(kept["facts"]) == len(kept["features"]) == 5 + 21 * (1 if "not augmented" in name else 2)
    if "D-FINE" in name:
        tried, drawn = 6, 4  # two images whole, in parts and blank; two in the picture, before and after
        assert seen == len(kept["features"]) + tried + drawn
    assert_same_run(tmp_path / "always", tmp_path / "never")
    assert not (tmp_path / "never" / "features.safetensors").exists()


def test_stopped_resumed_served_and_shared(folders, tmp_path, monkeypatch, capsys):
    """Stopped while maps are computed, and then at a checkpoint; the model is whole; a stale file is refused."""
    options = ["--training.checkpoint_every", "4", "--training.select_by", "null"]
    assert run(command(folders, tmp_path / "whole", *options)) == 0
    assert "The frozen backbone's maps are computed once for each image in 2 augmented views." in said(capsys)
    assert run(command(folders, tmp_path / "stopped", *options, "--training.max_time", "0.001")) == 124
    partial = tmp_path / "stopped" / "features.safetensors.partial"
    with partial.open("ab") as file:
        file.write(b"half a row")
    options += ["--training.resume", "auto"]
    assert stopped_at_a_checkpoint(monkeypatch, command(folders, tmp_path / "stopped", *options)) == 130
    assert run(command(folders, tmp_path / "stopped", *options)) == 0
    assert_same_run(tmp_path / "whole", tmp_path / "stopped")
    files = [tmp_path / name / "features.safetensors" for name in ("whole", "stopped")]
    assert files[0].read_bytes() == files[1].read_bytes() and not partial.exists()

    summary, target = json.loads((tmp_path / "whole" / "summary.json").read_text()), folders / "target"
    capsys.readouterr()
    found = tmp_path / "found.json"
    words = ["--data", f"coco:{target / 'boxes.json'}", "--output", str(found)]
    assert run(["evaluate", str(tmp_path / "whole"), *words]) == 0
    assert json.loads(found.read_text())["map50"] == summary["target_map50_after"]
    assert run(["predict", str(tmp_path / "whole"), str(target / "0.png"), "--threshold", "0"]) == 0
    assert any(name.startswith("detector.model.backbone.") for name in weights(tmp_path / "whole"))

    shared = ["--data.cache_folder", str(tmp_path / "whole")]
    assert run(command(folders, tmp_path / "size", *shared, "--data.detector_size", "96")) == 2
    assert "holds features of another run: not the same image processor; delete it" in capsys.readouterr().err
    document = json.loads((folders / "source" / "boxes.json").read_text())
    document["annotations"][0]["bbox"][2] += 1
    moved = folders / "source" / "moved.json"
    moved.write_text(json.dumps(document))
    assert run(command(folders, tmp_path / "moved", *shared, **{"data.source": f"coco:{moved}"})) == 2
    assert "holds features of another run: not the same images and views; delete it" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (["--model.freeze", "none"], "model.freeze is none"),
        (["--data.views", "null"], "data.views is null, so that every batch has new views"),
        (["--data.detector_size", "[40, 64]"], "the detector sees images of different sizes, whose maps are of"),
        (["--training.target_losses", "[mean_teacher]", "--training.ema_decay", "0.9"], "the target loss mean_teacher"),
        (["--training.gradient_checkpointing", "true"], "training.gradient_checkpointing takes whole passes"),
    ],
)
def test_what_cannot_be_is_refused_where_it_is_demanded(options, reason, folders, tmp_path, capsys):
    demanded = ["--data.cache_features", "always", *options]
    assert run(command(folders, tmp_path / "run", *demanded)) == 2
    error = capsys.readouterr().err
    assert f"data.cache_features is always, which cannot be: {reason}" in error and len(error.splitlines()) == 1
    assert not (tmp_path / "run").exists()


def test_a_mean_teacher_needs_pixels(folders, tmp_path, capsys):
    """The run goes on without a cache and says why."""
    options = ["--training.target_losses", "[mean_teacher]", "--training.ema_decay", "0.9"]
    options += ["--training.source_steps", "1", "--training.max_steps", "1", "--training.select_by", "null"]
    assert run(command(folders, tmp_path / "run", *options)) == 0
    reason = "the target loss mean_teacher needs the pixels of the target in every step"
    assert f"The frozen backbone's maps are computed in every pass: {reason}." in said(capsys)
    assert not (tmp_path / "run" / "features.safetensors").exists()
