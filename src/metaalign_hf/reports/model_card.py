"""The model card of an adapted checkpoint.

One template, filled from the run's record alone: a number that was not measured, or a fact that is not on record,
cannot appear in the card.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from importlib.resources import files
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData
from jinja2 import Environment, StrictUndefined

from ..configuration import CoordinationConfig, OptimizerConfig
from ..configuration.reading import defaults_of, read_entries
from ..errors import UserError, one_line
from ..tasks import Measure
from .citations import cited_by, target_losses_of
from .record import HUB_ID, RunRecord, hub_dataset

__all__ = ["card_is_generated", "model_card"]

_SIGNATURE = re.compile(r"\n<!-- metaalign-hf card ([0-9a-f]{12}) -->\n$")

_DEFAULTS = {"coordination": defaults_of(CoordinationConfig), "optimizer": defaults_of(OptimizerConfig)}
_CHECKPOINTS = {
    "last": "Numbers are of the last checkpoint of the run, whatever they turned out to be.",
    "selected": "Numbers are of the checkpoint that a validator without target labels selected.",
}
_GAME = {"extragradient": "gradient = v(theta')", "heun": "gradient = (v(theta) + v(theta')) / 2"}
_PGA = (
    "gradient = grad L_task(theta + rho g_task/|g_task| - rho g_alignment/|g_alignment|)\n"
    "         + grad L_alignment(theta + rho g_alignment/|g_alignment| - rho g_task/|g_task|)"
)
_REMEMBERED = (
    "theta' = theta - alpha * m, m: the remembered gradient\ngradient = grad L_task(theta') + grad L_alignment(theta')"
)
_JOINT = "gradient = grad L_task(theta) + grad L_align(theta)"
_SECOND_ORDER = " - alpha * J_train(theta)^T grad L_test(theta')"


def model_card(
    record: RunRecord,
    *,
    repo_id: str | None = None,
    native: bool = False,
    architecture: str | None = None,
    adapter_of: str | None = None,
    figures: Sequence[str] = (),
    pictures: Sequence[str] = (),
    license: str | None = None,
) -> str:
    """The text of a README.md.

    Args:
        record: The run's record.
        repo_id: Where the model will be on the Hub; None for a folder.
        native: Whether the card is for the plain transformers model.
        architecture: Class of the plain model.
        adapter_of: The base model of low-rank adapters, where the card is for them alone.
        figures: Figures to show, as paths relative to the card.
        pictures: Pictures of target images to show, as paths relative to the card.
        license: Licence identifier, such as `apache-2.0`; None leaves it out.

    Returns:
        The card, signed so that `card_is_generated` can tell whether somebody has edited it.

    Raises:
        UserError: If huggingface_hub does not accept the metadata.
    """
    values = _Facts(record, native, architecture).values()
    title = repo_id.split("/")[-1] if repo_id else values["name"]
    template = files(__package__).joinpath("model_card_template.md").read_text()
    environment = Environment(undefined=StrictUndefined, autoescape=False, keep_trailing_newline=True)
    body = environment.from_string(template).render(
        values,
        adapter_of=adapter_of,
        adapter_revision=_adapter_revision(record),
        title=title,
        place=repo_id or "PATH/TO/THIS/FOLDER",
        figures=list(figures),
        pictures=list(pictures),
        license=license,
    )
    body = re.sub(r"\n{3,}", "\n\n", body).strip()
    relation: dict[str, Any] = {} if adapter_of is None else {"base_model_relation": "adapter"}
    data = ModelCardData(
        library_name="transformers" if adapter_of is None else "peft",
        pipeline_tag=values["task"].pipeline_tag,
        license=license,
        base_model=adapter_of or values["base_model"],
        **relation,
        datasets=values["datasets"] or None,
        metrics=sorted({result.metric_type for result in values["index"]}) or None,
        tags=values["tags"] if adapter_of is None else [*values["tags"], "lora"],
        model_name=title,
        eval_results=values["index"] or None,
    )
    text = f"---\n{data.to_yaml()}\n---\n\n{body}\n"
    _validate(text, data)
    return f"{text}\n<!-- metaalign-hf card {_signature(text)} -->\n"


def _adapter_revision(record: RunRecord) -> str | None:
    """The commit of the base model that the model's adapters belong to."""
    base = (record.model.get("lora") or {}).get("base") or record.model.get("origin") or {}
    return base.get("revision")


def card_is_generated(text: str) -> bool:
    """Whether a card is as `model_card` wrote it: such a card may be written anew, an edited one may not."""
    found = _SIGNATURE.search(text)
    return found is not None and found[1] == _signature(text[: found.start()])


def _signature(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _validate(text: str, data: ModelCardData) -> None:
    """Check that huggingface_hub reads the same metadata from the card."""
    try:
        read = ModelCard(text).data
    except Exception as error:
        raise UserError(f"model card: huggingface_hub refuses it: {one_line(error)}") from error
    if read.to_dict() != data.to_dict():
        raise UserError("model card: huggingface_hub reads other metadata than were written")


class _Facts:
    """The facts of a record, as the card states them."""

    def __init__(self, record: RunRecord, native: bool, architecture: str | None) -> None:
        self.record, self.native = record, native
        self.config, self.summary, self.training = record.model, record.summary, record.training
        self.architecture = architecture or (self.config.get("architectures") or [""])[0]
        self.task = record.task

    def values(self) -> dict[str, Any]:
        alignment = [entry["name"] for entry in self.config.get("alignment") or []]
        method = self._method
        words, equation = _method(method, self.training.get("coordination", {}))
        if self._statistics:
            words = "Training on the source alone." if method == "source_only" else words
            words += (
                " The running statistics of batch normalisation are then estimated anew on unlabelled images of the "
                "target."
            )
        used = alignment if method not in ("source_only", "target_only") else []
        base_model = self._base_model()
        domains = {name: self._domain(name) for name in ("source", "target")}
        results, index = self._results()
        names = ("backbone_name", "detector_name", "model_type")
        backbone = next((str(self.config[name]) for name in names if self.config.get(name)), "model")
        return {
            "name": f"{backbone.split('/')[-1]}: {domains['source'] or 'source'} to {domains['target'] or 'target'}",
            "native": self.native,
            "architecture": self.architecture,
            "timm": "Timm" in self.architecture,
            "task": self.task,
            "measure": self.record.measure.heading,
            "source": domains["source"],
            "target": domains["target"],
            "labels": self.record.labels,
            "adapted": self._adapted,
            "source_free": method == "target_only",
            "few_labels": bool(self.training.get("data", {}).get("target_labeled")),
            "intermediate": self._intermediate(),
            "results": results,
            "measured": self._measured(),
            "checkpoints": self._checkpoints(),
            "oracle": any(row["checkpoint"].startswith("oracle") for row in self.summary.get("checkpoints") or []),
            "notes": [str(note) for note in self.summary.get("notes", [])],
            "index": index,
            "method": {"words": words, "equation": equation} if words else None,
            "alignment": [f"{name}{_options(self.config['alignment'], name)}" for name in used],
            "target_losses": [f"{entry['name']}{_options([entry], entry['name'])}" for entry in self._target_losses()],
            "settings": self._settings(),
            "unrecorded": self._unrecorded(),
            "revision": (self.config.get("origin") or {}).get("revision") if base_model else None,
            "domains": [
                self._describe(name, config)
                for name in ("source", "target")
                if domains[name] and not (name == "source" and method == "target_only")
                for config in self._domain_configs(name) or [{}]
            ],
            "limits": self._limits(),
            "base_model": base_model,
            "datasets": self._datasets(),
            "tags": [
                "metaalign",
                "domain-adaptation",
                self.task.pipeline_tag,
                *([method] if method == "joint" else []),
                *used,
            ],
            "citations": cited_by(self.record),
        }

    @property
    def _method(self) -> str:
        return str(self.training.get("coordination", {}).get("method") or self.summary.get("method"))

    @property
    def _statistics(self) -> bool:
        """Whether the running statistics are those of the target."""
        return bool(self.training.get("training", {}).get("recalibrate_bn") == "target")

    @property
    def _adapted(self) -> bool:
        return self._method != "source_only" or self._statistics

    @property
    def _unlabelled(self) -> bool:
        return bool(self.summary.get("target_test_images") == 0)

    def _domain_configs(self, name: str) -> list[dict[str, Any]]:
        """The domain's configuration; several where there are several sources."""
        found = self.training.get("data", {}).get(name) or []
        return found if isinstance(found, list) else [found]

    def _domain(self, name: str) -> str | None:
        if name in self.summary:
            return str(self.summary[name])
        return " + ".join(filter(None, map(_domain_name, self._domain_configs(name)))) or None

    def _describe(self, name: str, config: dict[str, Any]) -> str:
        role = "labelled" if name == "source" else "its labels never reach training or selection"
        if name == "target" and self._unlabelled:
            role = "unlabelled"
        alone = len(self._domain_configs(name)) < 2
        words = f"**{name}** {self._domain(name) if alone else _domain_name(config)} ({role})"
        kinds = {
            "digits": "embedded digits of installed packages",
            "solar": "embedded photographs of solar cells (elpv-dataset, CC-BY-NC-SA-4.0)",
            "imagefolder": "a local folder of images",
            "list": "a local list of images",
            "coco": "a local set of images with COCO annotations",
            "voc": "a local folder of images with VOC annotations",
            "yolo": "a local folder of images with YOLO annotations",
            "parquet": "parquet files",
            "arrow": "arrow files",
            "webdataset": "webdataset files",
            "digit_scenes": "scenes drawn by code with digits of installed packages",
            "dataset": "data set",
        }
        if config:
            place = kinds.get(config.get("kind", ""), str(config.get("kind")))
            if config.get("kind") == "dataset":
                place += f" {config.get('path')}"
            if config.get("revision"):
                place += f" at revision {config['revision']}"
            if config.get("domain_column"):
                place += f", rows with {config['domain_column']} = {config.get('domain')}"
            words += f": {place}"
            if config.get("test_path") and config.get("test_path") == config.get("path"):
                words += "; tested on the training images"
            elif config.get("kind") == "digit_scenes":
                words += "; tested on scenes with other digits"
            elif config.get("kind") == "solar":
                words += "; tested on a fifth of the cells, whole blocks of neighbours"
            elif not any(config.get(key) for key in ("test_path", "test_split", "test_annotations")):
                share = 0.2 if config.get("kind") == "digits" else config.get("test_fraction")
                words += f"; tested on a share of {share} of the images, held out at random without looking at labels"
        elif "data" in self._unrecorded():
            words += ": given from Python; where its images come from is not recorded"
        count = self.summary.get(f"{name}_test_images")
        return f"{words}; {count} labelled test images" if count and alone else words

    def _datasets(self) -> list[str]:
        found = []
        for config in [*self._domain_configs("source"), *self._domain_configs("target")]:
            if (name := hub_dataset(config)) is not None and name not in found:
                found.append(name)
        return found

    def _base_model(self) -> str | None:
        """The Hub id of the weights that training started from, as the model recorded it; None for other weights."""
        place = str((self.config.get("origin") or {}).get("weights") or "")
        return place if HUB_ID.fullmatch(place) else None

    def _unrecorded(self) -> list[str]:
        """What was given from Python, so that `training_config.yaml` does not hold it."""
        data, model = self.training.get("data", {}), self.training.get("model", {})
        found = ["data"] if "target" in data and data["target"] is None else []
        return [*found, *(["model"] if model and not any(model.values()) else [])]

    def _intermediate(self) -> dict[str, int] | None:
        if self.summary or not self.training or not self.record.metrics:
            return None
        course = self.training.get("training", {})
        total = course.get("source_steps", 0) + course.get("max_steps", 0)
        return {"step": self.record.metrics[-1]["step"], "total": total}

    def _results(self) -> tuple[dict[str, Any] | None, list[EvalResult]]:
        if self.summary:
            return self._final_results()
        if not self.record.evaluations:
            return None, []
        last = self.record.evaluations[-1]
        rows = [
            [f"{domain}, {measure.heading}", _percent(last[f"{domain}_{measure.name}"])]
            for domain in ("source", "target")
            for measure in self._measures()
            if last.get(f"{domain}_{measure.name}") is not None
        ]
        return ({"columns": ["test images of", f"step {last['step']}"], "rows": rows} if rows else None), []

    def _final_results(self) -> tuple[dict[str, Any] | None, list[EvalResult]]:
        rows, index = [], []
        for domain in ("source", "target"):
            for measure in self._measures():
                figure = f"{domain}_{measure.name}"
                before = self.summary.get(f"{figure}_before")
                after = self.summary.get(f"{figure}_after")
                if after is None:
                    continue
                count = self.summary.get(f"{domain}_test_images", "")
                change = "" if before is None else f"{100 * (after - before):+.2f}"
                name = f"{domain} {self._domain(domain)}, {measure.heading}"
                rows.append([name, "" if before is None else _percent(before), _percent(after), change, str(count)])
                if measure.indexed or measure == self.record.measure:
                    index.append(self._eval_result(domain, measure, after))
        columns = ["test images of", "before", "after", "change, points", "n"]
        return ({"columns": columns, "rows": rows} if rows else None), index

    def _measures(self) -> list[Measure]:
        """All measures, the one that heads the run's tables first."""
        return self.task.measures_from(self.record.measure.name)

    def _eval_result(self, domain: str, measure: Measure, value: float) -> EvalResult:
        configs = self._domain_configs(domain)
        config = configs[0] if len(configs) == 1 else {}
        on_hub = hub_dataset(config)
        return EvalResult(
            task_type=self.task.pipeline_tag,
            task_name=self.task.pipeline_tag.replace("-", " ").capitalize(),
            dataset_type=on_hub or "custom",
            dataset_name=f"{self._domain(domain)} ({domain} domain)",
            # Results of one data set and configuration are merged, and both domains may be of one data set.
            dataset_config=f"{domain}: {self._domain(domain)}",
            dataset_split=config.get("test_split") if on_hub else None,
            dataset_revision=config.get("revision") if on_hub else None,
            metric_type=measure.metric,
            metric_name=f"{domain} test {measure.heading}",
            metric_value=round(value, 4),
        )

    def _measured(self) -> str:
        if not self.summary:
            return "Measured during the run, on test images that are not trained on."
        first, steps = self.summary.get("source_steps", 0), self.summary.get("adaptation_steps")
        before = f"after {first} steps on the source alone" if first else "the model that the run started from"
        after = f"{steps} steps of adaptation"
        if self._method == "source_only":
            after = f"{steps} {'more ' if first else ''}steps on the source"
            after += ", and statistics of the target" if self._statistics else ""
        words = [f"Before: {before}. After: {after}."]
        words.append(f"One run, seed {self.summary.get('seed')}; n is the number of labelled test images.")
        checkpoint = self.summary.get("checkpoint")
        words.append(_CHECKPOINTS.get(str(checkpoint), f"Numbers are of the checkpoint: {checkpoint}."))
        alone = (self.summary.get("baseline") or {}).get("target")
        if alone is not None:
            words.append(f"As many steps on the source alone reach {_percent(alone)} on the target.")
        if self.native:
            words.append("They were measured on the full checkpoint, whose outputs this model repeats bit by bit.")
        return " ".join(words)

    def _checkpoints(self) -> list[list[str]]:
        """Figures of the last, the selected and, as an upper bound, the best checkpoint by target labels."""
        return [
            [
                row["checkpoint"],
                str(row["step"]),
                "not used" if row["source"] is None else _percent(row["source"]),
                "no labels" if row["target"] is None else _percent(row["target"]),
            ]
            for row in self.summary.get("checkpoints") or []
        ]

    def _settings(self) -> list[tuple[str, Any]]:
        model = self.training.get("model") or {}
        names = ("freeze", "lora", *(("head", "prompt") if model.get("head") == "zero_shot" else ()))
        shown = [(f"model.{name}", model[name]) for name in names if model.get(name) not in (None, "none")]
        for section in ("coordination", "optimizer"):
            read = read_entries(section, self.training.get(section, {}), _DEFAULTS[section])
            shown += [(f"{section}.{key}", value) for key, value in read.items()]
        course = self.training.get("training", {})
        names = ("source_steps", "max_steps", "batch_size", "gradient_accumulation_steps", "mixed_precision", "seed")
        shown += [(f"training.{name}", course[name]) for name in names if name in course]
        if course.get("pseudo_label_weight"):
            teacher = ("ema_decay", "pseudo_label_weight", "pseudo_label_threshold")
            shown += [(f"training.{name}", course[name]) for name in teacher]
        elif self._target_losses() and course.get("ema_decay") is not None:
            shown.append(("training.ema_decay", course["ema_decay"]))
        if self.summary.get("batch_norm"):
            shown.append(("batch normalisation", self.summary["batch_norm"]))
        cosine = self.summary.get("gradient_cosine")
        if cosine is not None:
            second = "alignment" if self.config.get("alignment") else "target-loss"
            shown.append((f"measured: mean cosine of task and {second} gradients", f"{cosine:+.3f}"))
        if self.summary.get("penalty_cosine") is not None:
            name = f"measured: mean cosine of the task gradient and the penalty of the {self.summary['penalty']}"
            shown.append((f"{name} (in both losses, left out above)", f"{self.summary['penalty_cosine']:+.3f}"))
        shown += [(f"version of {name}", value) for name, value in (self.summary.get("versions") or {}).items()]
        return shown

    def _target_losses(self) -> list[dict[str, Any]]:
        """The target losses by name and options."""
        found = target_losses_of(self.training.get("training", {}))
        return [entry if isinstance(entry, dict) else {"name": str(entry)} for entry in found]

    def _limits(self) -> list[str]:
        limits = []
        source, target = self._domain("source"), self._domain("target")
        if target:
            knows = f"adapted to {target}" if self._adapted else f"trained on {source or 'its source'} alone"
            limits.append(f"It was {knows} and is expected to be worse on images of other domains.")
        if self.summary:
            limits.append("The numbers come from one run with one seed; other seeds give other numbers.")
            if self._unlabelled:
                what = "whether adaptation helped on it" if self._adapted else "how good it is there"
                limits.append(f"The target has no labels, so {what} was not measured.")
        limits.append(self.task.limit)
        limits.append("It repeats whatever bias the source's labels and the base weights have; that was not examined.")
        return limits


def _percent(value: float) -> str:
    return f"{100 * value:.2f} %"


def _options(alignment: list[dict[str, Any]], name: str) -> str:
    given = next(entry for entry in alignment if entry["name"] == name)
    shown = [f"{key} {value}" for key, value in given.items() if key != "name" and (key, value) != ("weight", 1.0)]
    return f" ({', '.join(shown)})" if shown else ""


def _domain_name(config: dict[str, Any]) -> str:
    base = str(config.get("name") or str(config.get("path") or "").rstrip("/").rsplit("/", 1)[-1])
    return f"{base}/{config['domain']}" if base and config.get("domain") else base


def _method(name: str, settings: dict[str, Any]) -> tuple[str, str]:
    """The method in words, and its equation."""
    if name == "joint":
        return "Joint training: the plain sum of task and alignment loss.", _JOINT
    if name == "source_only":
        return "Training on the source alone: a baseline, not an adaptation.", "gradient = grad L_task(theta)"
    if name == "target_only":
        words = (
            "Adaptation without the source (SHOT, Liang et al., ICML 2020): the model that the run started from learns "
            "from unlabelled images of the target alone. Its classifier stays as it was, and the features move to it."
        )
        return words, "gradient = grad L_target(theta), theta: all weights but the classifier's"
    if name in ("extragradient", "heun"):
        words = (
            "Task and alignment as a game (Acuna et al., ICLR 2022): the joint gradient is taken a second time after a "
            "trial step along itself."
        )
        return words, f"theta' = theta - alpha * v(theta), v = grad L_task + grad L_alignment\n{_GAME[name]}"
    if name == "pga":
        words = (
            "Each loss is descended where it is higher itself and the other is lower (PGA, Phan et al., NeurIPS 2024)."
        )
        return words, _PGA
    if name != "metaalign":
        return "", ""
    if settings.get("direction", "fresh") == "remembered":
        role = settings.get("remember") == "role"
        whose = "one of the two losses, which swap roles" if role else "both losses"
        words = (
            "MetaAlign (Wei et al., CVPR 2021) from memory: the inner step follows the gradient of "
            f"{whose}, kept from an earlier step, and one pass descends both losses after it."
        )
        return words, _REMEMBERED
    second = settings.get("order", 1) == 2
    roles = settings.get("roles", "alternate")
    who = "the two swap roles" if roles == "alternate" else f"{roles} is always meta-train"
    words = (
        f"MetaAlign (Wei et al., CVPR 2021), {'second' if second else 'first'} order: on every mini-batch one of the "
        f"two losses, task and alignment, is meta-train and the other meta-test; {who}. The step descends the loss of "
        "meta-train at the weights, and that of meta-test after an inner step on meta-train, so that the two gradients "
        "come to agree."
    )
    total = "gradient = grad L_train(theta) + grad L_test(theta')" + (_SECOND_ORDER if second else "")
    held = "J_train: the Jacobian of grad L_train" if second else "theta' is held constant"
    return words, f"theta' = theta - alpha * grad L_train(theta)\n{total}\n({held})"
