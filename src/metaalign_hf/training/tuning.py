"""A search for settings without target labels: runs one after the other, compared by the label-free validator.

Every setting is a run of its own, `trial-NN/`; the same steps on the source alone are beside them, `baseline/`. What is
known of a finished run is one line of `trials.jsonl`, so a search that was stopped goes on where it was. Settings are
the points of a small grid, or as many of them as asked for, at random: with a dozen runs over two or three values of an
entry, there is nothing that a model of the results could add.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from contextlib import redirect_stdout
from dataclasses import asdict, dataclass, replace
from io import StringIO
from pathlib import Path

import yaml
from rich.console import Console
from rich.table import Table

from ..alignment import normalise_alignment
from ..alignment.detection import normalise_levels
from ..configuration import Config, HubConfig
from ..disk import write_whole
from ..errors import UserError
from ..evaluation import get_validator
from ..run_folder import BAD_STEP_FILE, CANDIDATES_FOLDER, CHECKPOINTS_FOLDER, SUMMARY_FILE
from ..run_lock import RunLock
from .baseline import baseline_config
from .loop import adapt
from .search_space import Setting, in_words, shown
from .selection import Evaluation, choose, still_selectable

__all__ = ["Search", "Trial"]

SEARCH_FILE = "search.json"
TRIALS_FILE = "trials.jsonl"
BEST_FILE = "best.yaml"


@dataclass(frozen=True)
class Trial:
    """A finished run of a search.

    Attributes:
        number: Its number, from 1; 0 is that on the source alone.
        setting: Its values.
        source: The source figure of the last checkpoint, 0..1; None without a source, or where the run diverged.
        validator: Name of the validator; empty where the run diverged.
        value: What it gave for that checkpoint; None where the run diverged.
        target: The target figure; None without labels. For the report alone.
    """

    number: int
    setting: Setting
    source: float | None = None
    validator: str = ""
    value: float | None = None
    target: float | None = None


class Search:
    """A search in a folder, which is made, or gone on with where it holds the same search.

    Args:
        folder: Where its runs go.
        config: The configuration that the settings change.
        given: The settings.
        with_setting: Makes the configuration of a setting.
        console: Where it is told.

    Raises:
        UserError: If the folder holds something else, or nothing could be compared.
    """

    def __init__(
        self,
        folder: Path,
        config: Config,
        given: list[Setting],
        with_setting: Callable[[Setting], Config],
        console: Console,
    ) -> None:
        if config.training.select_by is None:
            raise UserError("training.select_by is null: a search needs a validator, such as auto")
        self.folder, self.config, self.given, self.console = folder, config, given, console
        # All of them now, so that a value that no run can use is refused before the first one.
        self.configs = [self._of_trial(with_setting(setting), f"trial-{n:02d}") for n, setting in enumerate(given, 1)]
        self.asked = {"config": asdict(config), "settings": given}
        if folder.exists() and any(folder.iterdir()) and not self._holds_this():
            raise UserError(
                f"folder {folder} holds something else than this search; choose another folder, or remove it first"
            )

    def run(self) -> Trial | None:
        """Make the runs that are missing, tell what was found, and write the best setting's configuration.

        Returns:
            The chosen trial; None where no setting keeps what source only has learnt.

        Raises:
            UserError: As `adapt` does, but for a run that diverges: that setting is then out.
            RunInterrupted: If it was stopped.
        """
        lock = RunLock(self.folder, "folder")
        try:
            write_whole(self.folder / SEARCH_FILE, json.dumps(self.asked, indent=1))
            found = {trial.number: trial for trial in self._recorded()}
            done = f"; {len(found)} runs are done" if found else ""
            beside = " and source only" if self.config.data.source is not None else ""
            self._say(
                f"{len(self.given)} settings{beside}, {self.config.training.max_steps} steps each{done}. The same "
                "command goes on after a stop."
            )
            if 0 not in found and self.config.data.source is not None:
                alone = replace(self.config.training, output_dir=str(self.folder))
                self._say("The same steps on the source alone, for comparison:")
                found[0] = self._take(0, {}, baseline_config(replace(self.config, training=alone)))
            for number, (setting, config) in enumerate(zip(self.given, self.configs, strict=True), 1):
                if number not in found:
                    self._say(f"Trial {number} of {len(self.given)}: {in_words(setting)}")
                    found[number] = self._take(number, setting, config)
                    self._drop_weights(list(found.values()))
            return self._conclude([found[number] for number in sorted(found)])
        finally:
            lock.release()

    def _holds_this(self) -> bool:
        path = self.folder / SEARCH_FILE
        try:
            return bool(json.loads(path.read_text()) == json.loads(json.dumps(self.asked)))
        except (OSError, ValueError):
            return False

    def _of_trial(self, config: Config, name: str) -> Config:
        if config.model.alignment != "auto":
            spelt_out = normalise_alignment if config.model.detector is None else normalise_levels
            spelt_out(config.model.alignment)
        folder = str(self.folder / name)
        training = replace(config.training, output_dir=folder, resume="auto", baseline=False, trackers=[])
        return replace(config, training=training, hub=HubConfig())

    def _recorded(self) -> list[Trial]:
        path = self.folder / TRIALS_FILE
        found = []
        for line in path.read_text().splitlines() if path.exists() else []:
            try:
                found.append(Trial(**json.loads(line)))
            except (ValueError, TypeError):
                break  # the line that the search was killed in
        write_whole(path, "".join(json.dumps(asdict(trial)) + "\n" for trial in found))
        return found

    def _take(self, number: int, setting: Setting, config: Config) -> Trial:
        """Make a run, or read it where it is finished already, and record it."""
        folder = Path(config.training.output_dir)
        trial = Trial(number, setting)
        try:
            if not (folder / SUMMARY_FILE).is_file():
                # A line about it is enough; the run's folder has its log.
                with redirect_stdout(StringIO()):
                    adapt(config)
            trial = self._read(trial, folder)
        except UserError as error:
            if not (folder / BAD_STEP_FILE).is_file():
                raise
            self._say(f"Trial {number} is out: {error}")
        if trial.value is not None:
            source = "" if trial.source is None else f"source {_percent(trial.source)}, "
            self._say(f"  {source}{trial.validator} {trial.value:.3f}")
        with (self.folder / TRIALS_FILE).open("a") as file:
            file.write(json.dumps(asdict(trial)) + "\n")
        return trial

    def _read(self, trial: Trial, folder: Path) -> Trial:
        summary = json.loads((folder / SUMMARY_FILE).read_text())
        if not summary["validators"]:
            raise UserError(
                f"{folder}: no validator could be computed (too few test images, or none for this task), so that "
                "settings cannot be compared"
            )
        metric = summary["metric"]
        validator, (_, value) = next(iter(summary["validators"].items()))
        source, target = (summary.get(f"{domain}_{metric}_after") for domain in ("source", "target"))
        return replace(trial, source=source, validator=validator, value=value, target=target)

    def _choose(self, trials: list[Trial]) -> Trial | None:
        """The best value among the settings whose source figure is near the best one, that of source only included."""
        found = _evaluations(trials)
        best, tolerance = max(e.guard for e in found.values()), self.config.training.select_tolerance
        kept = [e for number, e in found.items() if number > 0 and e.guard >= best - tolerance]
        return {t.number: t for t in trials}[-choose(kept, tolerance).step] if kept else None

    def _drop_weights(self, trials: list[Trial]) -> None:
        """Delete the weights of settings that cannot be chosen any more."""
        found = _evaluations([trial for trial in trials if trial.number > 0]) if len(trials) > 1 else {}
        kept = {-e.step for e in still_selectable(list(found.values()), self.config.training.select_tolerance)}
        for trial in trials:
            if trial.number in kept or trial.number == 0:
                continue
            folder = self.folder / f"trial-{trial.number:02d}"
            for name in (CHECKPOINTS_FOLDER, CANDIDATES_FOLDER):
                shutil.rmtree(folder / name, ignore_errors=True)
            for path in folder.rglob("*.safetensors"):
                path.unlink()

    def _conclude(self, trials: list[Trial]) -> Trial | None:
        """Tell what was found, and write the configuration of the chosen setting."""
        chosen = self._choose(trials) if any(trial.value is not None for trial in trials) else None
        self.console.print(self._table(trials, chosen))
        if chosen is None or chosen.value is None:
            self._say(
                "No setting was chosen: each diverged, or lost more than training.select_tolerance "
                f"({self.config.training.select_tolerance:g}) of the best source figure. Try smaller learning rates."
            )
            return None
        alone, score = trials[0], get_validator(chosen.validator).score
        compared = alone.number == 0 and alone.value is not None
        beside = f" (source only {alone.value:.3f})" if compared else ""
        how = f"chosen without target labels by {chosen.validator}, {chosen.value:.3f}{beside}"
        self._say(f"{how[0].upper()}{how[1:]}: {in_words(chosen.setting)}.")
        if alone.value is not None and compared and score(chosen.value) <= score(alone.value):
            self._say(f"By {chosen.validator} that is no better than source only.")
        best, config = self.folder / BEST_FILE, self.configs[chosen.number - 1]
        own = self.config.training
        training = replace(
            config.training, output_dir=own.output_dir, resume="never", baseline=own.baseline, trackers=own.trackers
        )
        values = asdict(replace(config, training=training, hub=self.config.hub))
        head = f"# {in_words(chosen.setting)}: {how}, among {len(self.given)} settings\n"
        write_whole(best, head + yaml.safe_dump(values, sort_keys=False))
        self._say(f"Its run is in {config.training.output_dir}. Next, try:\n  metaalign train --config {best}")
        return chosen

    def _table(self, trials: list[Trial], chosen: Trial | None) -> Table:
        keys = list(self.given[0])
        validator = next((trial.validator for trial in trials if trial.validator), "validator")
        labelled = any(trial.target is not None for trial in trials)
        table = Table()
        for column in ("trial", *keys, "source", validator, *(["target, not read"] if labelled else [])):
            table.add_column(column, justify="left" if column in ("trial", *keys) else "right", overflow="fold")
        for trial in trials:
            name = "source only" if trial.number == 0 else f"{trial.number}{' (chosen)' if trial == chosen else ''}"
            cells = [shown(trial.setting[key]) if trial.number else "" for key in keys]
            value = "diverged" if trial.value is None else f"{trial.value:.3f}"
            figures = [_percent(trial.source), value, *([_percent(trial.target)] if labelled else [])]
            table.add_row(name, *cells, *figures)
        return table

    def _say(self, text: str) -> None:
        self.console.print(text, soft_wrap=True, highlight=False, markup=False)


def _evaluations(trials: list[Trial]) -> dict[int, Evaluation]:
    """Finished trials by number, as the selection of checkpoints sees them; of equal ones the first is preferred."""
    return {
        t.number: Evaluation(-t.number, t.source, get_validator(t.validator).score(t.value))
        for t in trials
        if t.value is not None
    }


def _percent(share: float | None) -> str:
    return "" if share is None else f"{100 * share:.1f} %"
