"""How long a list of a million images takes to load, and how much memory: `python benchmarks/data_scale.py`.

Writes that many empty files, which nothing opens, into a temporary folder, and two lists of them with labels of 1,000
classes. A process of its own then loads a list as a domain, and both as a pair.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

LOAD = """
import json, resource, sys, time
from metaalign_hf import load_domain, load_domain_pair
def gigabytes():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 1e9
folder, before, found = sys.argv[1], gigabytes(), {}
for name, load in (
    ("list", lambda: load_domain(f"list:{folder}/source.txt")),
    ("pair", lambda: load_domain_pair(f"list:{folder}/source.txt", f"list:{folder}/target.txt")),
):
    started = time.perf_counter()
    loaded = load()
    found[name] = {"seconds": time.perf_counter() - started, "gigabytes": gigabytes() - before}
    del loaded
found["gigabytes_of_libraries"] = before
print(json.dumps(found))
"""


def measure(rows: int) -> dict[str, object]:
    """Seconds, and gigabytes beyond those of the imported libraries: a list of so many rows, and a pair of two."""
    with tempfile.TemporaryDirectory() as scratch:
        folder, per_class = Path(scratch), max(1, rows // 1000)
        lines = []
        for number in range(rows):
            label = number // per_class
            file = f"images/class_{label:04}/{number:07}.jpg"
            if number % per_class == 0:
                (folder / "images" / f"class_{label:04}").mkdir(parents=True)
            os.close(os.open(folder / file, os.O_CREAT))
            lines.append(f"{file} {label}\n")
        for name in ("source", "target"):
            (folder / f"{name}.txt").write_text("".join(lines))
        done = subprocess.run([sys.executable, "-c", LOAD, scratch], capture_output=True, text=True, check=True)
    return {"rows": rows, **json.loads(done.stdout)}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000)
    print(json.dumps(measure(parser.parse_args().rows), indent=1))
