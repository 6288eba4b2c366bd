"""Inside two gloo processes: one of them has no labelled image, and the other's loss counts the boxes of both.

Then the boxes of one are not numbers any more: the gradient is none on either, and neither waits for the other.

Run by test_object_detection.py through torch.distributed.run.
"""

import torch
import torch.distributed as dist
from accelerate import Accelerator
from torch.nn.parallel import DistributedDataParallel

from tests.helpers.tiny_detectors import tiny_detector


def main() -> None:
    accelerator = Accelerator(cpu=True)
    assert accelerator.num_processes == 2, "two processes were asked for"
    torch.manual_seed(0)
    model = tiny_detector("detr", "query").eval()
    images = torch.randn(2, 3, 64, 64)
    labels = [{"class_labels": torch.tensor([n, 1]), "boxes": torch.full((2, 4), 0.3 + 0.1 * n)} for n in range(2)]
    given = labels if accelerator.is_main_process else [None, None]
    loss = model(images, labels=given, objective="task").task_loss
    loss.backward()
    losses = accelerator.gather(loss.detach().reshape(1))
    if accelerator.is_main_process:
        print(f"losses {losses[0]:.6f} {losses[1]:.6f}", flush=True)
    wrapped = DistributedDataParallel(model, find_unused_parameters=True)
    wrapped.zero_grad()
    seen = images if accelerator.is_main_process else images * float("nan")
    loss = wrapped(seen, labels=labels, objective="task").task_loss
    loss.backward()
    finite = accelerator.gather(torch.isfinite(loss.detach()).reshape(1))
    assert not torch.isfinite(torch.nn.utils.get_total_norm([p.grad for p in model.parameters() if p.grad is not None]))
    if accelerator.is_main_process:
        print(f"finite {finite.tolist()}", flush=True)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
