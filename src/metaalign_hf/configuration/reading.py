"""Which entries of a configuration a run reads: one table, and one rule.

An entry that is set to something else than its default, and that nothing would read, is refused: whoever set it expects
an effect. There is one exception, when a configuration is parsed: what a file sets, and only an override on the command
line makes unread, is set aside. So `--config FILE --coordination.method joint` works with a file made for metaalign.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import MISSING, Field, asdict, dataclass, fields
from typing import TYPE_CHECKING, Any

from ..errors import UserError

if TYPE_CHECKING:
    from ..tasks import TaskKind

__all__ = [
    "DOMAIN_READS",
    "FILE_KINDS",
    "READ_WHERE",
    "Condition",
    "defaults_of",
    "ignored_by_task",
    "own_inner_lr",
    "own_rule",
    "read_entries",
    "refuse_unread",
    "refuse_unread_by_task",
    "unread",
    "unread_of_domain",
]


@dataclass(frozen=True)
class Condition:
    """What another entry of the same section must be for an entry to be read.

    Attributes:
        key: The other entry.
        wanted: What it must be, in words.
        holds: Whether a value is so.
    """

    key: str
    wanted: str
    holds: Callable[[Any], bool]


def _shown(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return value if isinstance(value, str) else repr(value)


def _is(key: str, *values: Any) -> Condition:
    return Condition(key, " or ".join(map(_shown, values)), lambda value: value in values)


def _given(key: str) -> Condition:
    return Condition(key, "something", lambda value: value is not None)


def _absent(key: str) -> Condition:
    return Condition(key, "null", lambda value: value is None)


def _positive(key: str) -> Condition:
    return Condition(key, "a number above 0", lambda value: isinstance(value, int | float) and value > 0)


_METAALIGN = _is("method", "metaalign")
_FRESH = (_METAALIGN, _is("direction", "fresh"))
_REMEMBERED = (_METAALIGN, _is("direction", "remembered"))
_ROLE = (*_REMEMBERED, _is("remember", "role"))
_MOVES = (_is("method", "metaalign", "extragradient", "heun", "pga"),)
_JOINT = (_is("method", "joint"),)
_SWAPS = _is("roles", "alternate")
_PUSHED = (_given("repo_id"),)
_BUILT = (_absent("checkpoint"),)
_CLASSIFIER = (_absent("checkpoint"), _absent("detector"))
_LINEAR = (*_CLASSIFIER, _is("head", "linear"))

# For each entry the alternatives, in each of which all conditions must hold. Entries that are not listed are always
# read. The optimiser's entries are not listed: they describe the parameters, for whatever step is chosen.
READ_WHERE: Mapping[str, Mapping[str, tuple[tuple[Condition, ...], ...]]] = {
    "coordination": {
        "direction": ((_METAALIGN,),),
        "remember": (_REMEMBERED,),
        "refresh_every": (_ROLE,),
        "inner_rule": (_MOVES,),
        "inner_lr": (_MOVES,),
        "relative": ((*_MOVES, _is("inner_rule", "fixed")),),
        "inner_scope": (_MOVES,),
        "first": ((*_FRESH, _SWAPS), (*_ROLE, _SWAPS)),
        "roles": (_FRESH, _ROLE),
        "swap_every": ((*_FRESH, _SWAPS), (*_ROLE, _SWAPS)),
        "order": (_FRESH,),
        "share_prefix": ((*_FRESH, _is("inner_scope", "last_stage", "head")),),
        "groups": (_FRESH, _JOINT),
        "weight_lr": ((*_FRESH, _is("groups", "stage")),),
        "smoothing": (_FRESH, _JOINT),
        "alignment_share": (_MOVES, _JOINT),
    },
    "model": {
        "backbone": (_CLASSIFIER,),
        "backbone_options": (_LINEAR,),
        "bottleneck_dim": (_LINEAR,),
        "head": (_CLASSIFIER,),
        "lora": (_CLASSIFIER,),
        "prompt": ((*_CLASSIFIER, _is("head", "zero_shot")),),
        "labels": ((*_CLASSIFIER, _is("head", "zero_shot")),),
        "bottleneck_kind": ((*_CLASSIFIER, _given("bottleneck_dim")),),
        "detector_options": ((*_BUILT, _given("detector")),),
        "pretrained": ((*_BUILT, _is("head", "linear")),),
        "alignment": (_BUILT,),
    },
    "data": {
        "source_sampling": ((Condition("source", "a list of several", lambda value: isinstance(value, list)),),),
        "views": ((Condition("augmentation", "crop or crop_flip", lambda value: value != "none"),),),
        "cache_folder": ((_is("cache_features", "auto", "always"),),),
        "cache_gigabytes": ((_is("cache_features", "auto", "always"),),),
    },
    "training": {
        "pseudo_label_threshold": ((_positive("pseudo_label_weight"),),),
        "select_tolerance": ((_given("select_by"),),),
        "selection_images": ((_given("select_by"),),),
        "keep_checkpoints": (
            (Condition("checkpoint_every", "a number above 0, or null", lambda value: value is None or value > 0),),
        ),
    },
    "hub": {
        "private": (_PUSHED,),
        "revision": (_PUSHED,),
        "create_pr": (_PUSHED,),
        "commit_message": (_PUSHED,),
        "adapter": (_PUSHED,),
        "push_every": ((*_PUSHED, _is("create_pr", False), _is("adapter", False)),),
        "attempts": (_PUSHED,),
        "retry_seconds": (_PUSHED,),
        "overwrite": (_PUSHED,),
    },
}

_SPLIT = ("test_fraction", "split_seed")
_OBJECTS = ("classes", "bad_boxes")
_DATASET = ("config_name", "revision", "domain_column", "image_column", "train_split", "test_split")
_COLUMNS = ("domain_column", "domain", "image_column", "label_column", "objects_column", "box_format")
_FILES = ("path", "test_path", "labels_file", *_COLUMNS, *_OBJECTS, *_SPLIT)
FILE_KINDS = ("parquet", "arrow", "webdataset")
_STREAMED = ("streaming", "shuffle_buffer", "streaming_gigabytes")
# Entries that a domain of a kind reads, beside kind and name.
DOMAIN_READS: Mapping[str, tuple[str, ...]] = {
    "digits": ("classes",),
    "solar": ("classes",),
    "digit_scenes": ("classes",),
    "imagefolder": ("path", "test_path", "classes", *_SPLIT),
    "list": ("path", "root", "outside_root", "labels_file", "test_path", "classes", *_SPLIT),
    "dataset": (
        "path",
        "labels_file",
        *_DATASET,
        "domain",
        "label_column",
        "objects_column",
        "box_format",
        *_OBJECTS,
        *_SPLIT,
        *_STREAMED,
    ),
    "coco": ("path", "outside_root", "annotations", "test_annotations", "test_path", *_OBJECTS, *_SPLIT),
    "voc": ("path", "outside_root", "train_split", "test_split", *_OBJECTS, *_SPLIT),
    "yolo": ("path", "outside_root", "train_split", "test_split", *_OBJECTS, *_SPLIT),
    **dict.fromkeys(FILE_KINDS, (*_FILES, *_STREAMED)),
}
_TEST_IMAGES = ("test_path", "test_split", "test_annotations")


def unread(section: str, values: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, str]:
    """The entries of a section that are set and that nothing reads, each with the reason.

    Args:
        section: `coordination`, `model`, `data`, `training` or `hub`.
        values: All of its entries.
        defaults: Their defaults.
    """
    found, facts = {}, _facts(section, values)
    for key in READ_WHERE.get(section, {}):
        condition = None if values.get(key) == defaults.get(key) else _failing(section, key, facts)
        if condition is not None:
            other = f"{section}.{condition.key}"
            is_now = "a single domain" if other == "data.source" else _shown(facts.get(condition.key))
            found[key] = f"with {other} {is_now} nothing reads it; drop it, or set {other} to {condition.wanted}"
    return found


def read_entries(section: str, values: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    """The entries of a section that a run with these values reads.

    Args:
        section: As `unread` takes it.
        values: Its entries, perhaps not all of them.
        defaults: Their defaults.
    """
    facts = _facts(section, {**defaults, **values})
    return {key: value for key, value in values.items() if _failing(section, key, facts) is None}


def _facts(section: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """What the conditions look at: the values, with the rule of the inner step in place of `auto`."""
    facts = dict(values)
    if section == "coordination" and facts.get("inner_rule") == "auto":
        facts["inner_rule"] = own_rule(facts.get("method"), facts.get("direction"))
    return facts


def _failing(section: str, key: str, facts: Mapping[str, Any]) -> Condition | None:
    """The condition that keeps an entry from being read; None where it is read."""
    alternatives = READ_WHERE.get(section, {}).get(key, ((),))
    failed = [next((c for c in conditions if not c.holds(facts.get(c.key))), None) for conditions in alternatives]
    return failed[0] if all(failed) else None


def refuse_unread(section: str, config: Any) -> None:
    """Refuse an entry of a section that is set and that nothing reads.

    Args:
        section: Name of the section.
        config: Its dataclass.

    Raises:
        UserError: For the first one: its key, its value, and what would be right.
    """
    values = {field.name: getattr(config, field.name) for field in fields(config)}
    for key, reason in unread(section, values, defaults_of(type(config))).items():
        raise UserError(f"{section}.{key} is {_shown(values[key])}: {reason}")


def refuse_unread_by_task(config: Any, kind: TaskKind) -> None:
    """Refuse entries that the task of a run does not read.

    Args:
        config: The whole configuration.
        kind: The task.

    Raises:
        UserError: For the first one.
    """
    who = f"a {kind.noun}"
    for key, instead in kind.ignores.items():
        value = getattr(config.data, key)
        if value is not None:
            raise UserError(f"data.{key} is {_shown(value)}: {who} does not read it; drop it ({who} takes {instead})")
    several = len(config.data.sources) > 1
    domains = [(f"source[{n}]" if several else "source", domain) for n, domain in enumerate(config.data.sources)]
    defaults = defaults_of(type(config.data.target))
    for name, domain in [*domains, ("target", config.data.target)]:
        for key in kind.ignores_of_dataset if domain.kind in ("dataset", *FILE_KINDS) else ():
            value = getattr(domain, key)
            if value != defaults[key]:
                raise UserError(f"data.{name}.{key} is {_shown(value)}: {who} does not read it; drop it")


def ignored_by_task(sections: Mapping[str, Mapping[str, Any]]) -> set[str]:
    """The entries that are set and that the task does not read; of a checkpoint the task is not known yet."""
    from ..tasks import task_chosen_by

    model = sections["model"]
    if model.get("checkpoint") is not None:
        return set()
    return {f"data.{key}" for key in task_chosen_by(model).ignores if sections["data"].get(key) is not None}


def unread_of_domain(domain: Any) -> dict[str, str]:
    """The entries of a domain that are set and that its kind does not read, each with the reason."""
    values, defaults = asdict(domain), defaults_of(type(domain))
    known, found = DOMAIN_READS.get(domain.kind, ()), {}
    tested = next((key for key in _TEST_IMAGES if values[key] is not None and key in known), None)
    for key, value in values.items():
        if key in ("kind", "name") or value == defaults[key]:
            continue
        if key not in known:
            readers = [kind for kind, keys in DOMAIN_READS.items() if key in keys]
            found[key] = (
                f"a domain of kind {domain.kind} does not read it (kinds that do: {', '.join(readers)}); drop it"
            )
        elif key in _SPLIT and tested is not None:
            found[key] = f"the test images are those of {tested}, so none are held out; drop it"
        elif key in _STREAMED[1:] and not domain.streaming:
            found[key] = "with streaming false nothing reads it; drop it, or set streaming to true"
        elif key == "domain" and domain.domain_column is None:
            found[key] = "domain_column says which column holds it; set that as well, or drop it"
    return found


def defaults_of(kind: type) -> dict[str, Any]:
    """The defaults of a dataclass; None where an entry has none."""

    def default(field: Field[Any]) -> Any:
        if field.default_factory is not MISSING:
            return field.default_factory()
        return None if field.default is MISSING else field.default

    return {field.name: default(field) for field in fields(kind)}


def own_rule(method: Any, direction: Any) -> str:
    """The rule of the inner step that `inner_rule: auto` stands for."""
    if method == "metaalign" and direction == "remembered":
        return "update"
    return "normalised" if method == "pga" else "fixed"


def own_inner_lr(method: Any, direction: Any) -> float:
    """The size of the inner step that `inner_lr: null` stands for, under `own_rule`."""
    return {"update": 3.0, "normalised": 0.05, "fixed": 1.0}[own_rule(method, direction)]
