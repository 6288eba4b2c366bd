"""Law 3: two processes are one, under DDP and FSDP2."""

import subprocess
import sys
from pathlib import Path


def test_two_processes_are_one():
    script = Path(__file__).parent / "two_processes.py"
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", str(script)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr[-4000:]
    assert "every case holds" in done.stdout
