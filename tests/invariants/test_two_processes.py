"""Law 3: two processes are one, under DDP and FSDP2."""

import subprocess
import sys

from tests.helpers.runs import ROOT


def test_two_processes_are_one(tmp_path):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    command += ["-m", "tests.helpers.two_processes", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr[-4000:]
    assert "every case holds" in done.stdout
