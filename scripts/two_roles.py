"""The figure of docs/concepts.md: a MetaAlign step in both roles, taken by the package on two losses in a plane.

python scripts/two_roles.py docs/two_roles.png
"""

from __future__ import annotations

import sys
from pathlib import Path

import matplotlib
import torch
from matplotlib.axes import Axes
from torch import Tensor

from metaalign_hf.coordination import MetaAlign

matplotlib.use("Agg")
COLOURS = {"task": "#0072b2", "alignment": "#d55e00", "step": "#222222"}  # Okabe and Ito's
START, INNER, OUTER = (0.0, 0.0), 0.5, 0.28


def task_loss(theta: Tensor) -> Tensor:
    """An elongated bowl to the right."""
    x, y = theta[..., 0] - 2.0, theta[..., 1] - 0.9
    return 0.55 * x**2 + 0.5 * x * y + 0.5 * y**2


def alignment_loss(theta: Tensor) -> Tensor:
    """Another one above."""
    x, y = theta[..., 0] - 0.5, theta[..., 1] - 1.9
    return 0.3 * x**2 - 0.25 * x * y + 0.55 * y**2


LOSSES = {"task": task_loss, "alignment": alignment_loss}


def step(first: str) -> dict[str, tuple[Tensor, Tensor]]:
    """Where each role's pass ran, and the gradient that it left; and the whole step's."""
    theta = torch.tensor(START, requires_grad=True)
    meta = MetaAlign(torch.optim.SGD([theta], lr=OUTER), inner_lr=INNER, relative=False, first=first)
    passes: dict[str, tuple[Tensor, Tensor]] = {}

    def closure(name: str) -> Tensor:
        place = theta.detach().clone()
        (gradient,) = torch.autograd.grad(LOSSES[name](theta), theta)
        passes[name] = place, gradient
        return LOSSES[name](theta)

    meta.backward(task=[lambda: closure("task")], alignment=[lambda: closure("alignment")])
    assert theta.grad is not None
    total = passes["task"][1] + passes["alignment"][1]
    assert torch.allclose(theta.grad, total) and torch.equal(theta.detach(), torch.tensor(START))
    return {**passes, "step": (torch.tensor(START), theta.grad)}


def arrow(axes: Axes, start: Tensor, by: Tensor, colour: str, dashed: bool = False) -> None:
    """An arrow from a point."""
    style = {"arrowstyle": "-|>", "color": colour, "lw": 2, "shrinkA": 0, "shrinkB": 0, "ls": ":" if dashed else "-"}
    axes.annotate("", xy=tuple((start + by).tolist()), xytext=tuple(start.tolist()), arrowprops=style, zorder=3)


def draw(axes: Axes, first: str) -> None:
    """One role: the inner step, the second pass where it ends, and the step of their sum."""
    second = "alignment" if first == "task" else "task"
    grid = torch.stack(torch.meshgrid(torch.linspace(-0.7, 2.7, 120), torch.linspace(-0.5, 2.5, 120), indexing="xy"), 2)
    for name, loss in LOSSES.items():
        levels = torch.linspace(0.05, 1.6, 6).square().tolist()
        axes.contour(grid[..., 0], grid[..., 1], loss(grid), levels=levels, colors=COLOURS[name], alpha=0.35)
    found = step(first)
    theta, gradient = found[first]
    moved, other = found[second]
    arrow(axes, theta, moved - theta, COLOURS[first], dashed=True)
    arrow(axes, moved, -OUTER * other, COLOURS[second])
    arrow(axes, theta, -OUTER * gradient, COLOURS[first])
    arrow(axes, theta, -OUTER * found["step"][1], COLOURS["step"])
    for point, text, right in ((theta, "θ", -14), (moved, "θ′", -18 if first == "alignment" else 7)):
        axes.plot(*point.tolist(), "o", color="black", ms=4, zorder=4)
        axes.annotate(
            text, (float(point[0]), float(point[1])), xytext=(right, -4), textcoords="offset points", fontsize=12
        )
    axes.set_title(f"meta-train {first}, meta-test {second}", fontsize=10)
    axes.set_aspect("equal")
    axes.set_xticks([])
    axes.set_yticks([])


def main(path: Path) -> None:
    """Draw both roles side by side."""
    from matplotlib import pyplot
    from matplotlib.lines import Line2D

    figure, both = pyplot.subplots(1, 2, figsize=(9, 4.6), layout="constrained")
    for axes, first in zip(both, LOSSES, strict=True):
        draw(axes, first)
    lines = [
        Line2D([], [], color=COLOURS["task"], label="task: contours, gradient step"),
        Line2D([], [], color=COLOURS["alignment"], label="alignment: contours, gradient step"),
        Line2D([], [], color="#666666", ls=":", label="inner step, taken back"),
        Line2D([], [], color=COLOURS["step"], label="the step: the sum of both"),
    ]
    figure.legend(handles=lines, loc="outside lower center", ncols=2, frameon=False)
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
