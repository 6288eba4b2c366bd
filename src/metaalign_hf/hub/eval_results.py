"""`.eval_results/NAME.yaml`: a result on a data set of the Hub that is registered as a benchmark."""

from __future__ import annotations

import yaml
from huggingface_hub import EvalResultEntry, eval_result_entries_to_yaml

from ..errors import UserError
from ..reports import RunRecord, hub_dataset

__all__ = ["eval_results"]


def eval_results(record: RunRecord, task: str) -> dict[str, bytes]:
    """The file that brings a run's target score to the leaderboard of the target's data set.

    The value is the figure that heads the run's tables, in percent, on the named test split of the target. Whether the
    benchmark's task is measured so, is for the user to know: a benchmark's `eval.yaml` does not say it.

    Args:
        record: The record of the run.
        task: The task's id in the data set's `eval.yaml`.

    Returns:
        The content by its path in the repository.

    Raises:
        UserError: If the run was not tested on a named split of a data set of the Hub.
    """
    target = record.training.get("data", {}).get("target") or {}
    path, split = hub_dataset(target), target.get("test_split")
    if path is None:
        raise UserError(
            "push: --benchmark-task is for a run whose data.target is a data set of the Hub (dataset:ORG/NAME) that is "
            "registered there as a benchmark; leave it out"
        )
    if not split:
        raise UserError(
            f"push: --benchmark-task: the run was tested on a share of {path}, not on a split of the benchmark; name "
            "data.target.test_split when you train"
        )
    measure = record.measure
    value = record.summary.get(f"target_{measure.name}_after")
    if value is None:
        raise UserError(f"push: --benchmark-task: the run has no test {measure.heading} on {path}; finish it first")
    entry = EvalResultEntry(
        dataset_id=path,
        task_id=task,
        value=round(100 * value, 2),
        dataset_revision=target.get("revision"),
        notes=f"{measure.heading} in percent on {split}, adapted without its labels",
    )
    text = yaml.safe_dump(eval_result_entries_to_yaml([entry]), sort_keys=False)
    return {f".eval_results/{path.rpartition('/')[2]}.yaml": text.encode()}
