"""Curves over the steps of one run, or of several on top of each other."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ..figures import better, selecting_validator
from .shown import ShownRun, points
from .style import COLOURS, GREY, INK, SOURCE, TARGET, Drawn, new_figure, plot_series, shortened

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["SECOND_LOSSES", "gradients", "losses", "scores", "validators"]

SECOND_LOSSES = ("alignment_loss", "target_loss")
"""What the second loss of a step may be: without alignment the target losses take its place."""

_ROLES = {
    "task": ("task is meta-train", "task is meta-test"),
    "alignment": ("alignment is meta-test", "alignment is meta-train"),
    "target": ("target is meta-test", "target is meta-train"),
}


def scores(runs: Sequence[ShownRun]) -> Drawn | None:
    """The figure that heads the tables, over the steps; of several runs that of the target where it is known."""
    measure = runs[0].record.measure
    figure, (axes,) = new_figure(height=4.0)
    drawn = False
    for run, colour in zip(runs, _cycle(runs), strict=True):
        domains = ("source", "target") if len(runs) == 1 else (("target",) if run.labelled else ("source",))
        for domain in domains:
            found = points(run.record.evaluations, f"{domain}_{measure.name}", 100)
            if not found:
                continue
            drawn = True
            label = f"{domain} test images" if len(runs) == 1 else f"{run.name}: {domain}"
            own = {"source": SOURCE, "target": TARGET}[domain] if len(runs) == 1 else colour
            axes.plot(
                *zip(*found, strict=True), "o-", color=own, markersize=5, linewidth=1.8, label=shortened(label, 60)
            )
        domain = "target" if run.labelled else "source"
        baseline = points([x for x in run.record.baseline if "evaluation" in x], f"{domain}_{measure.name}", 100)
        if baseline:
            own = INK if len(runs) == 1 else colour
            label = f"{domain}, the same steps on the source alone" if len(runs) == 1 else f"{run.name}: source alone"
            axes.plot(*zip(*baseline, strict=True), "s:", color=own, markersize=4, linewidth=1.5, label=label)
    if not drawn:
        return None
    _start_of_adaptation(axes, runs)
    axes.set(xlabel="step", ylabel=f"test {measure.heading}, %")
    _legend_beside(axes)
    return Drawn(
        "scores",
        figure,
        f"Test {measure.heading} over the steps. Left of the dashed line the model learns from the source alone.",
    )


def losses(runs: Sequence[ShownRun]) -> Drawn | None:
    """The losses; of one run by the role that they had in the step."""
    names = [name for name in _ROLES if any(points(_steps(run), f"{name}_loss") for run in runs)]
    if not names:
        return None
    figure, panels = new_figure(columns=len(names), height=3.8)
    firsts = {x.get("first") for x in _steps(runs[0])}
    second = "target" if "target" in firsts else "alignment"
    by_role = len(runs) == 1 and firsts >= {"task", second}
    for axes, name in zip(panels, names, strict=True):
        for run, colour in zip(runs, _cycle(runs), strict=True):
            alone = [x for x in _steps(run) if x["phase"] == "source"]
            if found := points(alone, f"{name}_loss"):
                plot_series(axes, found, INK if len(runs) == 1 else colour, "source phase" if len(runs) == 1 else None)
            adapting = [x for x in _steps(run) if x["phase"] != "source"]
            if by_role:
                for first, label, own in zip(("task", second), _ROLES[name], COLOURS, strict=False):
                    if found := points([x for x in adapting if x.get("first") == first], f"{name}_loss"):
                        plot_series(axes, found, own, label)
            elif found := points(adapting, f"{name}_loss"):
                plot_series(axes, found, colour, None if len(runs) == 1 else shortened(run.name))
        _start_of_adaptation(axes, runs)
        axes.set(title=f"{name} loss", xlabel="step")
        if axes.get_legend_handles_labels()[1] and (by_role or len(runs) > 1):
            axes.legend(fontsize=9, frameon=False)
    roles = " Their colours say which role a loss had in the step." if by_role else ""
    which = {1: f"The {names[0]} loss", 2: "Both losses"}.get(len(names), "The losses")
    return Drawn("losses", figure, f"{which}: every logged value faint, the running mean on top.{roles}")


def gradients(runs: Sequence[ShownRun]) -> Drawn | None:
    """Cosine and inner product of the two gradients, and of one run those of each stage where they were measured."""
    keys = [key for key in ("cosine", "inner_product") if any(points(_steps(run), key) for run in runs)]
    if not keys:
        return None
    figure, panels = new_figure(columns=len(keys), height=3.8)
    stages = sorted({k.partition("/")[2] for x in _steps(runs[0]) for k in x if k.startswith("cosine/")})
    stages = stages if len(runs) == 1 else []
    for axes, key in zip(panels, keys, strict=True):
        for run, colour in zip(runs, _cycle(runs), strict=True):
            if found := points(_steps(run), key):
                name = "all shared parameters" if len(runs) == 1 else shortened(run.name)
                plot_series(axes, found, INK if len(runs) == 1 else colour, name if stages or len(runs) > 1 else None)
        for stage, colour in zip(stages, COLOURS * (len(stages) // len(COLOURS) + 1), strict=False):
            if found := points(_steps(runs[0]), f"{key}/{stage}"):
                plot_series(axes, found, colour, shortened(stage), linewidth=1.2)
        axes.axhline(0, color=GREY, linewidth=1)
        axes.set(title=key.replace("_", " "), xlabel="step")
        if axes.get_legend_handles_labels()[1]:
            axes.legend(fontsize=9, frameon=False)
    return Drawn(
        "gradients",
        figure,
        "Do the two objectives pull the same way? Cosine and inner product of the task's gradient and the other's: "
        "above 0 a step for one also helps the other, below 0 it hurts it.",
    )


def validators(runs: Sequence[ShownRun]) -> Drawn | None:
    """Every score that needs no target label, each with an axis of its own."""
    keys = sorted({key for run in runs for x in run.record.evaluations for key in x if key.startswith("validator_")})
    keys = [key for key in keys if any(points(run.record.evaluations, key) for run in runs)]
    if not keys:
        return None
    columns = min(4, len(keys))
    figure, panels = new_figure(columns, -(-len(keys) // columns), height=3.0)
    alone = False
    for axes, key in zip(panels, keys, strict=False):
        for run, colour in zip(runs, _cycle(runs), strict=True):
            if found := points(run.record.evaluations, key):
                own = INK if len(runs) == 1 else colour
                axes.plot(*zip(*found, strict=True), "o-", color=own, markersize=4, label=shortened(run.name))
            if len(runs) == 1 and (found := points([x for x in run.record.baseline if "evaluation" in x], key)):
                alone = True
                axes.plot(*zip(*found, strict=True), "s:", color=GREY, markersize=3)
        name = key.removeprefix("validator_")
        chooses = len(runs) == 1 and name == selecting_validator(runs[0].record)
        title = f"{name.replace('_', ' ')}\n{better(name)}".rstrip()
        axes.set_title(title, fontsize=10, fontweight="bold" if chooses else "normal")
        axes.tick_params(labelsize=8)
    for axes in panels[len(keys) :]:
        axes.remove()
    if len(runs) > 1:
        figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=4, fontsize=9)
    bold = " The bold one selects checkpoints." if len(runs) == 1 and selecting_validator(runs[0].record) else ""
    dotted = " Dotted: the same steps on the source alone." if alone else ""
    text = f"Scores that need no target label, over the steps of the adaptation.{bold}{dotted}"
    return Drawn("validators", figure, text)


def _steps(run: ShownRun) -> list[dict[str, Any]]:
    return [line for line in run.record.metrics if "phase" in line]


def _cycle(runs: Sequence[ShownRun]) -> list[str]:
    return [COLOURS[n % len(COLOURS)] for n in range(len(runs))]


def _start_of_adaptation(axes: Axes, runs: Sequence[ShownRun]) -> None:
    starts = {(run.record.training.get("training") or {}).get("source_steps", 0) for run in runs}
    last = max((line["step"] for run in runs for line in run.record.metrics), default=0)
    for start in starts:
        if 0 < start < last:
            axes.axvline(start, color=GREY, linestyle="--", linewidth=1)


def _legend_beside(axes: Axes) -> None:
    axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), fontsize=9, frameon=False)
