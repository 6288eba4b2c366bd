# /// script
# requires-python = ">=3.11"
# dependencies = ["metaalign-hf[demo]"]
# ///
"""Train as a job of the Hub: the script names what it needs (PEP 723), and uv installs it there.

hf jobs uv run --flavor t4-small --secrets HF_TOKEN examples/hf_job.py --data.source dataset:you/studio \
  --data.target dataset:you/warehouse --hub.repo_id you/adapted

The options are those of `metaalign train`. A job's disk is gone when it ends: give `hub.repo_id`. For a version that is
not released name it with `--with`, such as the address of a wheel. `uv run examples/hf_job.py ...` does the same here.
"""

import sys

from metaalign_hf.cli import main

if __name__ == "__main__":
    main(["train", *sys.argv[1:]])
