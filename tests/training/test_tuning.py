"""`metaalign tune`: what is chosen, what goes on after a kill, and what is refused."""

import json
import signal
import subprocess
import sys
import time
from dataclasses import asdict

import pytest
import yaml
from rich.console import Console

from metaalign_hf.cli import run
from metaalign_hf.configuration import load_config
from metaalign_hf.training.search_space import default_space, settings
from metaalign_hf.training.tuning import Search, Trial
from tests.helpers.runs import TINY

RATES = "optimizer.lr=0.003,1000,0.03"
SHORT = ["--training.source_steps", "2", "--training.max_steps", "4", "--training.max_bad_steps", "0"]


def trials(folder):
    return [json.loads(line) for line in (folder / "trials.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def searched(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tune") / "search"
    assert run(["tune", TINY, str(folder), "--try", RATES, *SHORT]) == 0
    return folder


def test_a_search_compares_runs_and_writes_what_train_takes(searched, tmp_path):
    alone, first, diverged, last = trials(searched)
    assert alone["number"] == 0 and diverged["value"] is None
    near = [t for t in (first, last) if t["source"] >= max(t["source"] for t in (alone, first, last)) - 0.05]
    best = max(near, key=lambda trial: trial["value"])
    chosen = yaml.safe_load((searched / "best.yaml").read_text())
    assert chosen["optimizer"]["lr"] == best["setting"]["optimizer.lr"]
    assert (searched / "best.yaml").read_text().startswith("# optimizer.lr")
    assert chosen["training"]["output_dir"] == load_config(TINY).training.output_dir
    # The same run again has the same figures.
    again = ["train", "--config", str(searched / "best.yaml"), "--training.output_dir", str(tmp_path / "run")]
    assert run(again) == 0
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["validators"]["bnm"][1] == best["value"]
    assert summary["source_accuracy_after"] == best["source"]


def test_a_killed_search_goes_on(searched, tmp_path, capsys):
    folder = tmp_path / "search"
    words = ["tune", TINY, str(folder), "--try", RATES, *SHORT]
    killed = subprocess.Popen([sys.executable, "-m", "metaalign_hf", *words], stdout=subprocess.DEVNULL)
    for _ in range(6000):
        if (folder / "trials.jsonl").exists() and len((folder / "trials.jsonl").read_text().splitlines()) == 2:
            break
        time.sleep(0.01)
    killed.send_signal(signal.SIGKILL)
    assert killed.wait() == -signal.SIGKILL
    kept = trials(folder)
    assert 2 <= len(kept) < 4
    assert run(words) == 0
    assert trials(folder) == trials(searched)
    said = capsys.readouterr().out
    assert f"{len(kept)} runs are done" in said and "Trial 1 of" not in said
    assert run(["tune", TINY, str(folder), "--try", "optimizer.lr=0.003,0.01", *SHORT]) == 2


def recorded(folder, config, trials):
    """A search whose runs were all made before."""
    given = settings({"optimizer.lr": [0.1, 0.2]}, None, 0)
    folder.mkdir()
    (folder / "search.json").write_text(json.dumps({"config": asdict(config), "settings": given}))
    (folder / "trials.jsonl").write_text("".join(json.dumps(asdict(trial)) + "\n" for trial in trials))

    def with_setting(setting):
        return load_config(TINY, setting)

    return Search(folder, config, given, with_setting, Console(quiet=True)).run()


@pytest.mark.parametrize(
    ("alone", "first", "second", "chosen"),
    [
        # (source, validator, target): the validator decides, whatever the target's labels say;
        ((0.9, 0.5, 0.1), (0.9, 0.6, 0.9), (0.9, 0.7, 0.1), 2),
        # but not for one that has forgotten the source,
        ((0.9, 0.5, 0.1), (0.9, 0.6, 0.1), (0.8, 0.7, 0.9), 1),
        # and source only counts there.
        ((0.9, 0.5, 0.1), (0.8, 0.6, 0.9), (0.8, 0.7, 0.9), None),
    ],
)
def test_target_labels_choose_nothing(tmp_path, alone, first, second, chosen):
    config = load_config(TINY)
    made = [
        Trial(number, {"optimizer.lr": number / 10} if number else {}, source, "bnm", value, target)
        for number, (source, value, target) in enumerate((alone, first, second))
    ]
    found = recorded(tmp_path / "search", config, made)
    assert (found.number if found else None) == chosen
    assert (tmp_path / "search" / "best.yaml").exists() == (chosen is not None)


def test_the_default_search_starts_from_the_configuration():
    config = load_config(TINY, {"coordination.direction": "remembered"})
    space = default_space(config)
    assert space["optimizer.lr"] == [0.01, 0.0033, 0.03]
    assert space["model.alignment"][1] == [{"name": "dann", "hidden": 16, "weight": 0.33}]
    assert space["coordination.inner_lr"] == [3.0, 1.0]
    assert len(settings(space, None, 0)) == 12
    few = settings(space, 5, 0)
    assert few[0] == settings(space, None, 0)[0] and len(few) == 5
    joint = load_config(TINY, {"coordination.method": "joint"})
    assert list(default_space(joint)) == ["optimizer.lr", "model.alignment"]
    shared = load_config(TINY, {"coordination.method": "joint", "coordination.alignment_share": 0.3})
    assert default_space(shared)["coordination.alignment_share"] == [0.3, 0.1] and len(default_space(shared)) == 2


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--try", "optimizer.lr"], "write --try KEY=VALUE,VALUE"),
        (["--try", "optimizer.lr="], "write --try KEY=VALUE,VALUE"),
        (["--try", "optimizer.rate=1,2"], "did you mean"),
        (["--try", "optimizer.lr=0.1,-1"], "optimizer.lr"),
        (["--try", "model.alignment=dann,nothing"], "nothing"),
        (["--trials", "0"], "1 or more"),
        (["--training.select_by", "null"], "training.select_by is null"),
        (["--tries", "3"], "unknown option --tries"),
    ],
    ids=lambda value: "" if isinstance(value, str) else " ".join(value),
)
def test_bad_input_is_one_line_and_writes_nothing(tmp_path, capsys, words, told):
    assert run(["tune", TINY, str(tmp_path / "search"), *words]) == 2
    said = capsys.readouterr().err
    assert told in said and said.count("\n") == 1, said
    assert not (tmp_path / "search").exists()
