"""MetaAlign in a bare PyTorch loop: two plain modules, one optimiser, nothing else of the package.

python examples/drop_in.py
"""

import torch
import torch.nn.functional as F
from torch import nn

from metaalign_hf.coordination import MetaAlign

torch.manual_seed(0)


class Reverse(torch.autograd.Function):
    """Gradient reversal."""

    @staticmethod
    def forward(ctx, x):
        return x.view_as(x)

    @staticmethod
    def backward(ctx, gradient):
        return -gradient


# Two classes on a ring; the target is the source turned by 35 degrees, and has no labels in training.
labels = torch.randint(0, 2, (400,))
angles = torch.rand(400) * 3 + labels * 3.14
source = torch.stack([angles.cos(), angles.sin()], 1) + 0.1 * torch.randn(400, 2)
turn = torch.tensor(0.6)
target = source @ torch.stack([turn.cos(), turn.sin(), -turn.sin(), turn.cos()]).view(2, 2)

network = nn.Sequential(nn.Linear(2, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU())
heads = nn.ModuleDict({"classifier": nn.Linear(64, 2), "discriminator": nn.Linear(64, 1)})
optimizer = torch.optim.SGD([*network.parameters(), *heads.parameters()], lr=0.05, momentum=0.9)

meta = MetaAlign(optimizer, inner_lr=1.0, relative=True, first="task")

both = torch.cat([source, target])
is_source = torch.cat([torch.ones(400, 1), torch.zeros(400, 1)])
for step in range(300):
    report = meta.backward(
        task=[lambda: F.cross_entropy(heads["classifier"](network(source)), labels)],
        alignment=[
            lambda: F.binary_cross_entropy_with_logits(heads["discriminator"](Reverse.apply(network(both))), is_source)
        ],
    )
    optimizer.step()
    if step % 50 == 0:
        print(f"step {step}: {report.first} first, cosine of the gradients {float(report.cosine):+.3f}")

with torch.no_grad():
    accuracy = (heads["classifier"](network(target)).argmax(1) == labels).float().mean()
print(f"target accuracy {accuracy:.3f}")
