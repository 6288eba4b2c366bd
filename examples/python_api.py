"""Adapt a digit classifier from Python: a domain pair, a model, a run, and the adapted checkpoint elsewhere.

python examples/python_api.py [--training.max_steps 100 ...]
"""

import sys

from torchvision.transforms.functional import to_pil_image
from transformers import pipeline

from metaalign_hf import MetaAlignForImageClassification, adapt, load_domain_pair, parse_config

# A labelled source and an unlabelled target; imagefolder:FOLDER, list:FILE and dataset:ORG/NAME work as well.
pair = load_domain_pair("uci_digits", "mnist")

# Any timm name, Hub id or local folder. pretrained=False needs no network and starts from random weights.
model = MetaAlignForImageClassification.from_backbone(
    "timm/resnet10t.c3_in1k", labels=pair.labels, alignment="dann", pretrained=False
)

config = parse_config(["--config", "examples/digits.yaml", "--training.output_dir", "runs/python_api", *sys.argv[1:]])
summary = adapt(config, pair=pair, model=model)
print(f"target accuracy {summary.target_accuracy_before:.3f} -> {summary.target_accuracy_after:.3f}")

# The checkpoint loads with from_pretrained; its native form also where metaalign-hf is not installed.
adapted = MetaAlignForImageClassification.from_pretrained("runs/python_api")
adapted.export_native().save_pretrained("runs/python_api-native")
classify = pipeline("image-classification", model="runs/python_api")
print(classify(to_pil_image(pair.target_test_images[0]), top_k=3))
