"""Adapt a model: `accelerate launch scripts/train.py --config examples/digits.yaml --training.max_steps 200`."""

import sys

from metaalign_hf.cli import main

if __name__ == "__main__":
    main(["train", *sys.argv[1:]])
