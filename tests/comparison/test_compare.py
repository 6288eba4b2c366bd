"""`metaalign compare`: a grid of runs that is never made twice, and what it says of them."""

import json
import math
from pathlib import Path

import pytest
from PIL import Image

from metaalign_hf import parse_config
from metaalign_hf.cli import run
from metaalign_hf.comparison import Grid, read_methods
from metaalign_hf.comparison.results import choices_table, means_table, verdict
from metaalign_hf.errors import UserError
from metaalign_hf.intervals import mean_and_interval, paired_differences, with_interval
from tests.helpers.runs import TINY


def compare(output: Path, *options: str) -> int:
    words = ["compare", TINY, "--output", str(output), "--methods", "joint,fresh", "--seeds", "2"]
    return run([*words, "--training.source_steps", "2", "--training.max_steps", "2", *options])


def changed(folder: Path) -> dict[str, int]:
    return {str(path.relative_to(folder)): path.stat().st_mtime_ns for path in folder.rglob("summary.json")}


def test_a_grid_is_made_once_goes_on_where_it_stopped_and_says_what_it_found(tmp_path, capsys):
    output = tmp_path / "grid"
    assert compare(output) == 0
    runs = changed(output)
    assert set(runs) == {f"{method}/seed-{seed}/summary.json" for method in ("joint", "fresh") for seed in (0, 1)}
    first = capsys.readouterr().out
    text = (output / "compare.md").read_text()
    assert "| method | runs |" in text and "±" in text and text.startswith("# joint against fresh")
    found = json.loads((output / "compare.json").read_text())
    target = {(r["method"], r["seed"]): 100 * r["summary"]["target_accuracy_after"] for r in found["runs"]}
    mean, _ = mean_and_interval([target["fresh", seed] - target["joint", seed] for seed in (0, 1)])
    assert f"{mean:+z.1f} ± " in text and f"{mean:+z.1f} ± " in first
    with Image.open(output / "compare.png") as picture:
        assert min(picture.size) > 200
    # As if it had been stopped in one of the runs.
    (output / "fresh" / "seed-1" / "summary.json").unlink()
    assert compare(output) == 0
    again = changed(output)
    assert {name for name in runs if runs[name] != again[name]} == {"fresh/seed-1/summary.json"}
    assert capsys.readouterr().out.count("done before") == 3
    assert (output / "compare.md").read_text() == text
    # Other settings are not mixed with it.
    assert compare(output, "--optimizer.lr", "0.5") == 2
    assert "optimizer.lr = 0.01, not 0.5" in capsys.readouterr().err and changed(output) == again


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--methods", "jiont"], ["jiont", "joint"]),
        (["--methods", "joint,joint"], ["joint", "twice"]),
        (["--methods", "joint,mine.yaml"], ["mine.yaml", "does not exist"]),
        (["--methods", "joint", "--seeds", "0"], ["--seeds", "1 or more"]),
        (["--methods", "joint", "--training.seed", "3"], ["--training.seed", "--seeds"]),
        (["--methods", "joint", "--training.max_stps", "3"], ["training.max_stps", "training.max_steps"]),
        ([], ["--methods"]),
    ],
    ids=" ".join,
)
def test_bad_input(words, told, capsys):
    assert run(["compare", TINY, *words]) == 2
    text = capsys.readouterr().err
    assert text.startswith("metaalign: ") and text.count("\n") == 1 and all(word in text for word in told), text


def test_methods_are_words_joined(tmp_path):
    file = tmp_path / "gentle.yaml"
    file.write_text("optimizer: {lr: 0.001}\n")
    first, second = read_methods(f"remembered+cdan, {file}", ["cdan"])
    assert first.name == "remembered+cdan" and first.options[-2:] == ("--model.alignment", "cdan")
    assert "remembered" in first.options
    assert (second.name, second.options) == ("gentle", ("--config", str(file)))
    with pytest.raises(UserError, match="did you mean cdan"):
        read_methods("cdna", ["cdan"])


def test_source_only_is_a_method_beside_others_that_have_a_baseline():
    (method,) = read_methods("source_only", [])
    assert not parse_config(["--config", TINY, "--training.baseline", "true", *method.options]).training.baseline


def summary(after: float, bnm: float, **options: float) -> dict:
    rows = [
        {"checkpoint": "last", "step": 9, "source": 0.9, "target": after},
        {"checkpoint": "selected (label-free, bnm)", "step": 6, "source": 0.9, "target": after - 0.1},
        {"checkpoint": "oracle (target labels)", "step": 3, "source": 0.9, "target": 0.99},
    ]
    figures = {"target_accuracy_before": 0.5, "target_accuracy_after": after, "source_accuracy_after": 0.9}
    return {"metric": "accuracy", "checkpoints": rows, "validators": {"bnm": [0.1, bnm]}, **figures, **options}


def grid(gains: list[float]) -> Grid:
    runs = {("a", n): summary(0.6 + n / 10, 0.2) for n in range(len(gains))}
    runs |= {("b", n): summary(0.6 + n / 10 + gain, 0.4) for n, gain in enumerate(gains)}
    return Grid(["a", "b"], list(range(len(gains))), runs)


def test_differences_are_paired_and_a_no_is_said_as_plainly():
    found = grid([0.02, 0.03, 0.01])
    (row,) = [row for row in means_table(found).rows if row[0] == "b"]
    assert row[-1] == f"+2.0 ± {4.302653 / math.sqrt(3):.1f}", "the spread of the seeds is not in it"
    assert "No difference between b and a is shown" in verdict(found)[0]
    assert verdict(grid([0.02, 0.021, 0.019]))[0].startswith("b is better than a on the target: +2.0 ± 0.2")
    assert verdict(grid([-0.02, -0.021, -0.019]))[0].startswith("b is worse than a")
    assert verdict(found)[-1] == "Without target labels, by their means at the end: bnm would choose b."


def test_the_choices_of_the_validator_stand_beside_the_last_and_the_best():
    table = choices_table(grid([0.02, 0.02]))
    assert list(table.columns)[1:5] == ["steps chosen", "target chosen", "target last", "target best (oracle)"]
    assert table.rows[0][1] == "6, 6" and table.rows[0][4].startswith("99.0")


def test_pairs_are_those_of_both():
    assert paired_differences({1: 3.0, 2: 5.0, 4: 1.0}, {2: 1.0, 1: 1.0}) == [2.0, 4.0]


def test_a_difference_that_rounds_to_nothing_is_no_loss():
    assert with_interval([-0.03, -0.03], "+") == "+0.0 ± 0.0"
