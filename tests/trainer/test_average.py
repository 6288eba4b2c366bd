"""An average of the weights, and target losses that learn from it, are in MetaAlignTrainer what the loop has."""

import json
from copy import deepcopy
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForImageClassification, TrainerCallback

from metaalign_hf import MetaAlignTrainer, UserError, adapt
from tests.helpers.runs import weights
from tests.helpers.trainers import arguments, assert_same, config

SELF_TRAINING = {"name": "self_training", "threshold": 0.12, "thresholds": "adaptive", "burn_in": 0.2, "ramp_up": 0.5}
TAUGHT = {
    "self-training": {"target_losses": SELF_TRAINING},
    "two losses, statistics of the target": {
        "target_losses": ["information_maximization", "masked_consistency"],
        "ema_decay": 0.8,
        "batch_norm": "per_domain",
    },
}


class Rest(TrainerCallback):
    """Keeps the model that a callback sees at the end of training."""

    def on_train_end(self, args, state, control, model=None, **options):
        self.state = deepcopy(model.state_dict())


@pytest.mark.parametrize("name", TAUGHT)
def test_the_averaged_weights_are_those_of_the_loop_bit_for_bit(name, pair, model, tmp_path):
    options = TAUGHT[name]
    own = {f"training.{key}": value for key, value in options.items()}
    loop = config(tmp_path / "loop", {}, **own, **{"training.log_every": 1})
    summary = adapt(loop, pair=pair, model=deepcopy(model))
    given = arguments(tmp_path / "trainer", coordination={"direction": "remembered"}, **options)
    rest = Rest()
    trainer = MetaAlignTrainer(deepcopy(model), given, pair=pair, callbacks=[rest])
    trainer.train()
    trainer.save_model()
    assert_same(weights(tmp_path / "trainer"), weights(tmp_path / "loop"))
    assert_same(trainer.model.state_dict(), rest.state)
    found = trainer.evaluate()
    assert found["eval_target_accuracy"] == summary.target_accuracy_after
    assert found["eval_source_balanced_accuracy"] == summary.source_balanced_accuracy_after
    lines = [json.loads(line) for line in (tmp_path / "loop" / "metrics.jsonl").read_text().splitlines()]
    lines = [line for line in lines if "phase" in line]
    logged = [line for line in trainer.state.log_history if "loss" in line]
    figures = [name for name in lines[-1] if name.endswith("accepted")]
    assert len(figures) == ("threshold" in str(options)) and len(logged) == len(lines) == 6
    for figure in ("task_loss", *figures):
        assert [line.get(figure) for line in logged] == [line.get(figure) for line in lines]


def test_a_resumed_run_is_the_run_that_never_stopped(pair, model, tmp_path):
    stop = 2
    options = {
        "target_losses": SELF_TRAINING,
        "ema_decay": 0.9,
        "batch_norm": "per_domain",
        "eval_strategy": "steps",
        "eval_steps": stop,
        "save_strategy": "steps",
        "save_steps": stop,
        "validators": True,
    }
    whole = MetaAlignTrainer(deepcopy(model), arguments(tmp_path / "run", **options), pair=pair)
    whole.train()
    checkpoint = tmp_path / "run" / f"checkpoint-{stop}"
    on = MetaAlignTrainer(deepcopy(model), arguments(tmp_path / "on", **options), pair=pair)
    on.train(resume_from_checkpoint=str(checkpoint))
    assert_same(whole.model.state_dict(), on.model.state_dict())
    assert_same(whole.task.statistics.source.state_dict(), on.task.statistics.source.state_dict())
    keys = ("loss", "task_loss", "self_training_accepted", "grad_norm")
    logs = [[[line.get(k) for k in keys] for line in t.state.log_history if "loss" in line] for t in (whole, on)]
    assert logs[0] == logs[1] and len(logs[0]) == 6
    assert whole.task.target_losses[0].state_dict() == on.task.target_losses[0].state_dict()
    # A checkpoint is the model that was evaluated there.
    kept = AutoModelForImageClassification.from_pretrained(checkpoint)
    trained = load_file(checkpoint / "trained.safetensors")
    assert any(not torch.equal(value, trained[name]) for name, value in kept.state_dict().items())
    told = MetaAlignTrainer(kept, arguments(tmp_path / "kept", **options), pair=pair).evaluate()
    found = next(line for line in whole.state.log_history if "eval_target_accuracy" in line)
    names = [name for name in found if name.startswith(("eval_target", "eval_validator_bnm"))]
    assert found["step"] == stop and {name: told[name] for name in names} == {name: found[name] for name in names}


def test_the_best_average_comes_back(pair, model, tmp_path):
    every = {"eval_strategy": "steps", "eval_steps": 2, "save_strategy": "steps", "save_steps": 2, "validators": True}
    best = {"load_best_model_at_end": True, "metric_for_best_model": "validator_bnm", "greater_is_better": False}
    given = arguments(tmp_path / "run", ema_decay=0.9, **every, **best)
    trainer = MetaAlignTrainer(deepcopy(model), given, pair=pair)
    trainer.train()
    folder = Path(trainer.state.best_model_checkpoint)
    assert folder.name != "checkpoint-6", "the last one proves nothing"
    assert_same(trainer.model.state_dict(), load_file(folder / "model.safetensors"))
    assert trainer.evaluate()["eval_validator_bnm"] == trainer.state.best_metric
    trainer.save_model()
    assert_same(weights(tmp_path / "run"), load_file(folder / "model.safetensors"))


def test_bad_input_is_told_in_one_line(pair, model, tmp_path):
    with pytest.raises(UserError, match=r"ema_decay is 1\.5: it must be a finite number between 0 and 1"):
        arguments(tmp_path / "run", ema_decay=1.5)
    given = {"max_steps": 1, "save_strategy": "steps", "save_steps": 1}
    kept = {"an": {"target_losses": SELF_TRAINING}, "no": {}}
    for had, options in kept.items():
        folder = tmp_path / had
        MetaAlignTrainer(deepcopy(model), arguments(folder, **given, **options), pair=pair).train()
    for had, resumed, wrong in (
        ("an", {}, "has an average of the weights, and this run keeps none"),
        ("no", {"ema_decay": 0.9}, "has no average of the weights, and this run keeps one"),
        ("an", {"ema_decay": 0.9}, "is of a run with self_training"),
    ):
        trainer = MetaAlignTrainer(deepcopy(model), arguments(tmp_path / "other", **resumed), pair=pair)
        with pytest.raises(UserError, match=wrong) as error:
            trainer.train(resume_from_checkpoint=str(tmp_path / had / "checkpoint-1"))
        assert "\n" not in str(error.value)
