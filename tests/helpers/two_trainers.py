"""Runs of the loop and of MetaAlignTrainer, in two gloo processes; started by test_trainer.py through torchrun."""

import json
import sys
from copy import deepcopy
from pathlib import Path

import torch.distributed as dist

from metaalign_hf import MetaAlignTrainer, adapt
from tests.helpers.trainers import arguments, config, small_model, small_pair

TAUGHT = {"ema_decay": 0.9, "target_losses": {"name": "self_training", "threshold": 0.12}}


def main() -> None:
    folder, pair = Path(sys.argv[1]), small_pair()
    model = small_model(pair)
    coordination = {"direction": "remembered"}
    for name, options in (("plain", {}), ("taught", TAUGHT)):
        own = {f"training.{key}": value for key, value in options.items()}
        adapt(config(folder / name / "loop", coordination, **own), pair=pair, model=deepcopy(model))
        given = arguments(folder / name / "trainer", coordination=coordination, ddp_backend="gloo", **options)
        trainer = MetaAlignTrainer(deepcopy(model), given, pair=pair)
        assert trainer.accelerator.num_processes == 2
        trainer.train()
        trainer.save_model()
    told = trainer.evaluate()
    found = trainer.predict(pair.target_evaluation)
    told |= {"steps": trainer.state.global_step, "rows": len(found.predictions), "test_images": len(found.label_ids)}
    right = found.predictions.argmax(1) == found.label_ids
    told["accuracy"] = float(right.mean())
    dist.barrier()
    if dist.get_rank() == 0:
        print("ANSWER" + json.dumps(told), flush=True)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
