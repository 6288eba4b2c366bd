"""Every detection recipe runs two steps on a miniature of the layout that it expects."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from metaalign_hf import adapt, load_config
from metaalign_hf.configuration import DomainConfig

RECIPES = sorted((Path(__file__).parents[2] / "examples" / "detection").glob("*.yaml"))
IMAGES = 6
TINY = {
    "backbone_config": {
        "model_type": "resnet",
        "embedding_size": 8,
        "hidden_sizes": [8, 12, 16, 20],
        "depths": [1, 1, 1, 1],
        "layer_type": "basic",
        "out_features": ["stage2", "stage3", "stage4"],
    },
    "d_model": 64,
    "encoder_layers": 1,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 32,
    "decoder_ffn_dim": 32,
    "num_queries": 8,
}


def picture(path: Path, seed: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 255, size=(60, 90, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)


def miniature(domain: DomainConfig) -> None:
    """Files where the recipe looks for them, every class once."""
    if domain.kind == "coco":
        for part, file in (("train", domain.annotations), ("val", domain.test_annotations)):
            for index in range(IMAGES):
                picture(Path(domain.path) / part / f"{index}.png", index)
            boxes = [
                {"id": n, "image_id": n % IMAGES, "category_id": n + 1, "bbox": [10 + n, 10, 30, 20], "iscrowd": 0}
                for n in range(len(domain.classes))
            ]
            document = {
                "images": [{"id": i, "file_name": f"{part}/{i}.png", "width": 90, "height": 60} for i in range(IMAGES)],
                "annotations": boxes,
                "categories": [{"id": n + 1, "name": name} for n, name in enumerate(domain.classes)],
            }
            Path(file).parent.mkdir(parents=True, exist_ok=True)
            Path(file).write_text(json.dumps(document))
        return
    for entry in {*domain.train_split.split(","), *(domain.test_split or domain.train_split).split(",")}:
        folder, _, split = entry.rpartition("/")
        base = Path(domain.path) / folder
        stems = [f"{split}_{index}" for index in range(IMAGES)]
        for index, stem in enumerate(stems):
            picture(base / "JPEGImages" / f"{stem}.jpg", index)
            names = [name for n, name in enumerate(domain.classes) if n % IMAGES == index] + [domain.classes[0]]
            xml = "".join(
                f"<object><name>{name}</name><difficult>0</difficult><bndbox><xmin>{5 + n}</xmin><ymin>5</ymin>"
                f"<xmax>{45 + n}</xmax><ymax>40</ymax></bndbox></object>"
                for n, name in enumerate(names)
            )
            (base / "Annotations").mkdir(parents=True, exist_ok=True)
            (base / "Annotations" / f"{stem}.xml").write_text(f"<annotation>{xml}</annotation>")
        lists = base / "ImageSets" / "Main"
        lists.mkdir(parents=True, exist_ok=True)
        (lists / f"{split}.txt").write_text("\n".join(stems) + "\n")


def test_the_recipes_of_the_published_pairs_are_there():
    names = {path.stem for path in RECIPES}
    assert names == {
        "cityscapes_bdd100k", "cityscapes_foggy", "sim10k_cityscapes", "voc_clipart1k", "voc_watercolor2k",
    }  # fmt: skip


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_runs_on_a_miniature_of_its_layout(recipe, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    small = {
        "data.detector_size": [48, 64],
        "data.num_workers": 0,
        "model.detector": "deformable_detr",
        "model.pretrained": False,
        "model.detector_options": TINY,
        "training.source_steps": 1,
        "training.max_steps": 2,
        "training.mixed_precision": "no",
        "training.output_dir": str(tmp_path / "run"),
    }
    config = load_config(recipe, small)
    for domain in (config.data.source, config.data.target):
        miniature(domain)
    summary = adapt(config)
    assert summary.target_map50_after is not None and summary.target_test_images >= IMAGES
    assert summary.alignment == ["backbone_global", "encoder", "query"] and summary.notes == []
    assert list(summary.target_per_class50) == config.data.target.classes
    assert (tmp_path / "run" / "detections.png").exists()
