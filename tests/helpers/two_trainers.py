"""A run of the loop and one of MetaAlignTrainer, in two gloo processes; started by test_trainer.py through torchrun."""

import json
import sys
from copy import deepcopy
from pathlib import Path

import torch
import torch.distributed as dist

from metaalign_hf import MetaAlignForImageClassification, MetaAlignTrainer, adapt
from tests.trainer.test_trainer import NET, arguments, config, small_pair


def main() -> None:
    folder, pair = Path(sys.argv[1]), small_pair()
    torch.manual_seed(0)
    model = MetaAlignForImageClassification.from_backbone(
        "resnet", pair.labels, {"name": "dann", "hidden": 16}, pretrained=False, **NET
    )
    coordination = {"direction": "remembered"}
    adapt(config(folder / "loop", coordination), pair=pair, model=deepcopy(model))
    trainer = MetaAlignTrainer(
        deepcopy(model), arguments(folder / "trainer", coordination=coordination, ddp_backend="gloo"), pair=pair
    )
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
