"""What a report says, section by section; the same for HTML and Markdown."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ...run_folder import DETECTIONS_FILE, TARGET_IMAGES_FILE
from . import classes, curves, features, precision
from .shown import ShownRun
from .style import Drawn

__all__ = ["Picture", "Section", "Table", "report_sections"]


_MOST_WHOLE = 6
"""Of more runs there is the comparison alone: a page with all of them would be too long and too large."""


@dataclass(frozen=True)
class Picture:
    """A picture that lies in a run's folder already.

    Attributes:
        name: Name of its file in the report, without an ending.
        path: Where it is.
        caption: What it shows.
    """

    name: str
    path: Path
    caption: str


@dataclass(frozen=True)
class Table:
    """A table; the first columns hold words, the others figures.

    Attributes:
        columns: Their headings.
        rows: The cells.
        bold: Numbers of the rows that stand out.
        words: How many columns hold words.
    """

    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    bold: Sequence[int] = ()
    words: int = 1


@dataclass
class Section:
    """A section of a report.

    Attributes:
        title: Its heading.
        words: Paragraphs.
        table: A table below them.
        shown: Figures and pictures.
        level: 2 for a section, 3 for one within a run's.
    """

    title: str
    words: list[str] = field(default_factory=list)
    table: Table | None = None
    shown: list[Drawn | Picture] = field(default_factory=list)
    level: int = 2


def report_sections(runs: Sequence[ShownRun]) -> list[Section]:
    """The sections of a report on one run, or on several: these are compared first, then each of a few has its own."""
    if len(runs) == 1:
        return _of_run(runs[0], 2)
    figures = [curves.scores(runs), curves.losses(runs), curves.gradients(runs), curves.validators(runs)]
    found = [
        Section("Runs beside each other", table=_runs_table(runs)),
        Section("Curves of all runs", shown=[figure for figure in figures if figure is not None]),
    ]
    if len(runs) > _MOST_WHOLE:
        found[0].words.append("For more on one of them: metaalign report RUN.")
        return found
    for run in runs:
        found.append(Section(f"Run {run.name}", [f"{run.title}, {run.method}."]))
        for section in _of_run(run, 3):
            named = [_renamed(shown, run.name) for shown in section.shown]
            found.append(Section(section.title, section.words, section.table, named, 3))
    return found


def _of_run(run: ShownRun, level: int) -> list[Section]:
    """The sections of one run. Without labels of the target its images come first."""
    looks = _pictures(run)
    sections = [_results(run)]
    sections += [] if run.labelled else [looks]
    curve = curves.scores([run])
    sections.append(Section("Course of the run", shown=[curve] if curve else []))
    sections.append(Section("By class", shown=_drawn(classes.confusion(run), classes.gained_and_lost(run))))
    sections.append(
        Section(
            "Precision and recall", shown=_drawn(precision.average_precisions(run), precision.precision_recall(run))
        )
    )
    sections.append(Section("Reliability", shown=_drawn(classes.reliability_diagram(run))))
    sections.append(_domains(run))
    sections += [looks] if run.labelled else []
    sections.append(_losses(run))
    sections.append(Section("Without target labels", shown=_drawn(curves.validators([run]))))
    kept = [s for s in sections if s.words or s.table or s.shown]
    return [Section(s.title, s.words, s.table, s.shown, level) for s in kept]


def _results(run: ShownRun) -> Section:
    """The figures that matter, in words and in a table."""
    measure, summary = run.record.measure, run.record.summary
    before, after = run.scores("target")
    words = []
    if before is not None and after is not None:
        gain = round(100 * (after - before), 1)
        moved = f"stayed at {100 * after:.1f} %"
        if gain:
            how = "rose" if gain > 0 else "fell"
            moved = f"{how} from {100 * before:.1f} % to {100 * after:.1f} % ({gain:+.1f} points)"
        words.append(f"{_sentence(measure.heading)} on the target's test images {moved}.")
    elif not run.labelled:
        words.append(
            "The target has no labels, so nothing here says how often the model is right on it. Look at the images."
        )
    alone = (summary.get("baseline") or {}).get("target")
    if alone is not None and after is not None:
        words.append(
            f"As many steps on the source alone reach {100 * alone:.1f} %: the gain over them is "
            f"{100 * (after - alone):+z.1f} points."
        )
    if changed := classes.changed_classes(run):
        words.append(f"{changed[0]:,} of {changed[1]:,} target test images changed their class by adaptation.")
    if summary.get("gradient_cosine") is not None:
        words.append(f"Mean cosine of the two gradients: {summary['gradient_cosine']:+.3f}.")
    if not summary:
        last = max((line["step"] for line in run.record.metrics), default=0)
        course = run.record.training.get("training") or {}
        total = course.get("source_steps", 0) + course.get("max_steps", 0)
        words.append(f"The run is not finished: {last} of {total} steps are logged.")
    rows = []
    for domain in ("source", "target"):
        old, new = run.scores(domain)
        if new is None:
            continue
        change = "" if old is None else f"{100 * (new - old):+z.1f}"
        other = (summary.get("baseline") or {}).get(domain)
        name = f"{domain}, {measure.heading} %"
        rows.append([name, _percent(old), _percent(other), _percent(new), change])
    columns = ["test images of", "before", "source alone", "after", "change"]
    if rows and not any(row[2] for row in rows):
        columns, rows = [c for c in columns if c != "source alone"], [[*row[:2], *row[3:]] for row in rows]
    # That the target has no labels is said above already.
    notes = [str(note) for note in summary.get("notes") or [] if run.labelled or "cannot be measured" not in note]
    table = Table(columns, rows, [len(rows) - 1]) if rows else None
    return Section("Result", [*([" ".join(words)] if words else []), *notes], table)


def _losses(run: ShownRun) -> Section:
    loss, gradient = curves.losses([run]), curves.gradients([run])
    apart = "Its steps take both gradients in one pass, so that their cosine is not known."
    both = any({"task_loss", second} <= line.keys() for line in run.record.metrics for second in curves.SECOND_LOSSES)
    return Section("Losses and gradients", [apart] if both and not gradient else [], shown=_drawn(loss, gradient))


def _domains(run: ShownRun) -> Section:
    found = features.distances(run)
    figure = features.embedding(run)
    table = Table(["proxy A-distance", "0 to 2"], [[word, f"{value:.2f}"] for word, value in found.items()])
    words = [
        "The proxy A-distance says how well a linear classifier tells the domains apart by these features: 0 where it "
        "cannot, 2 where it always can."
    ]
    return Section("Both domains", words if found else [], table if found else None, _drawn(figure))


def _pictures(run: ShownRun) -> Section:
    """The pictures of target images that the run has left."""
    known = {
        TARGET_IMAGES_FILE: "Target test images that the model is most and least sure of, and those that changed their "
        "class by adaptation, with its confidence. No label was read.",
        DETECTIONS_FILE: "Target test images with what was found before and after, and the truth where it is known.",
    }
    found = [Picture(name.removesuffix(".png"), run.folder / name, caption) for name, caption in known.items()]
    return Section("Target images", shown=[picture for picture in found if picture.path.is_file()])


def _runs_table(runs: Sequence[ShownRun]) -> Table:
    rows = []
    for run in runs:
        (before, after), training = run.scores("target"), run.record.training.get("training") or {}
        alone = (run.record.summary.get("baseline") or {}).get("target")
        change = "" if before is None or after is None else f"{100 * (after - before):+z.1f}"
        source = run.scores("source")[1]
        cells = [_percent(source), _percent(before), _percent(alone), _percent(after), change]
        rows.append([run.name, run.title, run.method, str(training.get("seed", "")), *cells])
    columns = ["run", "domains", "method", "seed", "source", "target before", "source alone", "target after", "change"]
    alike = len({run.title for run in runs}) == 1
    kept = [n for n in range(len(columns)) if any(row[n] for row in rows) and not (alike and columns[n] == "domains")]
    return Table([columns[n] for n in kept], [[row[n] for n in kept] for row in rows], words=2 if alike else 3)


def _renamed(shown: Drawn | Picture, run: str) -> Drawn | Picture:
    """The same under a file name of its own."""
    name = f"{run}-{shown.name}"
    if isinstance(shown, Picture):
        return Picture(name, shown.path, shown.caption)
    return Drawn(name, shown.figure, shown.caption)


def _drawn(*figures: Drawn | None) -> list[Drawn | Picture]:
    return [figure for figure in figures if figure is not None]


def _sentence(text: str) -> str:
    """The text as the begin of a sentence; a name such as mAP@50 stays."""
    return text[0].upper() + text[1:] if text.islower() else text


def _percent(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.1f}"
