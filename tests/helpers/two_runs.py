"""Law 7 inside two gloo processes: runs that are stopped after every step, in one start of both.

Run by test_resume.py and test_sharded_runs.py through torch.distributed.run; prints the cells that hold, and fails on
the first that does not. Each cell is `name -> [configuration, options, environment]`; with an environment the run is
sharded by FSDP2, see `sharding`, and runs once more in one piece. A third argument names the folder of a classifier for
`checkpoint_of_accelerate`.
"""

import json
import sys
from contextlib import nullcontext
from pathlib import Path

import torch.distributed as dist
from accelerate import DistributedType
from accelerate.state import AcceleratorState

from metaalign_hf.cli import run
from tests.helpers.runs import assert_same_run
from tests.helpers.sharded import checkpoint_of_accelerate, sharding


def start(output: Path, config: str, options: list[str], *more: str) -> int:
    return run(["train", "--config", config, "--training.output_dir", str(output), *options, *more])


def main() -> None:
    folder, cells = Path(sys.argv[1]), json.loads(sys.argv[2])
    for name, (config, options, environment) in cells.items():
        with nullcontext() if environment is None else sharding(**environment):
            assert start(folder / name / "whole", config, options) == 0
            assert AcceleratorState().is_fsdp2 == (environment is not None)
            starts = 0
            while code := start(
                folder / name / "stopped", config, options, "--training.resume", "auto", "--training.max_time", "0.001"
            ):
                starts += 1
                assert code == 124 and starts < 20, (code, starts)
        dist.barrier()
        if dist.get_rank() == 0:
            assert_same_run(folder / name / "whole", folder / name / "stopped")
            print(f"{name}: stopped {starts} times", flush=True)
        if environment is not None:
            assert start(folder / name / "in one piece", config, options) == 0
            assert AcceleratorState().distributed_type == DistributedType.MULTI_CPU
    if len(sys.argv) > 3:
        checkpoint_of_accelerate(folder / "accelerate", folder / sys.argv[3])
        print("accelerate's own checkpoint holds", flush=True)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
