"""How long a list of a million images takes to load, and how much memory: `python benchmarks/data_scale.py`.

Writes that many empty files into a temporary folder, and two lists of them with labels of 1,000 classes. A process of
its own then loads a list as a domain, and both as a pair, draws batches, and counts the image files that were opened.
The figures of several sizes are pinned in results/data_scale.json. Memory is the peak, as Linux tells it.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from rich import box
from rich.table import Table

from runs import RESULTS, machine

PINNED = RESULTS / "data_scale.json"
LOAD = """
import json, sys, time
from metaalign_hf import load_domain, load_domain_pair
from metaalign_hf.data import batch_indices
def gigabytes(key):
    # What getrusage says begins with the memory of the process that started this one.
    lines = open("/proc/self/status").read().splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith(key))) * 1024 / 1e9
opened = []
def hear(event, args):
    if event == "open" and str(args[0]).endswith(".jpg"):
        opened.append(args[0])
sys.addaudithook(hear)
folder, before, found = sys.argv[1], gigabytes("VmRSS"), {}
for name, load in (
    ("list", lambda: load_domain(f"list:{folder}/source.txt")),
    ("pair", lambda: load_domain_pair(f"list:{folder}/source.txt", f"list:{folder}/target.txt")),
):
    started, computed = time.perf_counter(), time.process_time()
    loaded = load()
    found[name] = {
        "seconds": time.perf_counter() - started,
        "cpu_seconds": time.process_time() - computed,
        "gigabytes": gigabytes("VmHWM") - before,
    }
started, images = time.process_time(), len(loaded.source_train)
for batch in range(1000):
    batch_indices(images, 64, 0, batch)
found["microseconds_to_draw_a_batch"] = 1000 * (time.process_time() - started)
found["opened_images"] = len(opened)
found["gigabytes_of_libraries"] = before
print(json.dumps(found))
"""


def measure(rows: int) -> dict[str, Any]:
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


def tables() -> dict[str, Table]:
    """The table of the README."""
    columns = ("rows", "list", "CPU time", "memory", "pair of two", "memory ", "to draw a batch", "images opened")
    table = Table(*columns, box=box.MARKDOWN, title="long lists")
    for row in json.loads(PINNED.read_text())["sizes"]:
        first, both = row["list"], row["pair"]
        table.add_row(
            f"{row['rows']:,}",
            f"{first['seconds']:.1f} s",
            f"{first['cpu_seconds']:.1f} s",
            f"{first['gigabytes']:.2f} GB",
            f"{both['seconds']:.1f} s",
            f"{both['gigabytes']:.2f} GB",
            f"{row['microseconds_to_draw_a_batch']:.0f} µs",
            str(row["opened_images"]),
        )
    return {"long lists": table}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, nargs="+", default=[100_000, 1_000_000])
    found = {"machine": machine(), "sizes": [measure(rows) for rows in parser.parse_args().rows]}
    PINNED.write_text(json.dumps(found, indent=1) + "\n")
    print(PINNED.read_text())
