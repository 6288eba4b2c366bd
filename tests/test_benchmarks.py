"""The tables of benchmarks/README.md show what is pinned."""

import runpy
import subprocess
import sys
from pathlib import Path

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


def test_the_tables_are_those_of_the_pinned_runs():
    command = [sys.executable, str(BENCHMARKS / "readme.py"), "--check"]
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stderr


def test_a_large_backbone_with_adapters_fits_16_gigabytes():
    """By the same count as the table of docs/foundation_models.md, whose sentence says how much is left."""
    text = " ".join((BENCHMARKS.parent / "docs" / "foundation_models.md").read_text().split())
    sizes = runpy.run_path(str(BENCHMARKS / "memory.py"))
    way = (sizes["BACKBONES"]["ViT-L/14"], "adapters, r 16", True)
    whole, checkpointed = (sum(sizes["gigabytes"](*way, checkpointing)) for checkpointing in (False, True))
    assert whole < 16
    assert f"takes {whole:.1f} GB with `bf16`, and {checkpointed:.1f} GB with gradient checkpointing" in text
