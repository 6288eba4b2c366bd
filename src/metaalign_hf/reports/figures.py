"""Figures of a run, from its `metrics.jsonl`."""

from __future__ import annotations

from pathlib import Path

from .record import RunRecord

__all__ = ["write_figures"]


def write_figures(record: RunRecord, folder: Path) -> list[Path]:
    """Draw the course of a run: the figure that heads its tables, of both domains, the two losses, their cosine.

    Args:
        record: The run's record.
        folder: Where `training.png` goes; made when missing.

    Returns:
        The files written; none where the run has fewer than three evaluations, which are no course.
    """
    evaluations = record.evaluations
    if len(evaluations) < 3:
        return []
    # Imported on use: a run that draws nothing need not wait for it. The object interface needs no display.
    from matplotlib.figure import Figure

    steps = [line for line in record.metrics if "phase" in line]
    separated = [line for line in steps if isinstance(line.get("cosine"), int | float)]
    figure = Figure(figsize=(4.2 * (3 if separated else 2), 3.2), layout="constrained")
    panels = figure.subplots(1, 3 if separated else 2)
    colours = {"source": "tab:blue", "target": "tab:orange"}
    measure = record.measure
    title = {"map50": "mAP@50"}.get(measure, measure.replace("_", " "))
    for domain, colour in colours.items():
        key = f"{domain}_{measure}"
        points = [(line["step"], 100 * line[key]) for line in evaluations if line.get(key) is not None]
        if points:
            name = record.summary.get(domain)
            panels[0].plot(*zip(*points, strict=True), "o-", color=colour, label=f"{domain} {name}" if name else domain)
    panels[0].set(title=f"test {title}, %", xlabel="step")
    panels[0].legend()
    for name, colour in (("task_loss", "tab:blue"), ("alignment_loss", "tab:orange")):
        points = [(line["step"], line[name]) for line in steps if name in line]
        if points:
            panels[1].plot(*zip(*points, strict=True), color=colour, label=name.replace("_", " "))
    panels[1].set(title="training losses", xlabel="step")
    panels[1].legend()
    if separated:
        panels[2].plot([line["step"] for line in separated], [line["cosine"] for line in separated], color="tab:green")
        panels[2].axhline(0, color="grey", linewidth=0.8)
        panels[2].set(title="cosine of task and alignment gradient", xlabel="step")
    source_steps = record.training.get("training", {}).get("source_steps", 0)
    for panel in panels:
        panel.grid(alpha=0.3)
        if source_steps:
            panel.axvline(source_steps, color="grey", linestyle="--", linewidth=0.8)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "training.png"
    figure.savefig(path, dpi=110, metadata={"Software": None})
    return [path]
