"""The tables of benchmarks/README.md show what is pinned."""

import subprocess
import sys
from pathlib import Path

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


def test_the_tables_are_those_of_the_pinned_runs():
    command = [sys.executable, str(BENCHMARKS / "readme.py"), "--check"]
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stderr
